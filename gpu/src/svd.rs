//! A difference in the device's memory and the blocks of its decomposition: `kernels/svd.cu`, and products by cuBLAS.
//!
//! Blocks lie column after column. The difference lies row after row, which to cuBLAS is its transpose.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DeviceRepr, PushKernelArg, ValidAsZeroBits,
};
use sparse_codec::TensorView;
use sparse_svd::{Engine, Seen, SvdError};

use crate::blas::{Blas, Columns};
use crate::device::launch_over;
use crate::error::During;
use crate::kernels::{Module, dtype_name};
use crate::lane::{Up, drain};
use crate::{Device, GpuError};

/// Bytes of the widest word.
const WIDEST: usize = 4;
/// Pieces of words under way.
const PIECES: usize = 3;
/// Rows of blocks that are made `f64` at a time.
const PANEL: usize = 8192;

/// What decompositions use one after another: streams, a handle of cuBLAS, and a ring for words.
pub(crate) struct Seat {
    device: Arc<Device>,
    /// Kernels and products, in order.
    compute: Arc<CudaStream>,
    up: Arc<CudaStream>,
    blas: Blas,
    pieces: Vec<Piece>,
    chunk: usize,
}

/// Words on their way to the device.
struct Piece {
    tuned: Up<u8>,
    base: Up<u8>,
    /// Both are there.
    sent: CudaEvent,
}

impl Seat {
    /// With a ring of pieces of `chunk` elements.
    pub(crate) fn new(device: &Arc<Device>, chunk: usize) -> Result<Self, GpuError> {
        let compute = device.new_stream()?;
        let chunk = chunk.max(1);
        let piece = || {
            Ok(Piece {
                tuned: Up::new(device, chunk * WIDEST)?,
                base: Up::new(device, chunk * WIDEST)?,
                sent: device.new_event()?,
            })
        };
        let seat = Self {
            blas: Blas::new(&compute)?,
            compute,
            up: device.new_stream()?,
            pieces: (0..PIECES)
                .map(|_| piece())
                .collect::<Result<_, GpuError>>()?,
            chunk,
            device: Arc::clone(device),
        };
        // Memory is allocated in the order of the device's own stream, and other streams use it.
        device.settle()?;
        Ok(seat)
    }

    /// Waits after an error: no copy may be under way when the ring is used again.
    pub(crate) fn drain(&self) {
        drain(&[&self.up, &self.compute]);
    }

    fn alloc<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        // SAFETY: numbers of any bits; what is read of it was written before.
        unsafe { self.compute.alloc(len.max(1)) }.during("allocating")
    }

    fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        self.compute.alloc_zeros(len.max(1)).during("allocating")
    }

    fn download<T: DeviceRepr + Default + Clone>(
        &self,
        from: &CudaSlice<T>,
        len: usize,
    ) -> Result<Vec<T>, GpuError> {
        self.device.download_in(&self.compute, from, len)
    }
}

/// Whether a decomposition goes on.
pub(crate) type GoesOn<'m> = &'m (dyn Fn() -> Result<(), SvdError> + 'm);

/// A difference in the device's memory.
pub(crate) struct Matrix<'m> {
    seat: &'m mut Seat,
    tuned: (&'static str, usize, &'m [u8]),
    base: (&'static str, usize, &'m [u8]),
    rows: usize,
    cols: usize,
    data: CudaSlice<f32>,
    goes_on: GoesOn<'m>,
}

/// Vectors in the device's memory.
pub(crate) struct Block {
    data: CudaSlice<f32>,
    /// Numbers of a vector.
    long: usize,
    width: usize,
}

/// Bytes on the device that the decomposition of a matrix takes, in a space of `space` dimensions.
pub(crate) fn bytes_of(rows: usize, cols: usize, space: usize) -> u64 {
    let n = |n: usize| n as u64;
    let matrix = n(rows).saturating_mul(n(cols)).saturating_mul(4);
    // Two blocks beside those of the space are under way when factors are made.
    let vectors = n(2 * cols + rows + 2 * rows.max(cols)).saturating_mul(n(space) * 4);
    let small = n(space).saturating_mul(n(PANEL + space) * 8);
    matrix.saturating_add(vectors).saturating_add(small)
}

impl<'m> Matrix<'m> {
    /// Makes room for `tuned - base`, two matrices of one shape; [`Engine::look`] brings it there.
    pub(crate) fn new(
        seat: &'m mut Seat,
        tuned: TensorView<'m>,
        base: TensorView<'m>,
        goes_on: GoesOn<'m>,
    ) -> Result<Self, GpuError> {
        let [rows, cols] = shape_of(tuned, base)?;
        let words = |view: TensorView<'m>| {
            let dtype = view.dtype.and_then(|d| Some((dtype_name(d)?, d)))?;
            Some((dtype.0, dtype.1.word_bytes(), view.data))
        };
        let (Some(tuned), Some(base)) = (words(tuned), words(base)) else {
            return Err(GpuError::unsupported(
                "differences on a GPU are of BF16, F16 and F32: use the device cpu",
            ));
        };
        let data = seat.alloc(rows * cols)?;
        Ok(Self {
            seat,
            tuned,
            base,
            rows,
            cols,
            data,
            goes_on,
        })
    }

    fn go_on(&self) -> Result<(), GpuError> {
        Ok((self.goes_on)()?)
    }

    /// Queues what makes differences of a piece's words, and sums what is known of them.
    fn subtract(
        &mut self,
        number: usize,
        elements: &Range<usize>,
        row_sums: &mut CudaSlice<f64>,
        col_sums: &mut CudaSlice<f64>,
    ) -> Result<(), GpuError> {
        let Some(piece) = self.seat.pieces.get_mut(number % PIECES) else {
            return Err(GpuError::unsupported("a ring without pieces"));
        };
        piece.sent.synchronize().during("waiting for a piece")?;
        let part = |(_, width, data): (&str, usize, &'m [u8])| {
            let part = data.get(elements.start * width..elements.end * width);
            part.ok_or_else(|| GpuError::unsupported("a tensor is shorter than its shape"))
        };
        piece.tuned.send(&self.seat.up, part(self.tuned)?)?;
        piece.base.send(&self.seat.up, part(self.base)?)?;
        piece
            .sent
            .record(&self.seat.up)
            .during("copying to the device")?;

        // Whole rows, or a part of one.
        let (row, from) = (elements.start / self.cols, elements.start % self.cols);
        let rows = (elements.len() / self.cols).max(1);
        let cols = elements.len() / rows;
        let (rows_here, cols_here) = (rows as u64, cols as u64);
        let names = format!("{}_{}", self.tuned.0, self.base.0);
        let device = &self.seat.device;
        let mut out = self.data.slice_mut(elements.clone());
        let mut sums = row_sums.slice_mut(2 * row..2 * (row + rows));
        let function = device.function(Module::Svd, &format!("svd_difference_{names}"))?;
        let mut launch = self.seat.compute.launch_builder(&function);
        launch
            .arg(&piece.tuned.on_device)
            .arg(&piece.base.on_device)
            .arg(&rows_here)
            .arg(&cols_here)
            .arg(&mut out)
            .arg(&mut sums);
        // SAFETY: the kernel's parameters in their order; all buffers hold the rows and columns that were cut above.
        unsafe { launch.launch(launch_over(rows_here * 32, 128)?) }.during("subtracting")?;

        let mut sums = col_sums.slice_mut(from..from + cols);
        let function = device.function(Module::Svd, &format!("svd_columns_{names}"))?;
        let mut launch = self.seat.compute.launch_builder(&function);
        launch
            .arg(&piece.tuned.on_device)
            .arg(&piece.base.on_device)
            .arg(&rows_here)
            .arg(&cols_here)
            .arg(&mut sums);
        // SAFETY: as above.
        unsafe { launch.launch(launch_over(cols_here, 128)?) }.during("subtracting")?;
        Ok(())
    }
}

/// Rows and columns of two matrices that have them in common, and as many words.
pub(crate) fn shape_of(
    tuned: TensorView<'_>,
    base: TensorView<'_>,
) -> Result<[usize; 2], GpuError> {
    let size = |n: &u64| usize::try_from(*n).ok();
    match (tuned.shape, base.shape) {
        ([rows, cols], same) if same == [*rows, *cols] => size(rows).zip(size(cols)),
        _ => None,
    }
    .filter(|(rows, cols)| *cols > 0 && *rows > 0 && tuned.check().is_ok() && base.check().is_ok())
    .map(|(rows, cols)| [rows, cols])
    .ok_or_else(|| GpuError::unsupported("the tensors are no two matrices of one shape"))
}

impl Engine for Matrix<'_> {
    type Block = Block;
    type Error = GpuError;

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn look(&mut self) -> Result<Seen, GpuError> {
        let (rows, cols) = (self.rows, self.cols);
        let mut row_sums = self.seat.zeros::<f64>(2 * rows)?;
        let mut col_sums = self.seat.zeros::<f64>(cols)?;
        let (mut at, mut number) = (0, 0);
        while at < rows * cols {
            self.go_on()?;
            // Whole rows where one fits.
            let whole = self.seat.chunk / cols * cols;
            let most = if whole > 0 {
                whole
            } else {
                self.seat.chunk.min(cols - at % cols)
            };
            let elements = at..(rows * cols).min(at + most);
            self.subtract(number, &elements, &mut row_sums, &mut col_sums)?;
            at = elements.end;
            number += 1;
        }
        let sums = self.seat.download(&row_sums, 2 * rows)?;
        let sums = sums.as_chunks::<2>().0;
        Ok(Seen {
            energy: sums.iter().map(|[squares, _]| squares).sum(),
            row_noise: sums.iter().map(|[_, noise]| *noise).collect(),
            col_noise: self.seat.download(&col_sums, cols)?,
        })
    }

    fn scale(&mut self, by: f32) -> Result<(), GpuError> {
        let count = (self.rows * self.cols) as u64;
        let function = self.seat.device.function(Module::Svd, "svd_scale")?;
        let mut launch = self.seat.compute.launch_builder(&function);
        launch.arg(&mut self.data).arg(&count).arg(&by);
        // SAFETY: the kernel's parameters in their order; the matrix has as many numbers.
        unsafe { launch.launch(launch_over(count, 256)?) }.during("scaling")?;
        Ok(())
    }

    fn width(block: &Block) -> usize {
        block.width
    }

    fn block(&self, first: Option<&Block>, width: usize, more: &[f32]) -> Result<Block, GpuError> {
        let long = self.cols;
        let mut data = self.seat.alloc::<f32>(long * width)?;
        let kept = first.map_or(0, |first| first.width.min(width)) * long;
        if let Some(first) = first.filter(|_| kept > 0) {
            self.seat
                .compute
                .memcpy_dtod(&first.data.slice(..kept), &mut data.slice_mut(..kept))
                .during("copying on the device")?;
        }
        let missing = width - kept / long;
        if more.len() != missing * long {
            return Err(GpuError::unsupported("vectors of another length"));
        }
        if missing > 0 {
            let columns = turned(more, missing);
            self.seat
                .compute
                .memcpy_htod(&columns, &mut data.slice_mut(kept..long * width))
                .during("copying to the device")?;
        }
        Ok(Block { data, long, width })
    }

    fn pass(&self, block: &Block) -> Result<(Block, Block), GpuError> {
        self.go_on()?;
        let (rows, cols, width) = (self.rows, self.cols, block.width);
        let mut left = self.seat.alloc::<f32>(rows * width)?;
        self.seat.blas.multiply(
            (1.0, Columns::transposed(&self.data, cols)),
            Columns::new(&block.data, cols),
            (0.0, &mut left, rows),
            [rows, width, cols],
        )?;
        let mut back = self.seat.alloc::<f32>(cols * width)?;
        self.seat.blas.multiply(
            (1.0, Columns::new(&self.data, cols)),
            Columns::new(&left, rows),
            (0.0, &mut back, cols),
            [cols, width, rows],
        )?;
        let of = |data, long| Block { data, long, width };
        Ok((of(left, rows), of(back, cols)))
    }

    fn grams(&self, blocks: &[Block]) -> Result<Vec<f64>, GpuError> {
        let width: usize = blocks.iter().map(|block| block.width).sum();
        let long = blocks.first().map_or(0, |block| block.long);
        let mut panel = self.seat.alloc::<f64>(long.min(PANEL) * width)?;
        let mut sums = self.seat.zeros::<f64>(width * width)?;
        let function = self.seat.device.function(Module::Svd, "svd_widen")?;
        for from in (0..long).step_by(PANEL) {
            let rows = PANEL.min(long - from);
            let mut at = 0;
            for block in blocks.iter().filter(|block| block.width > 0) {
                let numbers = block.data.slice(from..long * block.width);
                let mut to = panel.slice_mut(at..at + rows * block.width);
                at += rows * block.width;
                let [stride, rows] = [long, rows].map(|n| n as u64);
                let count = rows * block.width as u64;
                let mut launch = self.seat.compute.launch_builder(&function);
                launch
                    .arg(&numbers)
                    .arg(&stride)
                    .arg(&rows)
                    .arg(&count)
                    .arg(&mut to);
                // SAFETY: the kernel's parameters in their order; the block has as many rows, and the panel room for them.
                unsafe { launch.launch(launch_over(count, 256)?) }.during("multiplying")?;
            }
            self.seat.blas.multiply(
                (1.0, Columns::transposed(&panel, rows)),
                Columns::new(&panel, rows),
                (1.0, &mut sums, width),
                [width, width, rows],
            )?;
        }
        let sums = self.seat.download(&sums, width * width)?;
        if sums.iter().any(|x| !x.is_finite()) {
            return Err(not_finite());
        }
        Ok(sums)
    }

    fn longest(&self, block: &Block) -> Result<f64, GpuError> {
        let gram = self.grams(std::slice::from_ref(block))?;
        let squares = gram.iter().step_by(block.width + 1);
        Ok(squares.copied().fold(0.0, f64::max).sqrt())
    }

    fn combined(&self, blocks: &[Block], small: &[f64]) -> Result<Block, GpuError> {
        let all: usize = blocks.iter().map(|block| block.width).sum();
        let long = blocks.first().map_or(0, |block| block.long);
        let width = small.len() / all.max(1);
        let narrow: Vec<f32> = small.iter().map(|x| rounded(*x)).collect();
        let mut factors = self.seat.alloc::<f32>(narrow.len())?;
        self.seat
            .compute
            .memcpy_htod(&narrow, &mut factors)
            .during("copying to the device")?;
        let mut data = self.seat.alloc::<f32>(long * width)?;
        let mut at = 0;
        for block in blocks.iter().filter(|block| block.width > 0) {
            let keeps = if at == 0 { 0.0 } else { 1.0 };
            self.seat.blas.multiply(
                (1.0, Columns::new(&block.data, long)),
                Columns::new(&factors.slice(at..), all),
                (keeps, &mut data, long),
                [long, width, block.width],
            )?;
            at += block.width;
        }
        Ok(Block { data, long, width })
    }

    fn project_out(&self, block: &mut Block, space: &Block) -> Result<(), GpuError> {
        let (long, width) = (block.long, block.width);
        let mut overlap = self.seat.alloc::<f32>(space.width * width)?;
        self.seat.blas.multiply(
            (1.0, Columns::transposed(&space.data, long)),
            Columns::new(&block.data, long),
            (0.0, &mut overlap, space.width),
            [space.width, width, long],
        )?;
        self.seat.blas.multiply(
            (-1.0, Columns::new(&space.data, long)),
            Columns::new(&overlap, space.width),
            (1.0, &mut block.data, long),
            [long, width, space.width],
        )
    }

    fn read(&self, block: &Block) -> Result<Vec<f32>, GpuError> {
        let columns = self.seat.download(&block.data, block.long * block.width)?;
        if columns.iter().any(|x| !x.is_finite()) {
            return Err(not_finite());
        }
        Ok(turned(&columns, block.long))
    }
}

/// The matrix was looked at, and is small enough for products of `f32`.
fn not_finite() -> GpuError {
    GpuError::Wrong {
        what: "products of a finite matrix are not finite",
    }
}

/// The other order of numbers, of which `width` lie together.
fn turned(numbers: &[f32], width: usize) -> Vec<f32> {
    let columns = (0..width).map(|first| numbers.iter().skip(first).step_by(width.max(1)));
    columns.flatten().copied().collect()
}

#[expect(clippy::cast_possible_truncation, reason = "to the nearest f32")]
fn rounded(x: f64) -> f32 {
    x as f32
}
