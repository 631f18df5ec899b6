//! cuBLAS, looked for at run time as the driver is: products of matrices in a stream's order.
//!
//! cudarc's own handle is not used: it panics where a handle cannot be given back, as after the loss of a device.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys::{self, cublasMath_t, cublasOperation_t, cublasStatus_t};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use thiserror::Error;

use crate::GpuError;
use crate::error::During;

/// The functions that are reached through cudarc, which panics on one that is missing.
const SYMBOLS: &[&str] = &[
    "cublasCreate_v2",
    "cublasDestroy_v2",
    "cublasDgemm_v2",
    "cublasSetMathMode",
    "cublasSetStream_v2",
    "cublasSgemm_v2",
];

/// Why cuBLAS cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoBlas {
    /// No library.
    #[error(
        "libcublas.so.12 was not found (nor as libcublas.so): install cuBLAS of CUDA 12, or put its folder on the loader's path"
    )]
    NotFound,
    /// A library without some function.
    #[error(
        "the cuBLAS that was found lacks {symbol}: install cuBLAS of CUDA 12 (libcublas.so.12)"
    )]
    MissingSymbol {
        /// The function.
        symbol: &'static str,
    },
    /// A library that does not load.
    #[error("libcublas.so.12 does not work: install cuBLAS of CUDA 12")]
    Broken,
}

/// Looks for cuBLAS, once a process. Never panics.
pub(crate) fn present() -> Result<(), NoBlas> {
    static ANSWER: OnceLock<Result<(), NoBlas>> = OnceLock::new();
    ANSWER
        .get_or_init(|| catch_unwind(AssertUnwindSafe(look)).unwrap_or(Err(NoBlas::Broken)))
        .clone()
}

fn look() -> Result<(), NoBlas> {
    // SAFETY: loading cuBLAS runs its initialisers, as using it would.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoBlas::NotFound);
    }
    // SAFETY: the library is there.
    let library = unsafe { sys::culib() };
    let has = |symbol: &str| {
        // SAFETY: the symbol is looked for and not used.
        unsafe { library.get::<*const c_void>(symbol.as_bytes()) }.is_ok()
    };
    match SYMBOLS.iter().find(|symbol| !has(symbol)) {
        Some(symbol) => Err(NoBlas::MissingSymbol { symbol }),
        None => Ok(()),
    }
}

/// A handle, whose products are queued in one stream.
pub(crate) struct Blas {
    handle: sys::cublasHandle_t,
    stream: Arc<CudaStream>,
}

// SAFETY: a handle may be used by one thread at a time, of which there is one with exclusive use of what holds this.
unsafe impl Send for Blas {}

/// A matrix in a buffer: column after column, so many numbers apart.
pub(crate) struct Columns<'b, B> {
    pub(crate) buffer: &'b B,
    pub(crate) stride: usize,
    pub(crate) transposed: bool,
}

impl<'b, B> Columns<'b, B> {
    pub(crate) fn new(buffer: &'b B, stride: usize) -> Self {
        Self {
            buffer,
            stride,
            transposed: false,
        }
    }

    pub(crate) fn transposed(buffer: &'b B, stride: usize) -> Self {
        Self {
            transposed: true,
            ..Self::new(buffer, stride)
        }
    }

    fn op(&self) -> cublasOperation_t {
        if self.transposed {
            cublasOperation_t::CUBLAS_OP_T
        } else {
            cublasOperation_t::CUBLAS_OP_N
        }
    }

    /// Whether a buffer of so many numbers holds so many rows and columns.
    fn holds(&self, length: usize, rows: usize, cols: usize) -> bool {
        let (rows, cols) = if self.transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        fits(length, self.stride, rows, cols)
    }
}

fn fits(length: usize, stride: usize, rows: usize, cols: usize) -> bool {
    let whole = cols.saturating_sub(1).saturating_mul(stride);
    rows <= stride && whole.saturating_add(rows) <= length
}

impl Blas {
    /// A handle for a stream. Products of `f32` keep all of their bits: no TF32.
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self, GpuError> {
        present()?;
        stream
            .context()
            .bind_to_thread()
            .during("starting cuBLAS")?;
        let blas = Self {
            handle: result::create_handle().during("starting cuBLAS")?,
            stream: Arc::clone(stream),
        };
        // SAFETY: the handle was just made, and the stream is kept beside it.
        unsafe { result::set_stream(blas.handle, stream.cu_stream().cast()) }
            .during("starting cuBLAS")?;
        // SAFETY: as above.
        unsafe { sys::cublasSetMathMode(blas.handle, cublasMath_t::CUBLAS_PEDANTIC_MATH) }
            .result()
            .during("starting cuBLAS")?;
        Ok(blas)
    }

    /// Queues `c = alpha a b + beta c`, column after column; `[m, n, k]` are rows and columns of `c` and what is summed over.
    pub(crate) fn multiply<N: Number, A: DevicePtr<N>, B: DevicePtr<N>, C: DevicePtrMut<N>>(
        &self,
        (alpha, a): (N, Columns<'_, A>),
        b: Columns<'_, B>,
        (beta, c, stride): (N, &mut C, usize),
        [m, n, k]: [usize; 3],
    ) -> Result<(), GpuError> {
        let int = |n: usize| i32::try_from(n).ok();
        let sizes = (int(m), int(n), int(k));
        let strides = (int(a.stride), int(b.stride), int(stride));
        let held = a.holds(a.buffer.len(), m, k)
            && b.holds(b.buffer.len(), k, n)
            && fits(c.len(), stride, m, n);
        let ((Some(m), Some(n), Some(k)), (Some(lda), Some(ldb), Some(ldc)), true) =
            (sizes, strides, held)
        else {
            return Err(GpuError::unsupported(
                "a product of matrices is too large for a GPU",
            ));
        };
        // A handle is used by whatever thread does the work.
        self.stream
            .context()
            .bind_to_thread()
            .during("multiplying")?;
        let (a_at, _a) = a.buffer.device_ptr(&self.stream);
        let (b_at, _b) = b.buffer.device_ptr(&self.stream);
        let (c_at, _c) = c.device_ptr_mut(&self.stream);
        // SAFETY: the handle lives, and the lines above hold all that is read and written within the buffers.
        unsafe {
            N::gemm(
                self.handle,
                [a.op(), b.op()],
                [m, n, k],
                [alpha, beta],
                [a_at, b_at, c_at],
                [lda, ldb, ldc],
            )
        }
        .during("multiplying")
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_err() {
            // With the device, the handle is gone.
            return;
        }
        // SAFETY: nobody uses the handle any more.
        if let Err(error) = unsafe { result::destroy_handle(self.handle) } {
            tracing::debug!("leaving cuBLAS: {error}");
        }
    }
}

/// Numbers that cuBLAS multiplies.
pub(crate) trait Number: Copy {
    /// The library's own function.
    ///
    /// # Safety
    /// Buffers are on the device, and as large as sizes and strides say.
    unsafe fn gemm(
        handle: sys::cublasHandle_t,
        ops: [cublasOperation_t; 2],
        sizes: [i32; 3],
        factors: [Self; 2],
        at: [u64; 3],
        strides: [i32; 3],
    ) -> Result<(), CublasError>;
}

macro_rules! number {
    ($type:ty, $function:ident) => {
        impl Number for $type {
            unsafe fn gemm(
                handle: sys::cublasHandle_t,
                [op_a, op_b]: [cublasOperation_t; 2],
                [m, n, k]: [i32; 3],
                [alpha, beta]: [Self; 2],
                [a, b, c]: [u64; 3],
                [lda, ldb, ldc]: [i32; 3],
            ) -> Result<(), CublasError> {
                // SAFETY: as promised by the caller; the factors are on the host, where the library expects them.
                unsafe {
                    result::$function(
                        handle,
                        op_a,
                        op_b,
                        m,
                        n,
                        k,
                        &raw const alpha,
                        a as *const Self,
                        lda,
                        b as *const Self,
                        ldb,
                        &raw const beta,
                        c as *mut Self,
                        ldc,
                    )
                }
            }
        }
    };
}

number!(f32, sgemm);
number!(f64, dgemm);

impl<T> During<T> for Result<T, CublasError> {
    fn during(self, what: &'static str) -> Result<T, GpuError> {
        self.map_err(|error| {
            if error.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED {
                GpuError::Memory { what }
            } else {
                GpuError::Blas { what, error }
            }
        })
    }
}
