//! Remote models against servers on this machine: what they send, what they break, and what is never sent to them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod http;
mod hub;
mod server;
mod standin;
mod support;
