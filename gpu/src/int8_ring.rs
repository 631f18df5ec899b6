//! INT8 of tensors of any size through a ring: pieces of whole rows, or of one row, copied in, worked on and copied out in
//! streams of their own, so that they overlap.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};
use sparse_codec::{DType, Int8, Scales, TensorView};

use crate::error::During;
use crate::int8::{Segments, launch_apply, launch_largest, launch_quantise};
use crate::kernels::dtype_name;
use crate::lane::{Down, Lanes, Own, Up};
use crate::slots::{Lent, Slots};
use crate::{Device, GpuError};

/// Bytes of the widest word.
const WIDEST: usize = 4;

/// The ring.
pub(crate) struct Int8Ring {
    lanes: Lanes,
    chunk: usize,
    slots: Slots<Slot>,
}

struct Slot {
    own: Own,
    target: Up<u8>,
    base: Up<u8>,
    scales: Up<f32>,
    codes: CudaSlice<i8>,
    largest: Down<u32>,
    bad: Down<u64>,
    out: Down<u8>,
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
            lanes: Lanes::new(device)?,
            chunk: chunk.max(1),
            slots: Slots::new(slots),
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
                let compute = Arc::clone(&slot.own.compute);
                compute
                    .memset_zeros(&mut slot.largest.on_device.slice_mut(..count))
                    .during("finding INT8 scales")?;
                fill_bad(&compute, &mut slot.bad.on_device)?;
                launch_largest(
                    &self.lanes.device,
                    &compute,
                    dtype,
                    &slot.target.on_device,
                    base.map(|_| &slot.base.on_device),
                    piece.segments,
                    count as u64,
                    &mut slot.largest.on_device,
                    &mut slot.bad.on_device,
                )?;
                slot.largest.fetch(&self.lanes.down, 0..count)?;
                slot.bad.fetch(&self.lanes.down, 0..1)
            },
            |slot, piece| {
                let found = slot.largest.get()?;
                let found = found.get(..piece.scales.len()).unwrap_or_default();
                if let Some(at) = slot.bad.get()?.first().filter(|at| **at != u64::MAX) {
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
                slot.scales.send(&self.lanes.up, of_piece)?;
                let (count, compute) = (piece.elements.len(), Arc::clone(&slot.own.compute));
                launch_quantise(
                    &self.lanes.device,
                    &compute,
                    dtype,
                    &slot.target.on_device,
                    base.map(|_| &slot.base.on_device),
                    &slot.scales.on_device,
                    piece.segments,
                    count as u64,
                    &mut slot.codes,
                )?;
                launch_apply(
                    &self.lanes.device,
                    &compute,
                    dtype,
                    base.map(|_| slot.base.on_device.as_view()).as_ref(),
                    &slot.codes.slice(..count),
                    &slot.scales.on_device,
                    piece.segments,
                    0..count as u64,
                    &mut slot.out.on_device.as_view_mut(),
                )?;
                slot.out.fetch(&self.lanes.down, 0..count * width)
            },
            |slot, piece| {
                let bytes = piece.elements.len() * width;
                words.extend_from_slice(slot.out.get()?.get(..bytes).unwrap_or_default());
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
                Some(slot) => queue(slot, &piece).and_then(|()| self.lanes.end(&slot.own)),
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
        slot.target.send(&self.lanes.up, words)?;
        if let Some(base) = base {
            let words = base.get(bytes).ok_or_else(short)?;
            slot.base.send(&self.lanes.up, words)?;
        }
        Ok(())
    }

    fn slot(&self) -> Result<Slot, GpuError> {
        let chunk = self.chunk;
        self.lanes.slot(|device, own| {
            Ok(Slot {
                own,
                target: Up::new(device, chunk * WIDEST)?,
                base: Up::new(device, chunk * WIDEST)?,
                scales: Up::new(device, chunk)?,
                codes: device.alloc(chunk)?,
                largest: Down::new(device, chunk)?,
                bad: Down::new(device, 1)?,
                out: Down::new(device, chunk * WIDEST)?,
            })
        })
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
            self.ring.lanes.wait(&slot.own)?;
            take(slot, piece)?;
        }
        self.pieces.pop_front();
        Ok(())
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        for (lent, _) in &mut self.pieces {
            if let Some(slot) = lent.slot() {
                self.ring.lanes.drain(&slot.own);
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
