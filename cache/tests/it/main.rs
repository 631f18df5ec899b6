//! The cache through its public surface: alone, and with many processes at once.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod hammer;
mod jobs;
mod one;
mod support;
