//! Element types, named as safetensors names them.

/// An element type that safetensors can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the names are the documentation: safetensors' own"
)]
pub enum DType {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// Layout of an IEEE-like float: exponent bits, mantissa bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatLayout {
    pub(crate) exponent: u32,
    pub(crate) mantissa: u32,
}

impl DType {
    /// Every dtype, with its safetensors name and its bits per element.
    pub const ALL: [(Self, &'static str, u32); 20] = [
        (Self::Bool, "BOOL", 8),
        (Self::F4, "F4", 4),
        (Self::F6E2M3, "F6_E2M3", 6),
        (Self::F6E3M2, "F6_E3M2", 6),
        (Self::U8, "U8", 8),
        (Self::I8, "I8", 8),
        (Self::F8E5M2, "F8_E5M2", 8),
        (Self::F8E4M3, "F8_E4M3", 8),
        (Self::F8E8M0, "F8_E8M0", 8),
        (Self::I16, "I16", 16),
        (Self::U16, "U16", 16),
        (Self::F16, "F16", 16),
        (Self::BF16, "BF16", 16),
        (Self::I32, "I32", 32),
        (Self::U32, "U32", 32),
        (Self::F32, "F32", 32),
        (Self::C64, "C64", 64),
        (Self::F64, "F64", 64),
        (Self::I64, "I64", 64),
        (Self::U64, "U64", 64),
    ];

    /// The dtype of a safetensors name such as `BF16`; `None` for a name this version does not know.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, n, _)| *n == name)
            .map(|(dtype, _, _)| *dtype)
    }

    /// The safetensors name.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(dtype, _, _)| *dtype == self)
            .map_or("", |(_, name, _)| *name)
    }

    /// Bits per element: 4 and 6 for the packed ones.
    pub fn bits(self) -> u32 {
        Self::ALL
            .iter()
            .find(|(dtype, _, _)| *dtype == self)
            .map_or(8, |(_, _, bits)| *bits)
    }

    /// Whether the elements are floating-point numbers with a sign, an exponent and a mantissa in whole bytes.
    pub fn is_float(self) -> bool {
        self.layout().is_some()
    }

    /// Whether coders elsewhere take its words: floats of two and four bytes.
    pub(crate) fn is_coded_elsewhere(&self) -> bool {
        matches!(self, Self::BF16 | Self::F16 | Self::F32)
    }

    /// The float layout of one word; complex numbers are two words.
    pub(crate) fn layout(self) -> Option<FloatLayout> {
        let (exponent, mantissa) = match self {
            Self::BF16 => (8, 7),
            Self::F16 => (5, 10),
            Self::F32 | Self::C64 => (8, 23),
            Self::F64 => (11, 52),
            Self::F8E4M3 => (4, 3),
            Self::F8E5M2 => (5, 2),
            _ => return None,
        };
        Some(FloatLayout { exponent, mantissa })
    }

    /// Bytes of one coded word: packed types are coded as bytes, complex numbers as two floats.
    pub fn word_bytes(self) -> usize {
        match self.bits() {
            16 => 2,
            32 => 4,
            64 if self == Self::C64 => 4,
            64 => 8,
            _ => 1,
        }
    }
}
