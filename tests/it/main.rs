//! End-to-end tests, through what users touch: SQL, the `sparse` binary, the library's builders. Compiled as part of
//! `sparse-cli`, so that cargo builds the binary first.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed step is a failed test"
)]

mod adapters;
mod approximations;
mod bounded;
mod catalog;
mod cli;
mod dataset_pairs;
mod datasets;
mod dependencies;
mod docs;
mod full_disk;
mod gpu;
mod hostile;
mod http;
mod kill;
mod library;
mod main_job;
mod models;
mod monitoring;
mod object_store;
mod oracles;
mod pipelines;
mod quality;
mod serve;
mod shell;
mod slt;
mod sql_writes;
mod support;
