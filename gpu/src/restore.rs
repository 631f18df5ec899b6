//! Tensors from their bases and coded blocks, in the device's memory.
//!
//! A block is done by its method: `same` and `raw` are copies, the strips of `delta` go through the kernel, all those of many
//! tensors in one launch. What has no kernel (`stand_alone`, `zstd`, `int8`, a base of another dtype, words other than BF16, F16 and
//! F32) is decoded on the CPU and copied; so is a block that the kernel refuses, for the CPU to say what is wrong with it.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr as _, DevicePtrMut as _};
use sparse_codec::{
    BlockForm, Coding, CodingTables, DType, Scratch, StripForm, TensorDecoder, TensorView,
};

use crate::error::During;
use crate::steps::DeviceMoved;
use crate::strips::{DeviceTables, Staged, Strip};
use crate::{Device, GpuError, decode};

/// Bytes of strips and predictions that wait for one launch.
const PENDING: usize = 256 << 20;

/// A tensor as blocks coded against a base's.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// Made of the tensor's header, for a base of the same dtype and shape.
    pub decoder: &'a TensorDecoder,
    /// The stored blocks, in order, all of them.
    pub blocks: &'a [&'a [u8]],
}

impl Coded<'_> {
    /// Bytes of the tensor.
    pub(crate) fn bytes(&self) -> usize {
        let last = self.decoder.blocks().checked_sub(1);
        last.map_or(0, |last| self.decoder.target_range(last).end)
    }
}

/// How many blocks were done where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// On the GPU.
    pub device: u64,
    /// On the CPU, for want of a kernel.
    pub cpu: u64,
}

impl std::ops::AddAssign for Restored {
    fn add_assign(&mut self, other: Self) {
        self.device += other.device;
        self.cpu += other.cpu;
    }
}

/// A tensor to restore: its base and the place for its words.
pub(crate) struct Job<'t, 'a> {
    pub(crate) coded: Coded<'a>,
    pub(crate) dtype: DType,
    pub(crate) base: &'t CudaSlice<u8>,
    pub(crate) base_bytes: usize,
    pub(crate) out: &'t mut CudaSlice<u8>,
}

impl Device {
    /// The bytes of a tensor of `base`'s dtype and shape, decoded on the device as far as there are kernels.
    ///
    /// # Errors
    /// [`GpuError::Codec`] for blocks that no encoder wrote, and failures of the device.
    pub fn decode(
        self: &Arc<Self>,
        base: TensorView<'_>,
        coded: Coded<'_>,
    ) -> Result<(Vec<u8>, Restored), GpuError> {
        let dtype = base
            .dtype
            .ok_or_else(|| GpuError::unsupported("blocks on a GPU are of known dtypes"))?;
        let bytes = coded.bytes();
        let on_device = self.upload(base.data)?;
        let mut out = self.alloc::<u8>(bytes)?;
        let job = Job {
            coded,
            dtype,
            base: &on_device,
            base_bytes: base.data.len(),
            out: &mut out,
        };
        let restored = restore(self, &mut [job])?;
        Ok((self.download(&out, bytes)?, restored))
    }
}

/// Restores tensors; queued on the device's stream, and done when it returns.
pub(crate) fn restore(
    device: &Arc<Device>,
    jobs: &mut [Job<'_, '_>],
) -> Result<Restored, GpuError> {
    let mut restored = Restored::default();
    let mut pending = Pending::default();
    for number in 0..jobs.len() {
        pending.add(device, jobs, number)?;
        if pending.size >= PENDING {
            restored += pending.flush(device, jobs)?;
        }
    }
    restored += pending.flush(device, jobs)?;
    device.settle()?;
    Ok(restored)
}

/// Strips that share tables.
struct Group<'a> {
    dtype: DType,
    tables: CodingTables<'a>,
    strips: Vec<Strip>,
    /// The block that each belongs to: job and number.
    blocks: Vec<(usize, usize)>,
}

/// What waits for a launch.
#[derive(Default)]
struct Pending<'a> {
    groups: Vec<Group<'a>>,
    staged: Staged,
    /// Predictions and their classes, which strips point to.
    predictions: Vec<(CudaSlice<u8>, CudaSlice<u8>)>,
    /// Blocks that only the CPU does: job and number.
    left: Vec<(usize, usize)>,
    /// Blocks that the device does.
    blocks: u64,
    /// Bytes in the device's memory.
    size: usize,
}

impl<'a> Pending<'a> {
    fn add(
        &mut self,
        device: &Arc<Device>,
        jobs: &mut [Job<'_, 'a>],
        number: usize,
    ) -> Result<(), GpuError> {
        let Some(job) = jobs.get_mut(number) else {
            return Ok(());
        };
        let (coded, decoder) = (job.coded, job.coded.decoder);
        if coded.blocks.len() != decoder.blocks() || job.out.len() < coded.bytes() {
            return Err(GpuError::unsupported(format!(
                "{} blocks for a tensor of {}",
                coded.blocks.len(),
                decoder.blocks()
            )));
        }
        let coding = decoder.coding().filter(|c| c.dtype == job.dtype);
        let width = job.dtype.word_bytes();
        let mut moved = None;
        for (block, payload) in coded.blocks.iter().enumerate() {
            let range = decoder.target_range(block);
            let Ok(form) = decoder.block_form(block, payload) else {
                self.left.push((number, block));
                continue;
            };
            let predicted = matches!(form, BlockForm::Same | BlockForm::Strips(_));
            if predicted && moved.is_none() {
                moved = Some(self.predict(device, job)?);
            }
            let moved = moved.as_ref().and_then(Option::as_ref);
            match (form, moved, &coding) {
                (BlockForm::Same, Some(moved), _) if range.end <= job.base_bytes => {
                    let from = moved
                        .and_then(|at| self.predictions.get(at))
                        .map_or(job.base, |(words, _)| words);
                    copy(device, from, job.out, range)?;
                    self.blocks += 1;
                }
                (BlockForm::Raw(words), ..) => {
                    write(device, words, job.out, range)?;
                    self.blocks += 1;
                }
                (BlockForm::Strips(strips), Some(moved), Some(coding))
                    if range.end <= job.base_bytes =>
                {
                    self.strips(device, job, (number, block), &strips, coding, *moved, width)?;
                    self.blocks += 1;
                }
                _ => self.left.push((number, block)),
            }
        }
        Ok(())
    }

    /// The predictions of all of a tensor: `None` where there is no kernel for them, else where they are if not in the base.
    fn predict(
        &mut self,
        device: &Arc<Device>,
        job: &Job<'_, '_>,
    ) -> Result<Option<Option<usize>>, GpuError> {
        let decoder = job.coded.decoder;
        let same = [decoder.dtype(), decoder.base_dtype()] == [Some(job.dtype); 2];
        let Some(moved) = decoder.moved().filter(|_| same) else {
            return Ok(None);
        };
        let moved = DeviceMoved::new(device, &moved)?;
        let words = job.base_bytes.min(job.coded.bytes()) / job.dtype.word_bytes();
        if moved.is_no() || words == 0 {
            return Ok(Some(None));
        }
        let mut predictions = device.alloc::<u8>(job.base_bytes)?;
        let of_classes = if moved.has_classes() { words } else { 0 };
        let mut classes = device.alloc::<u8>(of_classes)?;
        moved.apply(
            device,
            device.stream(),
            job.dtype,
            job.base,
            &mut predictions,
            &mut classes,
            0,
            words,
        )?;
        self.size += job.base_bytes + of_classes;
        self.predictions.push((predictions, classes));
        Ok(Some(Some(self.predictions.len() - 1)))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a block and what is known of its tensor"
    )]
    fn strips(
        &mut self,
        device: &Device,
        job: &mut Job<'_, 'a>,
        block: (usize, usize),
        strips: &[StripForm<'_>],
        coding: &Coding<'a>,
        moved: Option<usize>,
        width: usize,
    ) -> Result<(), GpuError> {
        let stream = device.stream();
        // Taking the addresses makes the stream wait for what other streams do with the buffers; this one is waited for before
        // anybody else can reach them.
        let (words, _) = job.out.device_ptr_mut(stream);
        let (prediction, classes) = match moved.and_then(|at| self.predictions.get(at)) {
            None => (job.base.device_ptr(stream).0, None),
            Some((predictions, classes)) => (
                predictions.device_ptr(stream).0,
                matches!(coding.moved, sparse_codec::Moved::LowRank(_))
                    .then(|| classes.device_ptr(stream).0),
            ),
        };
        let same = |g: &Group<'_>| g.dtype == coding.dtype && g.tables.is(coding.tables);
        let group = match self.groups.iter().position(same) {
            Some(at) => at,
            None => {
                self.groups.push(Group {
                    dtype: coding.dtype,
                    tables: coding.tables,
                    strips: Vec::new(),
                    blocks: Vec::new(),
                });
                self.groups.len() - 1
            }
        };
        let before = self.staged.bytes.len();
        for form in strips {
            let strip = self.staged.coded(coding, form)?;
            let first = form.words.start;
            let at = (first * width) as u64;
            if let Some(group) = self.groups.get_mut(group) {
                group.strips.push(Strip {
                    prediction: prediction + at,
                    classes: classes.map_or(0, |classes| classes + first as u64),
                    words: words + at,
                    ..strip
                });
                group.blocks.push(block);
            }
        }
        self.size += self.staged.bytes.len() - before;
        Ok(())
    }

    /// Launches what waits, and does what is left on the CPU.
    fn flush(
        &mut self,
        device: &Arc<Device>,
        jobs: &mut [Job<'_, 'a>],
    ) -> Result<Restored, GpuError> {
        let stream = device.stream();
        let staged = device.upload(&self.staged.bytes)?;
        let base = staged.device_ptr(stream).0;
        let mut kept = Vec::new();
        for group in self.groups.drain(..) {
            let tables = DeviceTables::new(device, group.tables, true)?;
            let count = group.strips.len();
            let strips = device.upload(&Staged::addresses(&group.strips, base))?;
            let mut status = device.alloc::<u32>(count)?;
            decode::launch(
                device,
                stream,
                group.dtype,
                &tables,
                &strips,
                &mut status,
                count,
            )?;
            kept.push((group.blocks, tables, strips, status));
        }
        for (blocks, _, _, status) in &kept {
            let status = device.download(status, blocks.len())?;
            for (block, status) in blocks.iter().zip(status) {
                if status != 0 && self.left.last() != Some(block) {
                    self.left.push(*block);
                    self.blocks -= 1;
                }
            }
        }
        let mut restored = Restored {
            device: self.blocks,
            cpu: 0,
        };
        let mut host = Host::default();
        for (number, block) in self.left.drain(..) {
            if let Some(job) = jobs.get_mut(number) {
                host.decode(device, job, number, block)?;
                restored.cpu += 1;
            }
        }
        // Nothing that strips point to goes before they are done.
        device.settle()?;
        self.predictions.clear();
        self.staged.clear();
        (self.blocks, self.size) = (0, 0);
        Ok(restored)
    }
}

/// Decoding on the CPU, with the base of one tensor at a time copied back from the device.
#[derive(Default)]
struct Host {
    base: Option<(usize, Vec<u8>)>,
    scratch: Scratch,
    words: Vec<u8>,
}

impl Host {
    fn decode(
        &mut self,
        device: &Device,
        job: &mut Job<'_, '_>,
        number: usize,
        block: usize,
    ) -> Result<(), GpuError> {
        let decoder = job.coded.decoder;
        let payload = job.coded.blocks.get(block).copied().unwrap_or_default();
        let range = decoder.target_range(block);
        if self.base.as_ref().is_none_or(|(of, _)| *of != number) {
            self.base = Some((number, device.download(job.base, job.base_bytes)?));
        }
        self.words.clear();
        self.words.resize(range.len(), 0);
        let base = self.base.as_ref().map(|(_, base)| base.as_slice());
        decoder.decode_block(block, payload, base, &mut self.words, &mut self.scratch)?;
        write(device, &self.words, job.out, range)
    }
}

fn write(
    device: &Device,
    words: &[u8],
    out: &mut CudaSlice<u8>,
    range: Range<usize>,
) -> Result<(), GpuError> {
    if words.is_empty() {
        return Ok(());
    }
    device
        .stream()
        .memcpy_htod(words, &mut out.slice_mut(range))
        .during("copying to the device")
}

fn copy(
    device: &Device,
    from: &CudaSlice<u8>,
    out: &mut CudaSlice<u8>,
    range: Range<usize>,
) -> Result<(), GpuError> {
    if range.is_empty() {
        return Ok(());
    }
    device
        .stream()
        .memcpy_dtod(&from.slice(range.clone()), &mut out.slice_mut(range))
        .during("copying on the device")
}
