//! What can go wrong on a device.

use cudarc::cublas::result::CublasError;
use cudarc::driver::DriverError;
use sparse_codec::CodecError;
use sparse_svd::SvdError;
use thiserror::Error;

use crate::{Absent, NoBlas};

/// A failure on a GPU. The caller adds file and tensor.
#[derive(Debug, Error)]
pub enum GpuError {
    /// A GPU was asked for and there is none that can be used.
    #[error("no GPU can be used: {0}; use the device auto or cpu to compute on the CPU")]
    Absent(#[from] Absent),
    /// A GPU was asked for to decompose, and there is no cuBLAS that can be used.
    #[error(
        "singular value decompositions on a GPU need cuBLAS: {0}; use the device auto or cpu to decompose on the CPU"
    )]
    NoBlas(#[from] NoBlas),
    /// The device has not the memory.
    #[error(
        "the GPU's memory is full ({what}): close what else uses it, or use the device auto or cpu"
    )]
    Memory {
        /// What was being done.
        what: &'static str,
    },
    /// The driver reports an error. Once a device is lost or a kernel has failed, every later call does.
    #[error(
        "the GPU failed ({what}: {error}): nothing was written; try again, or use the device cpu to compute on the CPU"
    )]
    Driver {
        /// What was being done.
        what: &'static str,
        /// What the driver says.
        error: DriverError,
    },
    /// cuBLAS reports an error.
    #[error(
        "the GPU failed ({what}: {error}): nothing was written; try again, or use the device cpu to compute on the CPU"
    )]
    Blas {
        /// What was being done.
        what: &'static str,
        /// What cuBLAS says.
        error: CublasError,
    },
    /// Of finite numbers came others.
    #[error(
        "the GPU computed wrongly ({what}): it, its driver or cuBLAS is at fault; nothing was written; use the device cpu to compute on the CPU"
    )]
    Wrong {
        /// What is wrong.
        what: &'static str,
    },
    /// A difference is infinite or not a number, so no scale fits it.
    #[error("element {element} of the difference is not finite: store the tensor exactly")]
    NotFinite {
        /// The first such element.
        element: u64,
    },
    /// Lengths or shapes that do not go together, or a dtype that no kernel takes.
    #[error("{what}")]
    Unsupported {
        /// What was asked, and what to do instead.
        what: String,
    },
    /// A block that no encoder wrote, or another base.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A difference that cannot be decomposed, and a decomposition that was stopped.
    #[error(transparent)]
    Svd(#[from] SvdError),
    /// A variant was left half switched by an earlier error.
    #[error("the variant on the GPU is not whole since an earlier error: switch again")]
    Broken,
}

impl GpuError {
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }

    /// Whether the same work may succeed on the CPU.
    pub fn is_of_device(&self) -> bool {
        matches!(
            self,
            Self::Absent(_)
                | Self::NoBlas(_)
                | Self::Memory { .. }
                | Self::Driver { .. }
                | Self::Blas { .. }
                | Self::Wrong { .. }
        )
    }
}

/// Says what was being done when the driver failed.
pub(crate) trait During<T> {
    fn during(self, what: &'static str) -> Result<T, GpuError>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, what: &'static str) -> Result<T, GpuError> {
        use cudarc::driver::sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY;
        self.map_err(|error| {
            if error.0 == CUDA_ERROR_OUT_OF_MEMORY {
                GpuError::Memory { what }
            } else {
                GpuError::Driver { what, error }
            }
        })
    }
}
