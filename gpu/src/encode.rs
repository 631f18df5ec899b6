//! Encoding blocks: `kernels/encode.cu`, through a ring of slots of one block each, as [`crate::Blocks`] decodes them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr as _, DevicePtrMut as _, PinnedHostSlice, PushKernelArg,
};
use sparse_codec::{Coding, DType, Moved, StripCode, TensorEncoder};

use crate::error::During;
use crate::kernels::{Module, dtype_name};
use crate::lane::{Down, Lanes, Own, Up};
use crate::needs::{Held, Needs};
use crate::slots::Slots;
use crate::strips::{DeviceTables, Staged, Strip, TableCache};
use crate::{Compute, Device, GpuError};

/// Words of a block, at most.
const BLOCK: usize = 1 << 19;
/// Strips of a block, at most.
const STRIPS: usize = 32;
/// Bytes of a word, at most.
const WIDEST: usize = 4;
/// Bytes of a strip's scratch memory for each word: tables and tokens, the coder's words, places and differences of patches; and
/// its raw bits.
const PARTS: usize = 12;
/// Numbers that the kernel gives for a strip: see `Found` there.
const FOUND: usize = 71;
/// Such blocks under way.
const SLOTS: usize = 8;

/// A strip that a GPU encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    changed: u64,
    lanes: usize,
    is_coded: bool,
    states: Vec<u8>,
    words: Vec<u8>,
    raw: Vec<u8>,
    patches: Vec<(u32, i64)>,
}

impl Encoded {
    /// As the codec takes it.
    pub fn code(&self) -> StripCode<'_> {
        StripCode {
            changed: self.changed,
            lanes: self.lanes,
            coded: self.is_coded.then_some((&self.states, &self.words)),
            raw: &self.raw,
            patches: &self.patches,
        }
    }
}

/// Encodes the strips of blocks on a GPU where one is used, for as many threads as like: to the bytes that the CPU makes.
///
/// Memory is that of a ring of blocks, beside a tensor's tables and factors. At [`crate::Choice::Auto`] a GPU that fails is left
/// for good, with one line in the log.
pub struct Encoding {
    compute: Arc<Compute>,
    ring: Option<EncodeRing>,
    done: AtomicU64,
}

impl Encoding {
    /// On a device that is open.
    ///
    /// # Errors
    /// Where the choice was [`crate::Choice::Cuda`], the device's failures.
    pub fn on(compute: &Arc<Compute>) -> Result<Self, GpuError> {
        let ring = compute.attempt(|device| EncodeRing::new(device, SLOTS))?;
        Ok(Self {
            compute: Arc::clone(compute),
            ring,
            done: AtomicU64::new(0),
        })
    }

    /// The strips of a block of a tensor, for [`TensorEncoder::encode_coded`]. `None` where there is no kernel for them or no GPU
    /// is used.
    ///
    /// # Errors
    /// Where the choice was [`crate::Choice::Cuda`], the device's failures.
    pub fn strips(
        &self,
        tensor: &ForEncoding,
        encoder: &TensorEncoder<'_>,
        block: usize,
        target: &[u8],
        base: &[u8],
    ) -> Result<Option<Vec<Encoded>>, GpuError> {
        let Some(ring) = &self.ring else {
            return Ok(None);
        };
        let done = self
            .compute
            .attempt(|_| ring.encode(tensor, encoder, block, target, base))?
            .flatten();
        if done.is_some() {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(done)
    }

    /// Blocks whose strips a GPU encoded.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// What encoding a tensor's blocks needs on a device, put there with the first of them.
#[derive(Debug, Default)]
pub struct ForEncoding(Held);

struct EncodeRing {
    lanes: Lanes,
    slots: Slots<Slot>,
    tables: TableCache,
}

struct Slot {
    own: Own,
    target: Up<u8>,
    base: Up<u8>,
    staged: Up<u8>,
    strips: Up<Strip>,
    predictions: CudaSlice<u8>,
    classes: CudaSlice<u8>,
    scratch: CudaSlice<u8>,
    found: Down<u32>,
    /// What strips came to, of any place of `scratch`.
    parts: PinnedHostSlice<u8>,
    /// Scales of rows, before they are copied to pinned memory.
    scales: Staged,
}

/// A block to encode.
struct Run<'r> {
    coding: Coding<'r>,
    strips: Vec<Range<usize>>,
    /// Where each strip's scratch memory begins.
    scratch: Vec<usize>,
    /// Bytes of the block in the tensor.
    bytes: Range<usize>,
}

impl EncodeRing {
    fn new(device: &Arc<Device>, slots: usize) -> Result<Self, GpuError> {
        Ok(Self {
            lanes: Lanes::new(device)?,
            slots: Slots::new(slots),
            tables: TableCache::default(),
        })
    }

    /// The strips of a block; `None` where there is no kernel for them.
    fn encode(
        &self,
        tensor: &ForEncoding,
        encoder: &TensorEncoder<'_>,
        block: usize,
        target: &[u8],
        base: &[u8],
    ) -> Result<Option<Vec<Encoded>>, GpuError> {
        let strips = encoder.coded_words(block);
        let (Some(coding), Some(first), Some(last)) =
            (encoder.coding(), strips.first(), strips.last())
        else {
            return Ok(None);
        };
        let width = coding.dtype.word_bytes();
        let bytes = first.start * width..last.end * width;
        let words = last.end - first.start;
        if words > BLOCK
            || strips.len() > STRIPS
            || words == 0
            || bytes.end > base.len().min(target.len())
        {
            return Ok(None);
        }
        let mut at = 0;
        let scratch = strips.iter().map(|strip| {
            let here = at;
            let padded = strip.len().next_multiple_of(32);
            at += (padded * (PARTS + width) + 8).next_multiple_of(64);
            here
        });
        let run = Run {
            scratch: scratch.collect(),
            coding,
            strips,
            bytes,
        };
        let needs = tensor.0.get(
            &self.lanes.device,
            &self.tables,
            Some(run.coding.tables),
            false,
            &run.coding.moved,
            None,
        )?;
        let mut lent = self.slots.lend(|| self.slot())?;
        let slot = lent
            .slot()
            .ok_or_else(|| GpuError::unsupported("a ring without slots"))?;
        let done = self.work(slot, &run, &needs, target, base);
        if done.is_err() {
            self.lanes.drain(&slot.own);
        }
        done
    }

    fn slot(&self) -> Result<Slot, GpuError> {
        let bytes = BLOCK * WIDEST;
        self.lanes.slot(|device, own| {
            Ok(Slot {
                own,
                target: Up::new(device, bytes)?,
                base: Up::new(device, bytes)?,
                // Scales: rows are rarely shorter than 64 words, and a block of more is left to the CPU.
                staged: Up::new(device, BLOCK / 8)?,
                strips: Up::new(device, STRIPS)?,
                predictions: device.alloc(bytes)?,
                classes: device.alloc(BLOCK)?,
                scratch: device.alloc((BLOCK + 32 * STRIPS) * (PARTS + WIDEST) + 72 * STRIPS)?,
                found: Down::new(device, STRIPS * FOUND)?,
                parts: device.pinned(2 * bytes, true)?,
                scales: Staged::default(),
            })
        })
    }

    fn wait(&self, slot: &Slot) -> Result<(), GpuError> {
        self.lanes.end(&slot.own)?;
        self.lanes.wait(&slot.own)
    }

    fn work(
        &self,
        slot: &mut Slot,
        run: &Run<'_>,
        needs: &Needs,
        target: &[u8],
        base: &[u8],
    ) -> Result<Option<Vec<Encoded>>, GpuError> {
        let strips = slot.stage(run)?;
        let (target, base) = (target.get(run.bytes.clone()), base.get(run.bytes.clone()));
        let (Some(target), Some(base), true) =
            (target, base, slot.scales.bytes.len() <= slot.staged.len())
        else {
            return Ok(None);
        };
        let up = &self.lanes.up;
        slot.target.send(up, target)?;
        slot.base.send(up, base)?;
        slot.staged.send(up, &slot.scales.bytes)?;
        slot.strips.send(up, &strips)?;
        self.launch(slot, run, needs)?;
        let count = run.strips.len();
        slot.found.fetch(&self.lanes.down, 0..count * FOUND)?;
        self.wait(slot)?;
        let found = slot.found.get()?.chunks_exact(FOUND);
        let found: Vec<Found> = found.take(count).map(Found::new).collect();
        self.gather(slot, run, &found)
    }

    /// Queues kernels.
    fn launch(&self, slot: &mut Slot, run: &Run<'_>, needs: &Needs) -> Result<(), GpuError> {
        let dtype = run.coding.dtype;
        let width = dtype.word_bytes();
        let bytes = run.bytes.len();
        let count = run.strips.len();
        let compute = Arc::clone(&slot.own.compute);
        needs.moved.apply(
            &self.lanes.device,
            &compute,
            dtype,
            &slot.base.on_device,
            &mut slot.predictions,
            &mut slot.classes,
            run.bytes.start / width,
            bytes / width,
        )?;
        compute
            .memset_zeros(&mut slot.found.on_device.slice_mut(..count * FOUND))
            .during("encoding")?;
        for (words, scratch) in run.strips.iter().zip(&run.scratch) {
            // Raw bits are put there one by one.
            let padded = words.len().next_multiple_of(32);
            let raw = scratch + padded * PARTS..scratch + padded * (PARTS + width) + 8;
            compute
                .memset_zeros(&mut slot.scratch.slice_mut(raw))
                .during("encoding")?;
        }
        // The kernel reaches these by the addresses in its strips: they are waited for before it is queued, and marked after.
        let _uses = (
            slot.target.on_device.device_ptr(&compute),
            slot.base.on_device.device_ptr(&compute),
            slot.staged.on_device.device_ptr(&compute),
            slot.predictions.device_ptr(&compute),
            slot.classes.device_ptr(&compute),
            slot.scratch.device_ptr_mut(&compute),
        );
        let Some(tables) = &needs.tables else {
            return Err(GpuError::unsupported("strips without tables"));
        };
        launch(
            &self.lanes.device,
            &compute,
            dtype,
            tables,
            &slot.strips.on_device,
            &mut slot.found.on_device,
            count,
        )
    }

    /// Copies what strips came to back; `None` where that is more than a block's words.
    fn gather(
        &self,
        slot: &mut Slot,
        run: &Run<'_>,
        found: &[Found],
    ) -> Result<Option<Vec<Encoded>>, GpuError> {
        let down = slot.parts.as_mut_slice().during("emptying the ring")?;
        let mut at = 0;
        let mut parts = Vec::with_capacity(found.len());
        for ((found, words), scratch) in found.iter().zip(&run.strips).zip(&run.scratch) {
            let padded = words.len().next_multiple_of(32);
            let mut take = |from: usize, bytes: usize| -> Result<Option<Range<usize>>, GpuError> {
                let to = at..at + bytes;
                let Some(place) = down.get_mut(to.clone()) else {
                    return Ok(None);
                };
                if bytes > 0 {
                    let from = scratch + from..scratch + from + bytes;
                    let Some(from) = slot.scratch.try_slice(from) else {
                        return Ok(None);
                    };
                    self.lanes
                        .down
                        .memcpy_dtoh(&from, place)
                        .during("copying from the device")?;
                }
                at += bytes.next_multiple_of(8);
                Ok(Some(to))
            };
            let coded = take(2 * padded + 2 * found.first, 2 * found.words)?;
            let places = take(4 * padded, 4 * found.patches)?;
            let distances = take(8 * padded, 4 * found.patches)?;
            let raw = take(PARTS * padded, found.raw_bits.div_ceil(8))?;
            match (coded, places, distances, raw) {
                (Some(coded), Some(places), Some(distances), Some(raw)) => {
                    parts.push([coded, places, distances, raw]);
                }
                _ => {
                    // Nothing of it may be under way when the slot is used again.
                    self.wait(slot)?;
                    return Ok(None);
                }
            }
        }
        self.wait(slot)?;
        let down = slot.parts.as_slice().during("emptying the ring")?;
        let part = |range: &Range<usize>| down.get(range.clone()).unwrap_or_default();
        let numbers = |bytes: &'_ [u8]| -> Vec<u32> {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|word| u32::from_le_bytes(*word)).collect()
        };
        let strips = found.iter().zip(&parts).map(|(found, parts)| {
            let [coded, places, distances, raw] = parts;
            let places = numbers(part(places)).into_iter();
            let distances = numbers(part(distances));
            let distances = distances.into_iter().map(|d| i64::from(d.cast_signed()));
            Encoded {
                changed: found.changed,
                lanes: found.lanes,
                is_coded: found.is_coded,
                states: found.states.clone(),
                words: part(coded).to_vec(),
                raw: part(raw).to_vec(),
                patches: places.zip(distances).collect(),
            }
        });
        Ok(Some(strips.collect()))
    }
}

impl Slot {
    /// A block's strips, by the addresses of the slot's buffers, and the scales of their rows.
    fn stage(&mut self, run: &Run<'_>) -> Result<Vec<Strip>, GpuError> {
        let coding = &run.coding;
        let width = coding.dtype.word_bytes();
        let compute = &self.own.compute;
        let target_at = self.target.on_device.device_ptr(compute).0;
        let prediction_at = if matches!(coding.moved, Moved::No) {
            self.base.on_device.device_ptr(compute).0
        } else {
            self.predictions.device_ptr(compute).0
        };
        let has_classes = matches!(coding.moved, Moved::LowRank(_));
        let classes_at = self.classes.device_ptr(compute).0;
        let staged_at = self.staged.on_device.device_ptr(compute).0;
        let scratch_at = self.scratch.device_ptr_mut(compute).0;
        self.scales.clear();
        let strip = |(words, scratch): (&Range<usize>, &usize)| {
            let strip = self.scales.strip(coding, words)?;
            let at = (words.start * width - run.bytes.start) as u64;
            Ok(Strip {
                prediction: prediction_at + at,
                classes: if has_classes {
                    classes_at + at / width as u64
                } else {
                    0
                },
                words: target_at + at,
                scales: staged_at + strip.scales,
                coded: scratch_at + *scratch as u64,
                ..strip
            })
        };
        run.strips.iter().zip(&run.scratch).map(strip).collect()
    }
}

/// What the kernel says of a strip.
struct Found {
    changed: u64,
    lanes: usize,
    is_coded: bool,
    first: usize,
    words: usize,
    raw_bits: usize,
    patches: usize,
    /// Those of the lanes, where a token is coded.
    states: Vec<u8>,
}

impl Found {
    fn new(numbers: &[u32]) -> Self {
        let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
        let lanes = 1usize << number(1).min(6);
        let states = numbers.get(7..7 + lanes).unwrap_or_default();
        Self {
            changed: u64::from(number(0)),
            lanes,
            is_coded: number(2) != 0,
            first: number(3) as usize,
            words: number(4) as usize,
            raw_bits: number(5) as usize,
            patches: number(6) as usize,
            states: states.iter().flat_map(|s| s.to_le_bytes()).collect(),
        }
    }
}

/// Queues the encoding of strips.
fn launch(
    device: &Device,
    stream: &CudaStream,
    dtype: DType,
    tables: &DeviceTables,
    strips: &CudaSlice<Strip>,
    found: &mut CudaSlice<u32>,
    count: usize,
) -> Result<(), GpuError> {
    let name = dtype_name(dtype)
        .ok_or_else(|| GpuError::unsupported("strips on a GPU are of BF16, F16 and F32"))?;
    let count = u32::try_from(count)
        .ok()
        .filter(|n| *n as usize <= strips.len() && *n as usize * FOUND <= found.len())
        .ok_or_else(|| GpuError::unsupported("too many strips for one launch on a GPU"))?;
    let function = device.function(Module::Encode, &format!("encode_{name}"))?;
    let config = tables.config(&function, count)?;
    let mut launch = stream.launch_builder(&function);
    launch
        .arg(strips)
        .arg(&count)
        .arg(&tables.intervals)
        .arg(&tables.map)
        .arg(&tables.map_words)
        .arg(&tables.tables)
        .arg(&tables.precision)
        .arg(&tables.first)
        .arg(&tables.fits)
        .arg(found);
    // SAFETY: the kernel's parameters in their order; strips point to buffers of the sizes they name, which the caller keeps.
    unsafe { launch.launch(config) }.during("encoding")?;
    Ok(())
}
