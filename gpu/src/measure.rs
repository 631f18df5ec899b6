//! Measures the kernels against what the device's memory and the bus can do, in one run.

use std::sync::Arc;
use std::time::Instant;

use sparse_codec::{Adapter, DType, LowRank, TensorView};

use crate::error::During;
use crate::int8::{Codes, Segments};
use crate::{Choice, Device, DeviceMatrices, GpuError, Ring, predict_streamed};

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
    Ok(all)
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
