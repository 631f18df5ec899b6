//! The kernels against the CPU's functions, on a real device or on the stand-in.
//!
//! Tests that need a device are ignored. Those of `suite` run on any:
//! `cargo test -p sparse-gpu --test it -- suite:: --ignored --test-threads 1`. The others here run all of them on the stand-in,
//! each in a process whose loader finds it as `libcuda.so`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a failed step is a failed test; numbers are made up"
)]

mod faults;
mod injected;
mod kernels;
mod reference;
mod standin;
mod suite;
