//! How the pages of a file are compressed.

use super::snappy;
use crate::DatasetError;

/// A way to compress that gives the bytes a known writer gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// Not at all.
    Plain,
    Snappy(snappy::Kind),
    /// One frame with its content's size, at a level.
    Zstd(u8),
}

impl Codec {
    /// All, the likely ones first.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [
            Self::Plain,
            Self::Snappy(snappy::Kind::Large),
            Self::Snappy(snappy::Kind::Small),
        ]
        .into_iter()
        .chain([1, 3].into_iter().map(Self::Zstd))
        .chain(
            (1..=22)
                .filter(|level| ![1, 3].contains(level))
                .map(Self::Zstd),
        )
    }

    /// As a recipe has it.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Snappy(snappy::Kind::Large) => 1,
            Self::Snappy(snappy::Kind::Small) => 2,
            Self::Zstd(level) => 16 + level,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::all().find(|codec| codec.code() == code)
    }

    pub(super) fn compress(self, raw: &[u8]) -> Result<Vec<u8>, DatasetError> {
        match self {
            Self::Plain => Ok(raw.to_vec()),
            Self::Snappy(kind) => Ok(snappy::compress(raw, kind)),
            Self::Zstd(level) => zstd::bulk::compress(raw, level.into())
                .map_err(|error| DatasetError::internal(format!("zstd failed: {error}"))),
        }
    }
}
