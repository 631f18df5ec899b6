//! Decompositions of whole models wherever the choice of device leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sparse_codec::TensorView;
use sparse_svd::{Rank, Svd, SvdError};

use crate::blas;
use crate::slots::Slots;
use crate::svd::{Matrix, Seat, bytes_of, shape_of};
use crate::{Choice, Compute, GpuError};

/// Elements of a matrix that are sent at a time.
const CHUNK: usize = 1 << 20;
/// Matrices on the device at a time: one is brought there while another is worked on.
const SEATS: usize = 2;

/// Singular value decompositions of differences, on a GPU where one is used: as near to the exact ones as those of the CPU, but not
/// the same bits.
///
/// A matrix is in the device's memory as `f32` while it is decomposed, at most two at a time; the words that it is made of go
/// through a ring of pinned memory. One that would take more than its share of the memory is left to the CPU.
///
/// At [`Choice::Auto`] a GPU that fails is left for good, with one line in the log; so is one without cuBLAS.
pub struct SvdStreamed {
    compute: Arc<Compute>,
    /// `None` where no GPU is used.
    seats: Option<Slots<Seat>>,
    chunk: usize,
    done: AtomicU64,
}

impl SvdStreamed {
    /// Opens the device.
    ///
    /// # Errors
    /// At [`Choice::Cuda`], no GPU or no cuBLAS that can be used.
    pub fn open(choice: Choice) -> Result<Self, GpuError> {
        Self::on(&Arc::new(Compute::open(choice)?))
    }

    /// On a device that is open, shared with others that compute there: what fails is left by all.
    ///
    /// # Errors
    /// Where the choice was [`Choice::Cuda`], no cuBLAS that can be used.
    pub fn on(compute: &Arc<Compute>) -> Result<Self, GpuError> {
        Self::sized(compute, CHUNK)
    }

    /// As [`Self::open`], with a ring of pieces of `chunk` elements.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_ring(choice: Choice, chunk: usize) -> Result<Self, GpuError> {
        Self::sized(&Arc::new(Compute::open(choice)?), chunk)
    }

    fn sized(compute: &Arc<Compute>, chunk: usize) -> Result<Self, GpuError> {
        let seats = match (compute.device(), blas::present()) {
            (None, _) => None,
            (Some(_), Ok(())) => Some(Slots::new(SEATS)),
            (Some(_), Err(absent)) if compute.choice() == Choice::Cuda => return Err(absent.into()),
            (Some(_), Err(absent)) => {
                tracing::warn!("decomposing on the CPU: {absent}");
                None
            }
        };
        Ok(Self {
            compute: Arc::clone(compute),
            seats,
            chunk,
            done: AtomicU64::new(0),
        })
    }

    /// Decomposes `tuned - base`, two matrices of one shape; `None` where that is left for the CPU to do. `goes_on` is asked now
    /// and then whether to go on.
    ///
    /// # Errors
    /// [`GpuError::Svd`] for elements that are no numbers, and what `goes_on` says; at [`Choice::Cuda`], failures of the device.
    pub fn decompose(
        &self,
        tuned: TensorView<'_>,
        base: TensorView<'_>,
        rank: Rank,
        goes_on: &dyn Fn() -> Result<(), SvdError>,
    ) -> Result<Option<Svd>, GpuError> {
        let Some(seats) = &self.seats else {
            return Ok(None);
        };
        let found = self.compute.attempt(|device| {
            let [rows, cols] = shape_of(tuned, base)?;
            let bytes = bytes_of(rows, cols, Svd::space(rank, rows, cols));
            if bytes > device.found().memory / 10 * 9 / SEATS as u64 {
                return Err(GpuError::unsupported(format!(
                    "a matrix of {rows} x {cols} is too large for the GPU's memory"
                )));
            }
            let mut lent = seats.lend(|| Seat::new(device, self.chunk))?;
            let seat = lent
                .slot()
                .ok_or_else(|| GpuError::unsupported("a ring without slots"))?;
            let found =
                Matrix::new(seat, tuned, base, goes_on).and_then(|matrix| Svd::on(matrix, rank));
            if found.is_err()
                && let Some(seat) = lent.slot()
            {
                seat.drain();
            }
            found
        })?;
        if found.is_some() {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// Matrices that a GPU decomposed.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}
