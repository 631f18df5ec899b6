//! Where to compute.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Device, GpuError};

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Choice {
    /// A GPU where there is one that can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, or an error.
    Cuda,
}

impl Choice {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cpu, Self::Cuda];

    /// "auto", "cpu" or "cuda".
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }

    /// Opens the device that the choice asks for; `None` is the CPU. At `auto`, a GPU that is there and fails to open is
    /// logged and passed over.
    ///
    /// # Errors
    /// At `cuda`, no GPU that can be used.
    pub fn open(self) -> Result<Option<Arc<Device>>, GpuError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda => Device::open().map(Some),
            Self::Auto => match Device::open() {
                Ok(device) => Ok(Some(device)),
                Err(GpuError::Absent(_)) => Ok(None),
                Err(error) => {
                    tracing::warn!("computing on the CPU: {error}");
                    Ok(None)
                }
            },
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|choice| choice.name() == text)
            .ok_or_else(|| format!("'{text}' is no device: use auto, cpu or cuda"))
    }
}
