//! One module per command.

mod bench;
mod cache;
mod catalog;
mod completions;
mod compress;
mod compress_adapter;
mod dataset_compress;
mod dataset_diff;
mod dataset_estimate;
mod dataset_reconstruct;
mod diff;
mod features;
mod info;
mod pipeline;
mod reconstruct;
mod sql;
mod svd_compress;
mod svd_reconstruct;
mod unmerge;
mod validate;
mod validate_int8;
mod validation;
mod verify;

use std::io::Write as _;

use crate::args::{Cli, Command};
use crate::context::Context;
use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// Runs the command; returns the exit code.
pub(crate) async fn run(cli: Cli) -> Result<u8, Failure> {
    let context = Context::new(cli.global, Interrupt::listen()?)?;
    let started = std::time::SystemTime::now();
    let name = cli.command.name();
    let ended = command(&cli.command, &context).await;
    context.report_metrics(name, started, &ended).await;
    ended
}

async fn command(command: &Command, context: &Context) -> Result<u8, Failure> {
    match command {
        Command::Compress(args) => compress::run(args, context).await,
        Command::Unmerge(args) => unmerge::run(args, context).await,
        Command::Reconstruct(args) => reconstruct::run(args, context).await,
        Command::SvdCompress(args) => svd_compress::run(args, context).await,
        Command::SvdReconstruct(args) => svd_reconstruct::run(args, context).await,
        Command::CompressAdapter(args) => compress_adapter::run(args, context).await,
        Command::ValidateInt8(args) => validate_int8::run(args, context).await,
        Command::Validate(args) => validate::run(args, context).await,
        Command::Diff(args) => diff::run(args, context).await,
        Command::Info(args) => info::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::DatasetCompress(args) => dataset_compress::run(args, context).await,
        Command::DatasetReconstruct(args) => dataset_reconstruct::run(args, context).await,
        Command::DatasetEstimate(args) => dataset_estimate::run(args, context).await,
        Command::DatasetDiff(args) => dataset_diff::run(args, context).await,
        Command::Bench(args) => bench::run(args, context).await,
        Command::Cache(args) => cache::run(args, context).await,
        Command::Catalog(args) => catalog::run(&args.command, context).await,
        Command::Sql(args) => sql::run(args, context).await,
        Command::Pipeline(args) => pipeline::run(args, context).await,
        Command::Features(_) => features::run(context),
        Command::Completions(args) => completions::run(args),
        Command::Page => {
            write!(std::io::stdout(), "{}", crate::page::page())?;
            Ok(0)
        }
    }
}

/// Prints a JSON document.
fn print_json(document: &serde_json::Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::failed(format!("cannot print JSON: {error}")))?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// A value as JSON; what is printed has no way to fail.
fn json(value: impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}
