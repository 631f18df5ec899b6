//! Coded blocks of tensors of any size, decoded through a ring: each slot has pinned memory and buffers on the device for one run
//! of blocks. Copies to the device go in one stream, copies from it in another, and kernels in a stream of the slot's, so that
//! those of several slots overlap. Memory is the ring's, beside a tensor's tables and factors.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr as _, DevicePtrMut as _, PinnedHostSlice, sys,
};
use sparse_codec::{BlockForm, Coding, DType, Moved, TensorDecoder};

use crate::error::During;
use crate::kernels::dtype_name;
use crate::needs::{Held, Needs};
use crate::slots::Slots;
use crate::strips::{Staged, Strip, TableCache};
use crate::{Device, GpuError, decode};

/// Words of the shortest strip but a tensor's last.
const LEAST_STRIP: usize = 1 << 14;

/// What decoding a tensor's blocks needs on a device, put there with the first of them.
#[derive(Debug, Default)]
pub struct OnDevice(Held);

/// The ring.
pub(crate) struct BlockRing {
    device: Arc<Device>,
    chunk: usize,
    slots: Slots<Slot>,
    tables: TableCache,
    up: Arc<CudaStream>,
    down: Arc<CudaStream>,
}

struct Slot {
    up: PinnedHostSlice<u8>,
    up_staged: PinnedHostSlice<u8>,
    up_strips: PinnedHostSlice<Strip>,
    down: PinnedHostSlice<u8>,
    down_status: PinnedHostSlice<u32>,
    base: CudaSlice<u8>,
    predictions: CudaSlice<u8>,
    classes: CudaSlice<u8>,
    staged: CudaSlice<u8>,
    strips: CudaSlice<Strip>,
    status: CudaSlice<u32>,
    out: CudaSlice<u8>,
    compute: Arc<CudaStream>,
    /// Recorded when everything of a run is on the host.
    done: CudaEvent,
    /// Parts of strips, before they are copied to pinned memory.
    parts: Staged,
}

/// A run of blocks, taken apart.
struct Run<'r> {
    dtype: DType,
    moved: Moved<'r>,
    coding: Option<Coding<'r>>,
    /// Bytes of the tensor from its first block that the device does to its last.
    span: Range<usize>,
    /// Those blocks: where they are in the run and in the tensor, and their form.
    blocks: Vec<(usize, Range<usize>, BlockForm<'r>)>,
}

impl BlockRing {
    /// A ring of slots that hold `chunk` bytes of a tensor each.
    pub(crate) fn new(device: &Arc<Device>, chunk: usize, slots: usize) -> Result<Self, GpuError> {
        Ok(Self {
            device: Arc::clone(device),
            chunk,
            slots: Slots::new(slots),
            tables: TableCache::default(),
            up: device.new_stream()?,
            down: device.new_stream()?,
        })
    }

    /// Bytes of a run of blocks.
    pub(crate) fn chunk(&self) -> usize {
        self.chunk
    }

    /// Whether there may be blocks of a tensor for the device.
    pub(crate) fn takes(decoder: &TensorDecoder) -> bool {
        decoder.dtype().and_then(dtype_name).is_some() && decoder.moved().is_some()
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
        let tables = run.coding.as_ref().map(|coding| coding.tables);
        let needs = on_device
            .0
            .get(&self.device, &self.tables, tables, true, &run.moved)?;
        let mut lent = self.slots.lend(|| self.slot())?;
        let slot = lent
            .slot()
            .ok_or_else(|| GpuError::unsupported("a ring without slots"))?;
        let Some(strips) = self.stage(slot, &run, base)? else {
            // More of strips than an encoder makes of so many words.
            return Ok((0..blocks.len()).collect());
        };
        if let Err(error) = self.work(slot, &run, &needs, strips.len()) {
            // No copy may be under way when the buffers are used again: slices of pinned memory carry no event.
            drain(&[&self.up, &slot.compute, &self.down]);
            return Err(error);
        }
        let start = decoder.target_range(first).start;
        let words = slot.down.as_slice().during("emptying the ring")?;
        for (_, range, _) in &run.blocks {
            let to = out.get_mut(range.start - start..range.end - start);
            let from = words.get(range.start - run.span.start..range.end - run.span.start);
            match (to, from) {
                (Some(to), Some(from)) => to.copy_from_slice(from),
                _ => return Err(GpuError::unsupported("a block lies outside of its place")),
            }
        }
        let status = slot.down_status.as_slice().during("emptying the ring")?;
        for (number, status) in strips.iter().zip(status) {
            if *status != 0 && left.last() != Some(number) {
                left.push(*number);
            }
        }
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
        let mut run = Run {
            dtype: decoder.dtype().filter(|d| dtype_name(*d).is_some())?,
            moved: decoder.moved()?,
            coding: decoder.coding(),
            span: 0..0,
            blocks: Vec::with_capacity(blocks.len()),
        };
        for (number, payload) in blocks.iter().enumerate() {
            let range = decoder.target_range(first + number);
            let start = run.blocks.first().map_or(range.start, |_| run.span.start);
            let fits = range.end <= base.len() && range.end - start <= self.chunk;
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
        let (device, chunk) = (&self.device, self.chunk);
        // What is coded is hardly ever longer than the words, and else left to the CPU.
        let strips = chunk / (2 * LEAST_STRIP) + 2;
        let slot = Slot {
            up: device.pinned(chunk, false)?,
            up_staged: device.pinned(chunk, false)?,
            up_strips: device.pinned(strips, false)?,
            down: device.pinned(chunk, true)?,
            down_status: device.pinned(strips, true)?,
            base: device.alloc(chunk)?,
            predictions: device.alloc(chunk)?,
            classes: device.alloc(chunk / 2)?,
            staged: device.alloc(chunk)?,
            strips: device.alloc(strips)?,
            status: device.alloc(strips)?,
            out: device.alloc(chunk)?,
            compute: device.new_stream()?,
            // Many threads wait, and shall not spin.
            done: device
                .context()
                .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
                .during("preparing the ring")?,
            parts: Staged::default(),
        };
        // Memory is allocated in the order of the device's own stream, and other streams use it.
        device.settle()?;
        Ok(slot)
    }

    /// Puts a run into a slot's pinned memory. Gives the block of every strip; `None` where the slot does not hold them.
    fn stage(
        &self,
        slot: &mut Slot,
        run: &Run<'_>,
        base: &[u8],
    ) -> Result<Option<Vec<usize>>, GpuError> {
        let width = run.dtype.word_bytes();
        let addresses = slot.addresses(&run.moved);
        let (mut strips, mut numbers) = (Vec::new(), Vec::new());
        slot.parts.clear();
        for (number, _, form) in &run.blocks {
            let (BlockForm::Strips(forms), Some(coding)) = (form, &run.coding) else {
                continue;
            };
            for form in forms {
                let strip = slot.parts.coded(coding, form)?;
                let at = (form.words.start * width - run.span.start) as u64;
                strips.push(Strip {
                    prediction: addresses.prediction + at,
                    classes: addresses.classes.map_or(0, |to| to + at / width as u64),
                    words: addresses.words + at,
                    ..strip
                });
                numbers.push(*number);
            }
        }
        let words = base.get(run.span.clone()).unwrap_or_default();
        let strips = Staged::addresses(&strips, addresses.staged);
        if slot.parts.bytes.len() > slot.up_staged.len() || strips.len() > slot.up_strips.len() {
            return Ok(None);
        }
        fill(&mut slot.up, words)?;
        fill(&mut slot.up_staged, &slot.parts.bytes)?;
        fill(&mut slot.up_strips, &strips)?;
        Ok(Some(numbers))
    }

    /// Does what is staged.
    fn work(
        &self,
        slot: &mut Slot,
        run: &Run<'_>,
        needs: &Needs,
        strips: usize,
    ) -> Result<(), GpuError> {
        self.launch(slot, run, needs, strips)?;
        slot.done.synchronize().during("waiting for a chunk")?;
        self.device
            .context()
            .check_err()
            .during("waiting for a chunk")
    }

    /// Queues a run's copies and kernels.
    fn launch(
        &self,
        slot: &mut Slot,
        run: &Run<'_>,
        needs: &Needs,
        strips: usize,
    ) -> Result<(), GpuError> {
        let width = run.dtype.word_bytes();
        let bytes = run.span.len();
        let compute = Arc::clone(&slot.compute);
        // What the streams do with a device buffer is ordered by cudarc's events; the host's buffers are free again when
        // `done` is reached.
        send(&self.up, &slot.up, &mut slot.base, bytes)?;
        send(
            &self.up,
            &slot.up_staged,
            &mut slot.staged,
            slot.parts.bytes.len(),
        )?;
        send(&self.up, &slot.up_strips, &mut slot.strips, strips)?;
        needs.moved.apply(
            &self.device,
            &compute,
            run.dtype,
            &slot.base,
            &mut slot.predictions,
            &mut slot.classes,
            run.span.start / width,
            bytes / width,
        )?;
        if let (Some(tables), true) = (&needs.tables, strips > 0) {
            // The kernel reaches these by the addresses in its strips: they are waited for before it is queued, and marked after.
            let _uses = (
                slot.base.device_ptr(&compute),
                slot.staged.device_ptr(&compute),
                slot.predictions.device_ptr(&compute),
                slot.classes.device_ptr(&compute),
                slot.out.device_ptr_mut(&compute),
            );
            decode::launch(
                &self.device,
                &compute,
                run.dtype,
                tables,
                &slot.strips,
                &mut slot.status,
                strips,
            )?;
        }
        let down = slot.down.as_mut_slice().during("emptying the ring")?;
        for (_, range, form) in &run.blocks {
            let at = range.start - run.span.start..range.end - run.span.start;
            if matches!(form, BlockForm::Same) {
                compute
                    .memcpy_dtod(
                        &slot.predictions.slice(at.clone()),
                        &mut slot.out.slice_mut(at.clone()),
                    )
                    .during("copying on the device")?;
            }
            self.down
                .memcpy_dtoh(&slot.out.slice(at.clone()), &mut down[at])
                .during("copying from the device")?;
        }
        if strips > 0 {
            let status = slot
                .down_status
                .as_mut_slice()
                .during("emptying the ring")?;
            self.down
                .memcpy_dtoh(&slot.status.slice(..strips), &mut status[..strips])
                .during("copying from the device")?;
        }
        slot.done.record(&self.down).during("queueing a chunk")
    }
}

impl Run<'_> {
    /// Whether the device does a block. What is the base's word for word, or stored as it is, is a copy on the host.
    fn takes(&self, form: &BlockForm<'_>) -> bool {
        match form {
            BlockForm::Strips(_) => self.coding.is_some(),
            BlockForm::Same => !matches!(self.moved, Moved::No),
            _ => false,
        }
    }
}

/// Where a slot's buffers are on the device.
struct Addresses {
    prediction: u64,
    classes: Option<u64>,
    words: u64,
    staged: u64,
}

impl Slot {
    fn addresses(&mut self, moved: &Moved<'_>) -> Addresses {
        let stream = &self.compute;
        let prediction = match moved {
            Moved::No => self.base.device_ptr(stream).0,
            _ => self.predictions.device_ptr(stream).0,
        };
        let classes = matches!(moved, Moved::LowRank(_));
        Addresses {
            prediction,
            classes: classes.then(|| self.classes.device_ptr(stream).0),
            words: self.out.device_ptr_mut(stream).0,
            staged: self.staged.device_ptr(stream).0,
        }
    }
}

/// Waits for streams after an error.
pub(crate) fn drain(streams: &[&Arc<CudaStream>]) {
    for stream in streams {
        if let Err(error) = stream.synchronize() {
            tracing::debug!("leaving a GPU's ring: {error}");
        }
    }
}

/// Copies into pinned memory.
pub(crate) fn fill<T: Copy + cudarc::driver::ValidAsZeroBits>(
    to: &mut PinnedHostSlice<T>,
    from: &[T],
) -> Result<(), GpuError> {
    let to = to.as_mut_slice().during("filling the ring")?;
    match to.get_mut(..from.len()) {
        Some(to) => to.copy_from_slice(from),
        None => return Err(GpuError::unsupported("a run is larger than the ring")),
    }
    Ok(())
}

/// Queues the copy of the first `count` to the device.
pub(crate) fn send<T: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    from: &PinnedHostSlice<T>,
    to: &mut CudaSlice<T>,
    count: usize,
) -> Result<(), GpuError> {
    if count == 0 {
        return Ok(());
    }
    let from = from.as_slice().during("filling the ring")?;
    stream
        .memcpy_htod(&from[..count], to)
        .during("copying to the device")
}
