//! Measures the kernels against what the device's memory and the bus can do, in one run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cudarc::driver::{DevicePtr as _, DevicePtrMut as _};
use sparse_codec::{
    Adapter, BlockForm, CodecError, DType, EncodeOptions, LowRank, Scratch, TensorDecoder,
    TensorEncoder, TensorView,
};
use sparse_svd::Rank;

use crate::error::During;
use crate::int8::{Codes, Segments};
use crate::strips::{DeviceTables, Staged, Strip};
use crate::{
    Blocks, Choice, Compute, Device, DeviceMatrices, Encoding, ForEncoding, GpuError, OnDevice,
    Ring, SvdStreamed, decode, predict_streamed,
};

/// Rank of the low-rank update.
const RANK: u64 = 16;
/// Timings of each; the median counts.
const RUNS: usize = 9;

/// What one kind of work took.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// What was done.
    pub name: &'static str,
    /// Bytes read and written.
    pub bytes: u64,
    /// The median time in seconds.
    pub seconds: f64,
}

impl Measurement {
    /// Gigabytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-12) / 1e9
    }
}

/// Measures copies and kernels on a matrix of `rows` x `cols` BF16 elements, each at least 32. The first three are what the others are to be held
/// against: a copy on the device, and copies of pinned memory to it and back.
///
/// # Errors
/// Failures of the device.
pub fn measure(device: &Arc<Device>, rows: u64, cols: u64) -> Result<Vec<Measurement>, GpuError> {
    let size = |n: u64| {
        usize::try_from(n).map_err(|_| GpuError::unsupported("that many rows do not fit in memory"))
    };
    let (rows, cols) = (rows.max(2 * RANK), cols.max(2 * RANK));
    let elements = rows.saturating_mul(cols);
    let (count, bytes) = (size(elements)?, size(elements.saturating_mul(2))?);
    let base = device.zeros::<u8>(bytes)?;
    let mut out = device.zeros::<u8>(bytes)?;
    let stream = Arc::clone(device.stream());
    let mut all = Vec::new();

    all.push(timed(device, "copy on the device", 4 * elements, || {
        stream.memcpy_dtod(&base, &mut out).during("copying")
    })?);
    let mut up = device.pinned::<u8>(bytes, false)?;
    up.as_mut_slice().during("filling pinned memory")?.fill(0);
    all.push(timed(
        device,
        "pinned memory to the device",
        2 * elements,
        || stream.memcpy_htod(&up, &mut out).during("copying"),
    )?);
    let mut down = device.pinned::<u8>(bytes, true)?;
    all.push(timed(
        device,
        "the device to pinned memory",
        2 * elements,
        || stream.memcpy_dtoh(&out, &mut down).during("copying"),
    )?);
    drop((up, down));

    let codes = Codes::new(
        device,
        &vec![1; count],
        &vec![0.5; size(rows)?],
        Segments::rows(cols),
    )?;
    all.push(timed(
        device,
        "INT8 apply, scales by row",
        5 * elements,
        || codes.apply(device, &stream, DType::BF16, Some(&base), &mut out),
    )?);
    all.push(timed(
        device,
        "statistics of an update",
        4 * elements,
        || {
            device
                .stats_parts("stats_bf16_bf16", &out, &base, count)
                .map(drop)
        },
    )?);

    let (left, right) = (
        vec![0; size(rows * RANK * 4)?],
        vec![0; size(RANK * cols * 4)?],
    );
    let factor = |shape, data| TensorView {
        dtype: Some(DType::F32),
        shape,
        data,
    };
    let broken = |error: sparse_codec::CodecError| GpuError::unsupported(error.to_string());
    let matrices = LowRank::adapter(Adapter {
        left: factor(&[rows, RANK], &left),
        right: factor(&[RANK, cols], &right),
        scale: 1.0,
        rounded: false,
    })
    .and_then(|adapter| adapter.matrices(DType::BF16, &[rows, cols]))
    .map_err(broken)?;
    let factors = DeviceMatrices::new(device, &matrices)?;
    let mut classes = device.alloc::<u8>(count)?;
    all.push(timed(
        device,
        "low-rank prediction, rank 16",
        5 * elements,
        || factors.launch(&stream, &base, &mut out, Some(&mut classes), 0, count),
    )?);
    let words = vec![0; bytes];
    all.push(timed(
        device,
        "the same from host to host by the ring",
        5 * elements,
        || {
            predict_streamed::<GpuError>(
                Choice::Cuda,
                &matrices,
                Ring::default(),
                count,
                |at, to| {
                    to.copy_from_slice(words.get(at..at + to.len()).unwrap_or_default());
                    Ok(())
                },
                |_, _| Ok(()),
            )
            .map(drop)
        },
    )?);
    drop((out, base, classes));
    blocks(device, rows, cols, &mut all)?;
    Ok(all)
}

/// Measures the decomposition of a BF16 matrix's small update to a rank, from words in memory to factors in memory. Bytes are
/// those of the words.
///
/// # Errors
/// No cuBLAS that can be used, and failures of the device.
pub fn measure_svd(
    device: &Device,
    rows: usize,
    cols: usize,
    rank: usize,
) -> Result<Measurement, GpuError> {
    let count = rows.saturating_mul(cols);
    let (base, target) = tuned(count);
    let shape = [rows as u64, cols as u64];
    let view = |data| TensorView {
        dtype: Some(DType::BF16),
        shape: &shape,
        data,
    };
    let all = SvdStreamed::open(Choice::Cuda)?;
    let bytes = 4 * count as u64;
    timed(device, "singular value decomposition", bytes, || {
        let rank = Rank::Fixed(rank);
        match all.decompose(view(&target), view(&base), rank, &|| Ok(()))? {
            Some(_) => Ok(()),
            None => Err(GpuError::unsupported("the matrix does not fit the GPU")),
        }
    })
}

/// Measures the decoding of strips that lie in the device's memory, and blocks from host to host on several threads.
fn blocks(
    device: &Arc<Device>,
    rows: u64,
    cols: u64,
    all: &mut Vec<Measurement>,
) -> Result<(), GpuError> {
    let broken = |error: CodecError| GpuError::unsupported(error.to_string());
    let count = usize::try_from(rows * cols).unwrap_or(0);
    let (base, target) = tuned(count);
    let shape = [rows, cols];
    let view = |data| TensorView {
        dtype: Some(DType::BF16),
        shape: &shape,
        data,
    };
    let options = EncodeOptions::default();
    let encoder = TensorEncoder::new(view(&target), Some(view(&base)), &options).map_err(broken)?;
    let form = Some((Some(DType::BF16), &shape[..]));
    let decoder = TensorDecoder::new(Some(DType::BF16), &shape, encoder.header(), form, None)
        .map_err(broken)?;
    let mut scratch = Scratch::default();
    let mut coded = Vec::with_capacity(encoder.blocks());
    for block in 0..encoder.blocks() {
        let mut bytes = Vec::new();
        encoder
            .encode_block(block, &mut scratch, &mut bytes)
            .map_err(broken)?;
        coded.push(bytes);
    }
    let coded_bytes: usize = coded.iter().map(Vec::len).sum();
    let bytes = 4 * count as u64 + coded_bytes as u64;

    if let Some(coding) = decoder.coding() {
        let stream = Arc::clone(device.stream());
        let words = device.upload(&base)?;
        let mut out = device.alloc::<u8>(base.len())?;
        let (from, to) = (words.device_ptr(&stream).0, out.device_ptr_mut(&stream).0);
        let (mut staged, mut strips) = (Staged::default(), Vec::new());
        for (block, bytes) in coded.iter().enumerate() {
            if let Ok(BlockForm::Strips(forms)) = decoder.block_form(block, bytes) {
                for form in forms {
                    let at = 2 * form.words.start as u64;
                    strips.push(Strip {
                        prediction: from + at,
                        words: to + at,
                        ..staged.coded(&coding, &form)?
                    });
                }
            }
        }
        let parts = device.upload(&staged.bytes)?;
        let strips = Staged::addresses(&strips, parts.device_ptr(&stream).0);
        let on_device = device.upload(&strips)?;
        let tables = DeviceTables::new(device, coding.tables, true)?;
        let mut status = device.alloc::<u32>(strips.len())?;
        all.push(timed(
            device,
            "strips decoded on the device",
            bytes,
            || {
                decode::launch(
                    device,
                    &stream,
                    DType::BF16,
                    &tables,
                    &on_device,
                    &mut status,
                    strips.len(),
                )
            },
        )?);
    }

    let compute = Arc::new(Compute::open(Choice::Cuda)?);
    let (decodes, encodes) = (Blocks::on(&compute)?, Encoding::on(&compute)?);
    let (for_decoding, for_encoding) = (OnDevice::default(), ForEncoding::default());
    let each = decoder.target_range(0).len().max(1);
    let together = decodes
        .chunk(&decoder)
        .map_or(1, |chunk| (chunk / each).max(1));
    let coded: Vec<&[u8]> = coded.iter().map(Vec::as_slice).collect();
    all.push(timed(
        device,
        "blocks decoded from host to host, 8 threads",
        bytes,
        || {
            on_threads(coded.len().div_ceil(together), |run| {
                let first = run * together;
                let some = coded.chunks(together).nth(run).unwrap_or_default();
                let range = decoder.target_range(first).start
                    ..decoder.target_range(first + some.len() - 1).end;
                let mut out = vec![0; range.len()];
                let left = decodes.decode(&for_decoding, &decoder, first, some, &base, &mut out);
                left.map(drop)
            })
        },
    )?);
    all.push(timed(
        device,
        "strips encoded from host to host, 8 threads",
        bytes,
        || {
            on_threads(encoder.blocks(), |block| {
                let strips = encodes.strips(&for_encoding, &encoder, block, &target, &base);
                strips.map(drop)
            })
        },
    )?);
    Ok(())
}

/// Does numbered work on eight threads.
fn on_threads(
    count: usize,
    work: impl Fn(usize) -> Result<(), GpuError> + Sync,
) -> Result<(), GpuError> {
    let next = AtomicUsize::new(0);
    let run = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            work(number)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(GpuError::unsupported("a thread panicked")))
        })
    })
}

/// BF16 words that look like weights, and the same after a small update.
fn tuned(count: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut base, mut target) = (Vec::new(), Vec::new());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Of 0.01 or so, and an update of a hundredth of that.
        let [a, b, c, d, ..] = state
            .to_le_bytes()
            .map(|byte| f32::from(byte) / 128.0 - 1.0);
        let word = (a + b) * 0.01;
        let word = word.to_bits() & 0xffff_0000;
        let new = f32::from_bits(word) + (c + d) * 1e-4;
        base.extend_from_slice(&word.to_le_bytes()[2..]);
        target.extend_from_slice(&new.to_bits().to_le_bytes()[2..]);
    }
    (base, target)
}

fn timed(
    device: &Device,
    name: &'static str,
    bytes: u64,
    mut work: impl FnMut() -> Result<(), GpuError>,
) -> Result<Measurement, GpuError> {
    let mut times = Vec::with_capacity(RUNS);
    // The first time loads the kernel, and is not counted.
    for run in 0..=RUNS {
        let start = Instant::now();
        work()?;
        device.settle()?;
        if run > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(Measurement {
        name,
        bytes,
        seconds: times.get(RUNS / 2).copied().unwrap_or_default(),
    })
}
