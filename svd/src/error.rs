//! What can go wrong in a decomposition.

use thiserror::Error;

/// A failed decomposition. The caller adds the file and tensor.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SvdError {
    /// The difference has elements that are no numbers.
    #[error("the difference has infinite or NaN elements: keep this tensor exactly instead")]
    NotFinite,
    /// The source was told to stop.
    #[error("the decomposition was stopped")]
    Stopped,
    /// A source that cannot give its rows.
    #[error("{what}")]
    Source {
        /// What is wrong, and what to do instead.
        what: String,
    },
    /// Stored factors that no writer wrote.
    #[error("the stored factors are corrupt ({what}): fetch the artifact again")]
    Corrupt {
        /// What was found wrong.
        what: &'static str,
    },
}
