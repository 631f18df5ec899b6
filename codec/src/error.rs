//! What can go wrong in the codec.

use thiserror::Error;

/// A codec failure. The caller adds the file and tensor.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CodecError {
    /// The tensor's data does not have the length its dtype and shape ask for.
    #[error(
        "the data has {found} bytes, but dtype and shape ask for {expected}: the tensor is truncated or mislabelled"
    )]
    Length {
        /// Bytes that dtype and shape ask for.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// A stored header or block that no encoder wrote.
    #[error("the encoded data is corrupt ({what}): fetch the artifact again")]
    Corrupt {
        /// What was found wrong.
        what: &'static str,
    },
    /// The decoder needs a base tensor that was not given, or another one than the encoder had.
    #[error(
        "the block was encoded against a base tensor and {what}: give the base model the delta was made with"
    )]
    Base {
        /// What is wrong with the base.
        what: &'static str,
    },
    /// A difference that no scale can represent.
    #[error(
        "element {element} differs by an infinite amount or is not a number: store the tensor exactly"
    )]
    NotFinite {
        /// The first such element.
        element: u64,
    },
    /// A request the codec cannot serve.
    #[error("{what}")]
    Unsupported {
        /// What was asked, and what to do instead.
        what: String,
    },
}

/// Shorthand for [`CodecError::Corrupt`].
pub(crate) fn corrupt(what: &'static str) -> CodecError {
    CodecError::Corrupt { what }
}
