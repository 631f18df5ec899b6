//! Encoder options and per-thread buffers.

use std::{fmt, str::FromStr, sync::Arc};

use crate::tables::SharedTables;

/// How hard the encoder tries. Decoding takes the same path whatever was chosen, but for tensors of which few words changed: at
/// [`Effort::Max`] these may be learned word by word, about a tenth smaller, and a hundred times slower to decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Effort {
    /// Fewest tables, smallest samples; no low-rank prediction is sought.
    Fast,
    /// The trade most want: scales from the rows' means, tables from samples, adapters sought where a few matrices look like it.
    #[default]
    Default,
    /// Smallest output: scales by search, tables from every token, low-rank predictions tried on every matrix, few changes learned.
    Max,
}

impl FromStr for Effort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fast" => Ok(Self::Fast),
            "default" => Ok(Self::Default),
            "max" => Ok(Self::Max),
            _ => Err(format!(
                "'{text}' is not an effort: use fast, default or max"
            )),
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fast => "fast",
            Self::Default => "default",
            Self::Max => "max",
        })
    }
}

/// What the encoder is told.
#[derive(Clone, Debug, Default)]
pub struct EncodeOptions {
    /// How hard to try.
    pub effort: Effort,
    /// Frequency tables of the whole model, which the decoder will be given too. Without them every tensor stores its own.
    pub shared: Option<Arc<SharedTables>>,
}

/// Reusable per-thread buffers, so that coding a block allocates nothing once they have grown.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Table of each coded word.
    pub(crate) tables: Vec<u8>,
    /// Token of each coded word.
    pub(crate) tokens: Vec<u8>,
    /// Tokens of all words, cold ones too.
    pub(crate) dense: Vec<u8>,
    /// Which words of each group are coded.
    pub(crate) masks: Vec<u32>,
    /// Which words of each group changed, and which of them have raw bits.
    pub(crate) changed: Vec<u32>,
    pub(crate) wide: Vec<u32>,
    /// Magnitudes of coded words with raw bits.
    pub(crate) sizes: Vec<u32>,
    /// Coded words whose token has no frequency.
    pub(crate) missing: Vec<u32>,
    /// States and words of the coder.
    pub(crate) coder_bytes: Vec<u8>,
    /// Words of the coder.
    pub(crate) words: Vec<[u8; 2]>,
    /// Raw bits, or a block that may be kept.
    pub(crate) bytes: Vec<u8>,
    pub(crate) side: Vec<u8>,
    /// Which coded words are mirrored.
    pub(crate) sides: Vec<u8>,
    pub(crate) strip: Vec<u8>,
    pub(crate) patches: Vec<crate::patches::Patch>,
}
