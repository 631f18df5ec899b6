//! Work on more bytes than the device is given memory for: a ring of pinned buffers, copies in, kernels and copies out on three
//! streams, so that they overlap. Memory is the ring's, whatever the size of the tensor.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice};
use sparse_codec::Matrices;

use crate::error::During;
use crate::lane::drain;
use crate::{Choice, Device, DeviceMatrices, GpuError};

/// The ring's measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Elements of a chunk.
    pub chunk: usize,
    /// Chunks under way.
    pub slots: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            chunk: 1 << 22,
            slots: 3,
        }
    }
}

/// Where the work was done.
#[derive(Debug, Default)]
pub struct Ran {
    /// Elements computed on a GPU.
    pub device: u64,
    /// Elements computed on the CPU.
    pub cpu: u64,
    /// Why the CPU took over, where it did.
    pub error: Option<GpuError>,
}

/// Predicts all of a matrix by the base plus a low-rank update, chunk by chunk.
///
/// `read` gives the base's words from a place in bytes on; `write` takes predictions and classes, in order, each chunk once.
/// At [`Choice::Auto`] a device that fails is left: the chunks that were not yet written are computed on the CPU, and
/// [`Ran::error`] says why. What is written is the same bytes either way.
///
/// # Errors
/// What `read` and `write` return; at [`Choice::Cuda`], no GPU and failures of the device. What was written by then is whole
/// chunks, and for the caller to throw away.
pub fn predict_streamed<E: From<GpuError>>(
    choice: Choice,
    matrices: &Matrices,
    ring: Ring,
    elements: usize,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    mut write: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<Ran, E> {
    let ring = Ring {
        chunk: ring.chunk.max(1),
        slots: ring.slots.max(1),
    };
    let mut ran = Ran::default();
    let mut done = 0;
    if let Some(device) = choice.open()? {
        let mut pipe = Pipe::new(&device, matrices, ring, elements);
        let result = match &mut pipe {
            Ok(pipe) => pipe.run(elements, &mut done, &mut read, &mut write),
            Err(_) => Ok(()),
        };
        let failed = match (pipe, result) {
            (Err(error), _) => Some(error),
            (_, Err(Failure::Device(error))) => Some(error),
            (_, Err(Failure::Caller(error))) => return Err(error),
            (_, Ok(())) => None,
        };
        ran.device = done as u64;
        if let Some(error) = failed {
            if choice == Choice::Cuda || !error.is_of_device() {
                return Err(error.into());
            }
            tracing::warn!("going on on the CPU: {error}");
            ran.error = Some(error);
        }
    }
    let width = matrices.dtype().word_bytes();
    let (mut words, mut classes) = (Vec::new(), Vec::new());
    while done < elements {
        let count = ring.chunk.min(elements - done);
        words.resize(count * width, 0);
        read(done * width, &mut words)?;
        matrices.predict(done, &mut words, &mut classes);
        write(&words, &classes)?;
        done += count;
        ran.cpu += count as u64;
    }
    Ok(ran)
}

/// Whose error it is.
enum Failure<E> {
    Device(GpuError),
    Caller(E),
}

impl<E> From<GpuError> for Failure<E> {
    fn from(error: GpuError) -> Self {
        Self::Device(error)
    }
}

/// A chunk's buffers on both sides.
struct Slot {
    up: PinnedHostSlice<u8>,
    down: PinnedHostSlice<u8>,
    down_classes: PinnedHostSlice<u8>,
    base: CudaSlice<u8>,
    out: CudaSlice<u8>,
    classes: CudaSlice<u8>,
    /// Recorded when the chunk's results are on the host, which is after everything else of it.
    done: CudaEvent,
    /// The elements under way.
    holds: Option<Range<usize>>,
}

struct Pipe {
    matrices: DeviceMatrices,
    slots: Vec<Slot>,
    chunk: usize,
    width: usize,
    up: Arc<CudaStream>,
    compute: Arc<CudaStream>,
    down: Arc<CudaStream>,
}

impl Pipe {
    fn new(
        device: &Arc<Device>,
        matrices: &Matrices,
        ring: Ring,
        elements: usize,
    ) -> Result<Self, GpuError> {
        let width = matrices.dtype().word_bytes();
        let chunk = ring.chunk.min(elements.max(1));
        let slot = || {
            Ok(Slot {
                up: device.pinned(chunk * width, false)?,
                down: device.pinned(chunk * width, true)?,
                down_classes: device.pinned(chunk, true)?,
                base: device.alloc(chunk * width)?,
                out: device.alloc(chunk * width)?,
                classes: device.alloc(chunk)?,
                done: device
                    .context()
                    .new_event(None)
                    .during("preparing the ring")?,
                holds: None,
            })
        };
        let matrices = DeviceMatrices::new(device, matrices)?;
        let slots = (0..ring.slots)
            .map(|_| slot())
            .collect::<Result<_, GpuError>>()?;
        // Memory is allocated in the order of the device's own stream, and other streams use it.
        device.settle()?;
        Ok(Self {
            matrices,
            slots,
            chunk,
            width,
            up: device.new_stream()?,
            compute: device.new_stream()?,
            down: device.new_stream()?,
        })
    }

    /// `done` counts the elements that were written.
    fn run<E>(
        &mut self,
        elements: usize,
        done: &mut usize,
        read: &mut impl FnMut(usize, &mut [u8]) -> Result<(), E>,
        write: &mut impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        let mut next = 0;
        while *done < elements {
            for slot in 0..self.slots.len() {
                self.finish(slot, done, write)?;
                if next < elements {
                    let range = next..elements.min(next + self.chunk);
                    next = range.end;
                    self.start(slot, range, read)?;
                }
            }
        }
        Ok(())
    }

    /// Fills a slot that is free and queues its chunk.
    fn start<E>(
        &mut self,
        slot: usize,
        range: Range<usize>,
        read: &mut impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        let Some(slot) = self.slots.get_mut(slot) else {
            return Ok(());
        };
        let (count, bytes) = (range.len(), range.len() * self.width);
        let words = slot.up.as_mut_slice().during("filling the ring")?;
        read(range.start * self.width, &mut words[..bytes]).map_err(Failure::Caller)?;
        // What the streams do with a device buffer is ordered by cudarc's events; the host's buffers are free again when
        // `done` is reached, which `finish` waits for.
        self.up
            .memcpy_htod(&words[..bytes], &mut slot.base)
            .during("copying to the device")?;
        self.matrices.launch(
            &self.compute,
            &slot.base,
            &mut slot.out,
            Some(&mut slot.classes),
            range.start,
            count,
        )?;
        let words = slot.down.as_mut_slice().during("emptying the ring")?;
        self.down
            .memcpy_dtoh(&slot.out.slice(..bytes), &mut words[..bytes])
            .during("copying from the device")?;
        let classes = slot
            .down_classes
            .as_mut_slice()
            .during("emptying the ring")?;
        self.down
            .memcpy_dtoh(&slot.classes.slice(..count), &mut classes[..count])
            .during("copying from the device")?;
        slot.done.record(&self.down).during("queueing a chunk")?;
        slot.holds = Some(range);
        Ok(())
    }

    /// Waits for a slot's chunk and hands it on.
    fn finish<E>(
        &mut self,
        slot: usize,
        done: &mut usize,
        write: &mut impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        let Some(slot) = self.slots.get_mut(slot) else {
            return Ok(());
        };
        let Some(range) = slot.holds.take() else {
            return Ok(());
        };
        slot.done.synchronize().during("waiting for a chunk")?;
        slot.base
            .context()
            .check_err()
            .during("waiting for a chunk")?;
        let (count, bytes) = (range.len(), range.len() * self.width);
        let words = slot.down.as_slice().during("emptying the ring")?;
        let classes = slot.down_classes.as_slice().during("emptying the ring")?;
        write(&words[..bytes], &classes[..count]).map_err(Failure::Caller)?;
        *done = range.end;
        Ok(())
    }
}

impl Drop for Pipe {
    /// No copy may be under way when the buffers go, whatever ended the run: pageable slices of pinned memory carry no event.
    fn drop(&mut self) {
        drain(&[&self.up, &self.compute, &self.down]);
    }
}
