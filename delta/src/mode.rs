//! What a delta keeps: every byte, or an approximation.

use sparse_codec::Granularity;

use crate::{DeltaError, DeltaManifest};

/// What a delta keeps of a fine-tune.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Every byte.
    #[default]
    Lossless,
    /// Of large tensors an approximation: differences from the base as 8-bit codes and scales. Lossy, and labelled so
    /// wherever it is shown.
    Int8(Granularity),
}

impl Mode {
    /// The mode of a name ("lossless" or "int8"); `granularity` belongs to the latter.
    ///
    /// # Errors
    /// Another name, or a granularity for a lossless delta.
    pub fn parse(name: &str, granularity: Option<Granularity>) -> Result<Self, DeltaError> {
        match (name, granularity) {
            ("lossless", None) => Ok(Self::Lossless),
            ("lossless", Some(_)) => Err(DeltaError::usage(
                "a granularity belongs to mode int8: give that mode, or leave the granularity out",
            )),
            ("int8", granularity) => Ok(Self::Int8(granularity.unwrap_or_default())),
            _ => Err(DeltaError::usage(format!(
                "'{name}' is no mode: use lossless or int8"
            ))),
        }
    }

    /// The mode a manifest is of.
    pub(crate) fn of(manifest: &DeltaManifest) -> Self {
        manifest.lossy.as_ref().map_or(Self::Lossless, |lossy| {
            Self::Int8(lossy.granularity.parse().unwrap_or_default())
        })
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lossless => f.pad("lossless"),
            Self::Int8(granularity) => write!(f, "int8 by {granularity}"),
        }
    }
}
