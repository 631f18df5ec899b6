//! INT8 of tensors of any size through a ring: pieces of whole rows, or of one row, copied in, worked on and copied out in
//! streams of their own, so that they overlap.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice, sys};
use sparse_codec::{DType, Int8, Scales, TensorView};

use crate::error::During;
use crate::int8::{Segments, launch_apply, launch_largest, launch_quantise};
use crate::kernels::dtype_name;
use crate::ring::{drain, fill, send};
use crate::slots::{Lent, Slots};
use crate::{Device, GpuError};

/// Bytes of the widest word.
const WIDEST: usize = 4;

/// The ring.
pub(crate) struct Int8Ring {
    device: Arc<Device>,
    chunk: usize,
    slots: Slots<Slot>,
    up: Arc<CudaStream>,
    down: Arc<CudaStream>,
}

struct Slot {
    up: PinnedHostSlice<u8>,
    up_base: PinnedHostSlice<u8>,
    up_scales: PinnedHostSlice<f32>,
    down: PinnedHostSlice<u8>,
    down_largest: PinnedHostSlice<u32>,
    down_bad: PinnedHostSlice<u64>,
    target: CudaSlice<u8>,
    base: CudaSlice<u8>,
    scales: CudaSlice<f32>,
    largest: CudaSlice<u32>,
    bad: CudaSlice<u64>,
    codes: CudaSlice<i8>,
    out: CudaSlice<u8>,
    compute: Arc<CudaStream>,
    /// Recorded when everything of a piece is on the host.
    done: CudaEvent,
}

/// A part of a tensor, with segments that begin with it.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    elements: Range<usize>,
    segments: Segments,
    /// Those of the tensor's scales.
    scales: Range<usize>,
}

/// The pieces of some of a tensor's elements.
struct Pieces {
    row: usize,
    group: usize,
    chunk: usize,
    at: usize,
    end: usize,
}

impl Pieces {
    /// `row` elements of a row and of its segments; of a piece at most `chunk`.
    fn new(row: (usize, usize), elements: Range<usize>, chunk: usize) -> Self {
        let group = row.1.max(1);
        Self {
            row: row.0.max(1),
            group,
            // Whole segments of a row that is cut.
            chunk: if chunk > group {
                chunk / group * group
            } else {
                chunk
            }
            .max(1),
            at: elements.start,
            end: elements.end,
        }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let (start, of_row) = (self.at, self.at % self.row);
        let per_row = self.row.div_ceil(self.group);
        let first = start / self.row * per_row + of_row / self.group;
        let whole = self.chunk.min(self.end - start) / self.row * self.row;
        let piece = if of_row == 0 && whole > 0 {
            Piece {
                elements: start..start + whole,
                segments: Segments::groups(self.row as u64, self.group as u64),
                scales: first..first + whole / self.row * per_row,
            }
        } else {
            // A part of a row: whole segments, or a part of one.
            let of_group = of_row % self.group;
            let most = if of_group > 0 || self.chunk < self.group {
                self.chunk.min(self.group - of_group)
            } else {
                self.chunk
            };
            let count = most.min(self.row - of_row).min(self.end - start);
            Piece {
                elements: start..start + count,
                segments: Segments::groups(count as u64, self.group as u64),
                scales: first..first + count.div_ceil(self.group.min(count)),
            }
        };
        self.at = piece.elements.end;
        Some(piece)
    }
}

impl Int8Ring {
    pub(crate) fn new(device: &Arc<Device>, chunk: usize, slots: usize) -> Result<Self, GpuError> {
        Ok(Self {
            device: Arc::clone(device),
            chunk: chunk.max(1),
            slots: Slots::new(slots),
            up: device.new_stream()?,
            down: device.new_stream()?,
        })
    }

    /// Whether there are kernels for a tensor and its base, if it has one.
    pub(crate) fn takes(dtype: Option<DType>, base: Option<Option<DType>>) -> bool {
        dtype.and_then(dtype_name).is_some() && base.is_none_or(|base| base == dtype)
    }

    /// The largest magnitude of each segment's differences; [`GpuError::Codec`] for one that is not finite.
    pub(crate) fn largest(
        &self,
        target: TensorView<'_>,
        base: Option<&[u8]>,
        row: (usize, usize),
    ) -> Result<Vec<f32>, GpuError> {
        let dtype = target
            .dtype
            .ok_or_else(|| GpuError::unsupported("INT8 takes floats, not an unknown dtype"))?;
        let elements = target.data.len() / dtype.word_bytes();
        let pieces = Pieces::new(row, 0..elements, self.chunk);
        let mut all: Vec<u32> = Vec::new();
        let mut bad = u64::MAX;
        self.each(
            pieces,
            |slot, piece| {
                self.send_words(slot, piece, dtype, target.data, base)?;
                let count = piece.scales.len();
                let compute = Arc::clone(&slot.compute);
                compute
                    .memset_zeros(&mut slot.largest.slice_mut(..count))
                    .during("finding INT8 scales")?;
                fill_bad(&compute, &mut slot.bad)?;
                launch_largest(
                    &self.device,
                    &compute,
                    dtype,
                    &slot.target,
                    base.map(|_| &slot.base),
                    piece.segments,
                    count as u64,
                    &mut slot.largest,
                    &mut slot.bad,
                )?;
                let to = slot.down_largest.as_mut_slice().during("emptying")?;
                self.down
                    .memcpy_dtoh(&slot.largest.slice(..count), &mut to[..count])
                    .during("copying from the device")?;
                let to = slot.down_bad.as_mut_slice().during("emptying")?;
                self.down
                    .memcpy_dtoh(&slot.bad, to)
                    .during("copying from the device")
            },
            |slot, piece| {
                let found = slot.down_largest.as_slice().during("emptying")?;
                let found = found.get(..piece.scales.len()).unwrap_or_default();
                let of_bad = slot.down_bad.as_slice().during("emptying")?;
                if let Some(at) = of_bad.first().filter(|at| **at != u64::MAX) {
                    bad = bad.min(piece.elements.start as u64 + at);
                }
                // Parts of a row share its scale: bits of magnitudes are in their order.
                let mut found = found.iter();
                let shared = all.len() > piece.scales.start;
                if let Some(last) = all.last_mut().filter(|_| shared) {
                    *last = found.next().copied().unwrap_or(0).max(*last);
                }
                all.extend(found);
                Ok(())
            },
        )?;
        if bad != u64::MAX {
            return Err(sparse_codec::CodecError::NotFinite { element: bad }.into());
        }
        Ok(all.into_iter().map(f32::from_bits).collect())
    }

    /// The words that codes and scales make of some elements.
    pub(crate) fn rebuilt(
        &self,
        int8: &Int8<'_>,
        elements: Range<usize>,
    ) -> Result<Vec<u8>, GpuError> {
        let (dtype, target) = int8.target();
        let base = int8.base().map(|(_, data)| data);
        let Scales::F32(scales) = int8.scales() else {
            return Err(GpuError::unsupported("INT8 of F64 has no kernels"));
        };
        let width = dtype.word_bytes();
        let mut words = Vec::with_capacity(elements.len() * width);
        self.each(
            Pieces::new(int8.row(), elements, self.chunk),
            |slot, piece| {
                self.send_words(slot, piece, dtype, target, base)?;
                let of_piece = scales.get(piece.scales.clone()).unwrap_or_default();
                fill(&mut slot.up_scales, of_piece)?;
                send(&self.up, &slot.up_scales, &mut slot.scales, of_piece.len())?;
                let (count, compute) = (piece.elements.len(), Arc::clone(&slot.compute));
                let base = base.map(|_| &slot.base);
                launch_quantise(
                    &self.device,
                    &compute,
                    dtype,
                    &slot.target,
                    base,
                    &slot.scales,
                    piece.segments,
                    count as u64,
                    &mut slot.codes,
                )?;
                launch_apply(
                    &self.device,
                    &compute,
                    dtype,
                    base,
                    &slot.codes,
                    &slot.scales,
                    piece.segments,
                    count as u64,
                    &mut slot.out,
                )?;
                let bytes = count * width;
                let to = slot.down.as_mut_slice().during("emptying")?;
                self.down
                    .memcpy_dtoh(&slot.out.slice(..bytes), &mut to[..bytes])
                    .during("copying from the device")
            },
            |slot, piece| {
                let found = slot.down.as_slice().during("emptying")?;
                let bytes = piece.elements.len() * width;
                words.extend_from_slice(found.get(..bytes).unwrap_or_default());
                Ok(())
            },
        )?;
        Ok(words)
    }

    /// Queues pieces, as many at once as there are slots for, and takes what comes of them in their order.
    fn each(
        &self,
        pieces: Pieces,
        mut queue: impl FnMut(&mut Slot, &Piece) -> Result<(), GpuError>,
        mut take: impl FnMut(&Slot, &Piece) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let mut under_way = UnderWay {
            ring: self,
            pieces: Default::default(),
        };
        for piece in pieces {
            // Nobody waits for a slot who holds one, so that there is always somebody who gives one back.
            let mut lent = loop {
                if under_way.pieces.is_empty() {
                    break self.slots.lend(|| self.slot())?;
                }
                match self.slots.try_lend(|| self.slot())? {
                    Some(lent) => break lent,
                    None => under_way.finish(&mut take)?,
                }
            };
            let queued = match lent.slot() {
                Some(slot) => queue(slot, &piece)
                    .and_then(|()| slot.done.record(&self.down).during("queueing a piece")),
                None => Err(GpuError::unsupported("a ring without slots")),
            };
            under_way.pieces.push_back((lent, piece));
            queued?;
        }
        while !under_way.pieces.is_empty() {
            under_way.finish(&mut take)?;
        }
        Ok(())
    }

    fn send_words(
        &self,
        slot: &mut Slot,
        piece: &Piece,
        dtype: DType,
        target: &[u8],
        base: Option<&[u8]>,
    ) -> Result<(), GpuError> {
        let width = dtype.word_bytes();
        let bytes = piece.elements.start * width..piece.elements.end * width;
        let short = || GpuError::unsupported("a tensor is shorter than its shape");
        let words = target.get(bytes.clone()).ok_or_else(short)?;
        fill(&mut slot.up, words)?;
        send(&self.up, &slot.up, &mut slot.target, words.len())?;
        if let Some(base) = base {
            let words = base.get(bytes).ok_or_else(short)?;
            fill(&mut slot.up_base, words)?;
            send(&self.up, &slot.up_base, &mut slot.base, words.len())?;
        }
        Ok(())
    }

    fn slot(&self) -> Result<Slot, GpuError> {
        let (device, chunk) = (&self.device, self.chunk);
        let slot = Slot {
            up: device.pinned(chunk * WIDEST, false)?,
            up_base: device.pinned(chunk * WIDEST, false)?,
            up_scales: device.pinned(chunk, false)?,
            down: device.pinned(chunk * WIDEST, true)?,
            down_largest: device.pinned(chunk, true)?,
            down_bad: device.pinned(1, true)?,
            target: device.alloc(chunk * WIDEST)?,
            base: device.alloc(chunk * WIDEST)?,
            scales: device.alloc(chunk)?,
            largest: device.alloc(chunk)?,
            bad: device.alloc(1)?,
            codes: device.alloc(chunk)?,
            out: device.alloc(chunk * WIDEST)?,
            compute: device.new_stream()?,
            // Many threads wait, and shall not spin.
            done: device
                .context()
                .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
                .during("preparing the ring")?,
        };
        // Memory is allocated in the order of the device's own stream, and other streams use it.
        device.settle()?;
        Ok(slot)
    }
}

/// Pieces that were queued and not taken yet.
struct UnderWay<'r> {
    ring: &'r Int8Ring,
    pieces: std::collections::VecDeque<(Lent<'r, Slot>, Piece)>,
}

impl UnderWay<'_> {
    /// Waits for the first piece and takes what came of it.
    fn finish(
        &mut self,
        take: &mut impl FnMut(&Slot, &Piece) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let Some((lent, piece)) = self.pieces.front_mut() else {
            return Ok(());
        };
        if let Some(slot) = lent.slot() {
            slot.done.synchronize().during("waiting for a piece")?;
            let context = self.ring.device.context();
            context.check_err().during("waiting for a piece")?;
            take(slot, piece)?;
        }
        self.pieces.pop_front();
        Ok(())
    }
}

impl Drop for UnderWay<'_> {
    /// No copy may be under way when the buffers are used again: slices of pinned memory carry no event.
    fn drop(&mut self) {
        for (lent, _) in &mut self.pieces {
            if let Some(slot) = lent.slot() {
                drain(&[&self.ring.up, &slot.compute, &self.ring.down]);
            }
        }
    }
}

/// Sets what stands for "all are finite".
fn fill_bad(stream: &Arc<CudaStream>, bad: &mut CudaSlice<u64>) -> Result<(), GpuError> {
    stream
        .memcpy_htod(&[u64::MAX], bad)
        .during("finding INT8 scales")
}
