//! Looks for a GPU without ever panicking: no driver, an old one, one that lacks a function, no device, an old one.

use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use thiserror::Error;

/// The oldest driver whose PTX is that of the kernels (525), in the driver's own numbers.
const LEAST_DRIVER: i32 = 12000;
/// The oldest compute capability that the kernels are compiled for, as ten times major plus minor.
const LEAST_CAPABILITY: i32 = 80;

/// The driver's functions that this crate reaches through cudarc, which panics on one that is missing.
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// The GPU that would be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its compute capability: major and minor.
    pub capability: (i32, i32),
    /// Its memory in bytes.
    pub memory: u64,
    /// The CUDA version that the driver supports: major and minor.
    pub driver: (i32, i32),
    /// Devices there are; the first is used (`CUDA_VISIBLE_DEVICES` chooses).
    pub devices: i32,
    /// Whether cuBLAS can be used, which singular value decompositions need and nothing else does.
    pub cublas: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (compute capability {}.{}, {} MiB, driver for CUDA {}.{}{}, {})",
            self.name,
            self.capability.0,
            self.capability.1,
            self.memory >> 20,
            self.driver.0,
            self.driver.1,
            if self.devices > 1 {
                format!(", first of {}", self.devices)
            } else {
                String::new()
            },
            if self.cublas {
                "cuBLAS"
            } else {
                "no libcublas.so.12, so decompositions run on the CPU"
            },
        )
    }
}

/// Why no GPU can be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Absent {
    /// No driver library.
    #[error(
        "libcuda.so was not found: no NVIDIA driver is installed, or it is not on the loader's path"
    )]
    NoDriver,
    /// A driver without some function.
    #[error("the NVIDIA driver lacks {symbol}: install driver 525 or later")]
    MissingSymbol {
        /// The function.
        symbol: &'static str,
    },
    /// A driver that cannot read the kernels.
    #[error(
        "the NVIDIA driver supports CUDA {major}.{minor}, and 12.0 is needed: install driver 525 or later"
    )]
    OldDriver {
        /// The version's first number.
        major: i32,
        /// The version's second number.
        minor: i32,
    },
    /// A driver and no device.
    #[error("the NVIDIA driver sees no device (CUDA_VISIBLE_DEVICES may hide them)")]
    NoDevice,
    /// A device that the kernels are not compiled for.
    #[error("{name} has compute capability {major}.{minor}, and 8.0 (Ampere) or later is needed")]
    OldDevice {
        /// Its name.
        name: String,
        /// The capability's first number.
        major: i32,
        /// The capability's second number.
        minor: i32,
    },
    /// The driver does not start.
    #[error("the NVIDIA driver does not work ({what})")]
    Broken {
        /// What it says.
        what: String,
    },
}

/// Looks for a GPU, once a process; what was found is logged in one line. Never panics.
///
/// # Errors
/// Why there is none that can be used.
pub fn probe() -> Result<Found, Absent> {
    static ANSWER: OnceLock<Result<Found, Absent>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            // cudarc panics where a library or a function is missing. Both are asked for first; should something be left,
            // it is an answer too.
            let answer = catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|_| {
                Err(Absent::Broken {
                    what: "its library cannot be used".to_owned(),
                })
            });
            match &answer {
                Ok(found) => tracing::info!("GPU: {found}"),
                Err(absent) => tracing::debug!("GPU: none: {absent}"),
            }
            answer
        })
        .clone()
}

/// What `sparse features` shows: the GPU or why there is none, its driver, and the kernels of this build.
pub fn features() -> Vec<(&'static str, String)> {
    let (gpu, driver) = match probe() {
        Ok(found) => (
            found.to_string(),
            format!("CUDA {}.{}", found.driver.0, found.driver.1),
        ),
        Err(absent) => (format!("none: {absent}"), "none".to_owned()),
    };
    vec![
        ("gpu", gpu),
        ("gpu_driver", driver),
        ("gpu_kernels", crate::kernels::summary()),
    ]
}

fn look() -> Result<Found, Absent> {
    // SAFETY: loading the driver runs its initialisers, as using it would.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absent::NoDriver);
    }
    // SAFETY: the library is there.
    let library = unsafe { sys::culib() };
    let has = |symbol: &str| {
        // SAFETY: the symbol is looked for and not used.
        unsafe { library.get::<*const c_void>(symbol.as_bytes()) }.is_ok()
    };
    if let Some(symbol) = SYMBOLS.iter().find(|symbol| !has(symbol)) {
        return Err(Absent::MissingSymbol { symbol });
    }
    let broken = |error: cudarc::driver::DriverError| Absent::Broken {
        what: error.to_string(),
    };
    let mut version = 0;
    // SAFETY: a pointer to an integer, as the driver asks for; the function is there.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(broken)?;
    let driver = (version / 1000, version % 1000 / 10);
    if version < LEAST_DRIVER {
        return Err(Absent::OldDriver {
            major: driver.0,
            minor: driver.1,
        });
    }
    match result::init() {
        Err(error) if error.0 == sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => {
            return Err(Absent::NoDevice);
        }
        other => other.map_err(broken)?,
    }
    let devices = result::device::get_count().map_err(broken)?;
    if devices == 0 {
        return Err(Absent::NoDevice);
    }
    let device = result::device::get(0).map_err(broken)?;
    let name = result::device::get_name(device).map_err(broken)?;
    // SAFETY: the device was just given out.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    };
    let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR).map_err(broken)?;
    let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR).map_err(broken)?;
    if major * 10 + minor < LEAST_CAPABILITY {
        return Err(Absent::OldDevice { name, major, minor });
    }
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }.map_err(broken)?;
    Ok(Found {
        name,
        capability: (major, minor),
        memory: memory as u64,
        driver,
        devices,
        cublas: crate::blas::present().is_ok(),
    })
}
