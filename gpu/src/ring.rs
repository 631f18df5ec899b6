//! Coded blocks of tensors of any size, decoded through a ring: each slot has pinned memory and buffers on the device for one run
//! of blocks. Copies to the device go in one stream, copies from it in another, and kernels in a stream of the slot's, so that
//! those of several slots overlap. Memory is the ring's, beside a tensor's tables and factors.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr as _, DevicePtrMut as _};
use sparse_codec::{BlockForm, Coding, DType, Moved, Scratch, TensorDecoder};

use crate::error::During;
use crate::int8::{Segments, launch_apply};
use crate::kernels::dtype_name;
use crate::lane::{Down, Lanes, Own, Up};
use crate::needs::{Held, Needs};
use crate::slots::Slots;
use crate::strips::{Staged, Strip, TableCache};
use crate::{Device, GpuError, cast, decode};

/// Words of the shortest strip but a tensor's last.
const LEAST_STRIP: usize = 1 << 14;
/// Where codes of INT8 begin in what is staged: they are read by vectors.
const ALIGNED: usize = 16;

/// What decoding a tensor's blocks needs on a device, put there with the first of them.
#[derive(Debug, Default)]
pub struct OnDevice(Held);

/// The ring.
pub(crate) struct BlockRing {
    lanes: Lanes,
    chunk: usize,
    slots: Slots<Slot>,
    tables: TableCache,
}

struct Slot {
    own: Own,
    /// The base's words, of its own dtype.
    base: Up<u8>,
    staged: Up<u8>,
    strips: Up<Strip>,
    /// The base's words in the tensor's dtype, where that is another; there since the first such run.
    cast: Option<CudaSlice<u8>>,
    predictions: CudaSlice<u8>,
    classes: CudaSlice<u8>,
    out: Down<u8>,
    status: Down<u32>,
    /// Parts of strips and codes of INT8, before they are copied to pinned memory.
    parts: Staged,
    scratch: Scratch,
}

/// A run of blocks, taken apart.
struct Run<'r> {
    decoder: &'r TensorDecoder,
    /// The first of the blocks that were given.
    first: usize,
    dtype: DType,
    base: DType,
    moved: Moved<'r>,
    coding: Option<Coding<'r>>,
    /// Bytes of the tensor from its first block that the device does to its last.
    span: Range<usize>,
    /// Those blocks: where they are in the run and in the tensor, and their form.
    blocks: Vec<(usize, Range<usize>, BlockForm<'r>)>,
}

/// What a run comes to in a slot's pinned memory.
struct Staging {
    strips: Vec<Strip>,
    /// The block of each strip.
    numbers: Vec<usize>,
    /// Where each block's codes of INT8 are in what is staged; `None` of other blocks, and of codes that are not sound.
    codes: Vec<Option<Range<usize>>>,
}

impl BlockRing {
    /// A ring of slots that hold `chunk` bytes of a tensor each.
    pub(crate) fn new(device: &Arc<Device>, chunk: usize, slots: usize) -> Result<Self, GpuError> {
        Ok(Self {
            lanes: Lanes::new(device)?,
            chunk,
            slots: Slots::new(slots),
            tables: TableCache::default(),
        })
    }

    /// Bytes of a run of blocks of a tensor; `None` where there are none for the device.
    pub(crate) fn chunk(&self, decoder: &TensorDecoder) -> Option<usize> {
        let (dtype, base) = (decoder.dtype()?, decoder.base_dtype()?);
        dtype_name(dtype).and(dtype_name(base))?;
        // The base's words are to fit as well.
        let (width, of_base) = (dtype.word_bytes(), base.word_bytes());
        Some(self.chunk / of_base.max(width) * width)
    }

    /// Decodes consecutive blocks of a tensor into `out`, which begins with the first of them. Gives those that are left to the
    /// CPU, by their places in `blocks`: what has no kernel, and what the kernel refuses. Their bytes of `out` say nothing.
    ///
    /// # Errors
    /// Failures of the device; `out` says nothing then.
    pub(crate) fn decode(
        &self,
        on_device: &OnDevice,
        decoder: &TensorDecoder,
        first: usize,
        blocks: &[&[u8]],
        base: &[u8],
        out: &mut [u8],
    ) -> Result<Vec<usize>, GpuError> {
        let mut left = Vec::new();
        let Some(run) = self.take_apart(decoder, first, blocks, base, &mut left) else {
            return Ok((0..blocks.len()).collect());
        };
        let needs = on_device.0.get(
            &self.lanes.device,
            &self.tables,
            run.coding.as_ref().map(|coding| coding.tables),
            true,
            &run.moved,
            decoder.int8_coding().map(|int8| int8.scales),
        )?;
        let mut lent = self.slots.lend(|| self.slot())?;
        let slot = lent
            .slot()
            .ok_or_else(|| GpuError::unsupported("a ring without slots"))?;
        let Some(staging) = slot.stage(&run)? else {
            // More of strips than an encoder makes of so many words.
            return Ok((0..blocks.len()).collect());
        };
        let done = self
            .launch(slot, &run, &needs, base, &staging)
            .and_then(|()| self.lanes.wait(&slot.own));
        if let Err(error) = done {
            self.lanes.drain(&slot.own);
            return Err(error);
        }
        let start = decoder.target_range(first).start;
        let words = slot.out.get()?;
        for (_, range, _) in &run.blocks {
            let to = out.get_mut(range.start - start..range.end - start);
            let from = words.get(range.start - run.span.start..range.end - run.span.start);
            match (to, from) {
                (Some(to), Some(from)) => to.copy_from_slice(from),
                _ => return Err(GpuError::unsupported("a block lies outside of its place")),
            }
        }
        let refused = staging.numbers.iter().zip(slot.status.get()?);
        left.extend(refused.filter(|(_, status)| **status != 0).map(|(n, _)| *n));
        let unsound = run.blocks.iter().zip(&staging.codes);
        left.extend(unsound.filter_map(|((number, _, form), codes)| {
            (matches!(form, BlockForm::Int8(_)) && codes.is_none()).then_some(*number)
        }));
        left.sort_unstable();
        left.dedup();
        Ok(left)
    }

    /// What the device does of some blocks; `None` where it is nothing. `left` gets the others.
    fn take_apart<'r>(
        &self,
        decoder: &'r TensorDecoder,
        first: usize,
        blocks: &[&'r [u8]],
        base: &[u8],
        left: &mut Vec<usize>,
    ) -> Option<Run<'r>> {
        let chunk = self.chunk(decoder)?;
        let mut run = Run {
            decoder,
            first,
            dtype: decoder.dtype()?,
            base: decoder.base_dtype()?,
            moved: decoder.moved()?,
            coding: decoder.coding(),
            span: 0..0,
            blocks: Vec::with_capacity(blocks.len()),
        };
        for (number, payload) in blocks.iter().enumerate() {
            let range = decoder.target_range(first + number);
            let start = run.blocks.first().map_or(range.start, |_| run.span.start);
            let fits = run.of_base(&range).end <= base.len() && range.end - start <= chunk;
            match decoder.block_form(first + number, payload) {
                Ok(form) if fits && run.takes(&form) => {
                    run.span = start..range.end;
                    run.blocks.push((number, range, form));
                }
                _ => left.push(number),
            }
        }
        (!run.blocks.is_empty()).then_some(run)
    }

    fn slot(&self) -> Result<Slot, GpuError> {
        let chunk = self.chunk;
        // What is coded is hardly ever longer than the words, and else left to the CPU.
        let strips = chunk / (2 * LEAST_STRIP) + 2;
        self.lanes.slot(|device, own| {
            Ok(Slot {
                own,
                base: Up::new(device, chunk)?,
                staged: Up::new(device, chunk)?,
                strips: Up::new(device, strips)?,
                cast: None,
                predictions: device.alloc(chunk)?,
                classes: device.alloc(chunk / 2)?,
                out: Down::new(device, chunk)?,
                status: Down::new(device, strips)?,
                parts: Staged::default(),
                scratch: Scratch::default(),
            })
        })
    }

    /// Queues a run's copies and kernels.
    fn launch(
        &self,
        slot: &mut Slot,
        run: &Run<'_>,
        needs: &Needs,
        base: &[u8],
        staging: &Staging,
    ) -> Result<(), GpuError> {
        let Lanes { device, up, down } = &self.lanes;
        let width = run.dtype.word_bytes();
        let words = run.span.len() / width;
        let compute = Arc::clone(&slot.own.compute);
        // What the streams do with a device buffer is ordered by cudarc's events; the host's buffers are free again when
        // the run's end is reached.
        let base = base.get(run.of_base(&run.span)).unwrap_or_default();
        slot.base.send(up, base)?;
        slot.staged.send(up, &slot.parts.bytes)?;
        let casts = run.base != run.dtype;
        if casts && slot.cast.is_none() {
            // SAFETY: bytes of any bits, which are written before they are read, in the stream that uses them.
            let cast = unsafe { compute.alloc(self.chunk.max(1)) };
            slot.cast = Some(cast.during("allocating")?);
        }
        if let (Some(cast), true) = (&mut slot.cast, casts) {
            cast::launch(
                device,
                &compute,
                (run.base, &slot.base.on_device),
                (run.dtype, cast),
                words,
            )?;
        }
        let addresses = slot.addresses(run);
        slot.strips.send(
            up,
            &addresses.placed(&staging.strips, width, run.span.start),
        )?;
        // In the tensor's dtype.
        let base = match &slot.cast {
            Some(cast) if casts => cast,
            _ => &slot.base.on_device,
        };
        needs.moved.apply(
            device,
            &compute,
            run.dtype,
            base,
            &mut slot.predictions,
            &mut slot.classes,
            run.span.start / width,
            words,
        )?;
        let strips = staging.strips.len();
        if let (Some(tables), true) = (&needs.tables, strips > 0) {
            // The kernel reaches these by the addresses in its strips: they are waited for before it is queued, and marked after.
            let _uses = (
                base.device_ptr(&compute),
                slot.staged.on_device.device_ptr(&compute),
                slot.predictions.device_ptr(&compute),
                slot.classes.device_ptr(&compute),
                slot.out.on_device.device_ptr_mut(&compute),
            );
            decode::launch(
                device,
                &compute,
                run.dtype,
                tables,
                &slot.strips.on_device,
                &mut slot.status.on_device,
                strips,
            )?;
        }
        for ((_, range, form), codes) in run.blocks.iter().zip(&staging.codes) {
            let at = range.start - run.span.start..range.end - run.span.start;
            match (form, codes) {
                (BlockForm::Same, _) => {
                    let same = if needs.moved.is_no() {
                        base
                    } else {
                        &slot.predictions
                    };
                    compute
                        .memcpy_dtod(
                            &same.slice(at.clone()),
                            &mut slot.out.on_device.slice_mut(at.clone()),
                        )
                        .during("copying on the device")?;
                }
                (BlockForm::Int8(_), Some(codes)) => {
                    let (Some(int8), Some(scales)) = (run.decoder.int8_coding(), &needs.scales)
                    else {
                        return Err(GpuError::unsupported("INT8 without scales"));
                    };
                    launch_apply(
                        device,
                        &compute,
                        run.dtype,
                        Some(&base.slice(at.clone())),
                        &slot.staged.on_device.slice(codes.clone()),
                        scales,
                        Segments::groups(int8.row as u64, int8.group as u64),
                        (range.start / width) as u64..(range.end / width) as u64,
                        &mut slot.out.on_device.slice_mut(at.clone()),
                    )?;
                }
                // It is the CPU's.
                (BlockForm::Int8(_), None) => continue,
                _ => {}
            }
            slot.out.fetch(down, at)?;
        }
        slot.status.fetch(down, 0..strips)?;
        self.lanes.end(&slot.own)
    }
}

impl Run<'_> {
    /// Whether the device does a block. What is the base's word for word, or stored as it is, is a copy on the host.
    fn takes(&self, form: &BlockForm<'_>) -> bool {
        match form {
            BlockForm::Strips(_) => self.coding.is_some(),
            BlockForm::Same => !matches!(self.moved, Moved::No) || self.base != self.dtype,
            BlockForm::Int8(_) => true,
            _ => false,
        }
    }

    /// Where the base has the words of some bytes.
    fn of_base(&self, bytes: &Range<usize>) -> Range<usize> {
        let (width, of_base) = (self.dtype.word_bytes(), self.base.word_bytes());
        bytes.start / width * of_base..bytes.end / width * of_base
    }
}

/// Where a slot's buffers are on the device.
struct Addresses {
    prediction: u64,
    classes: Option<u64>,
    words: u64,
    staged: u64,
}

impl Addresses {
    /// Strips of which words, predictions and classes are still places in the tensor, in bytes of it.
    fn placed(&self, strips: &[Strip], width: usize, start: usize) -> Vec<Strip> {
        let placed: Vec<Strip> = strips
            .iter()
            .map(|strip| {
                let at = strip.words - start as u64;
                Strip {
                    prediction: self.prediction + at,
                    classes: self.classes.map_or(0, |to| to + at / width as u64),
                    words: self.words + at,
                    ..*strip
                }
            })
            .collect();
        Staged::addresses(&placed, self.staged)
    }
}

impl Slot {
    fn addresses(&mut self, run: &Run<'_>) -> Addresses {
        let stream = &self.own.compute;
        let prediction = match (&run.moved, &self.cast) {
            (Moved::No, Some(cast)) if run.base != run.dtype => cast.device_ptr(stream).0,
            (Moved::No, _) => self.base.on_device.device_ptr(stream).0,
            _ => self.predictions.device_ptr(stream).0,
        };
        let classes = matches!(run.moved, Moved::LowRank(_));
        Addresses {
            prediction,
            classes: classes.then(|| self.classes.device_ptr(stream).0),
            words: self.out.on_device.device_ptr_mut(stream).0,
            staged: self.staged.on_device.device_ptr(stream).0,
        }
    }

    /// Takes a run's strips and codes apart; `None` where the slot does not hold them.
    fn stage(&mut self, run: &Run<'_>) -> Result<Option<Staging>, GpuError> {
        let width = run.dtype.word_bytes();
        let mut staging = Staging {
            strips: Vec::new(),
            numbers: Vec::new(),
            codes: Vec::with_capacity(run.blocks.len()),
        };
        self.parts.clear();
        for (number, _, form) in &run.blocks {
            let mut codes = None;
            match (form, &run.coding) {
                (BlockForm::Strips(forms), Some(coding)) => {
                    for form in forms {
                        let strip = self.parts.coded(coding, form)?;
                        staging.strips.push(Strip {
                            words: (form.words.start * width) as u64,
                            ..strip
                        });
                        staging.numbers.push(*number);
                    }
                }
                (BlockForm::Int8(data), _) => {
                    let block = run.first + number;
                    let found = run.decoder.int8_codes(block, data, &mut self.scratch);
                    // What is not sound is the CPU's, to say what is wrong.
                    codes = found.ok().map(|codes| {
                        let at = self.parts.put_aligned(&codes, ALIGNED);
                        at..at + codes.len()
                    });
                }
                _ => {}
            }
            staging.codes.push(codes);
        }
        let fits = self.parts.bytes.len() <= self.staged.len()
            && staging.strips.len() <= self.strips.len();
        Ok(fits.then_some(staging))
    }
}
