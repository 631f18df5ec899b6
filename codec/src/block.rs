//! Stored blocks: a method byte, then what the method says.

/// How a block is stored. The number is the block's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Equal to the prediction (mostly the base): nothing follows.
    Same = 0,
    /// The elements as they are.
    Raw = 1,
    /// Residuals against the prediction, entropy-coded.
    Delta = 2,
    /// Without a base: exponents entropy-coded, signs and mantissas raw.
    StandAlone = 3,
    /// Without a base: bytes compressed by zstd.
    Zstd = 4,
    /// Quantised differences from the base. Lossy: what comes back is an approximation.
    Int8 = 5,
    /// Residuals against the prediction, each coded by what those before it say.
    Learned = 6,
}

impl Method {
    /// The name reported in SQL and stored in the index.
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Raw => "raw",
            Self::Delta => "delta",
            Self::StandAlone => "stand_alone",
            Self::Zstd => "zstd",
            Self::Int8 => "int8",
            Self::Learned => "learned",
        }
    }

    /// The method of a block's first byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Same,
            Self::Raw,
            Self::Delta,
            Self::StandAlone,
            Self::Zstd,
            Self::Int8,
            Self::Learned,
        ]
        .into_iter()
        .find(|m| *m as u8 == byte)
    }
}

/// What was stored.
#[derive(Clone, Copy, Debug)]
pub struct BlockInfo {
    /// How.
    pub method: Method,
    /// Elements whose bits differ from the base's; all of them where there is no base.
    pub changed: u64,
}
