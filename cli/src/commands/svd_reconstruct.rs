//! `sparse svd-reconstruct`.

use std::io::Write as _;

use serde_json::json;
use sparse_delta::{Status, SvdReconstructOutcome};

use super::print_json;
use crate::args::SvdReconstruct;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &SvdReconstruct, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut reconstruct = sparse_delta::SvdReconstruct::new(&args.base, &args.delta)
        .dry_run(args.dry_run)
        .overwrite(args.overwrite)
        .threads(context.global.threads)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(rank) = args.rank {
        reconstruct = reconstruct.rank(rank);
    }
    if let Some(output) = &args.output {
        reconstruct = reconstruct.output(output);
    }
    let outcome = reconstruct.run().await?;
    drop(bar);
    if context.global.json {
        print_json(&json!({
            "status": outcome.status.name(),
            "path": outcome.path,
            "key": outcome.manifest.key,
            "rank": outcome.rank,
            "bytes": outcome.bytes,
            "seconds": outcome.elapsed.as_secs_f64(),
            "files": outcome.files,
        }))?;
    } else if context.talks() {
        summary(&outcome)?;
    } else {
        writeln!(std::io::stdout(), "{}", outcome.path)?;
    }
    Ok(0)
}

fn summary(outcome: &SvdReconstructOutcome) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for file in outcome.files.iter().filter(|file| !file.sha256.is_empty()) {
        writeln!(
            out,
            "{}: sha256 {}  {}",
            file.status, file.sha256, file.file
        )?;
    }
    let what = match outcome.status {
        Status::Created => "created",
        Status::Exists => "exists already, and is the same:",
        Status::DryRun => "dry run, nothing written to",
    };
    writeln!(
        out,
        "{what} {}\n  {} files, {}, an approximation at rank {}, in {}",
        outcome.path,
        outcome.files.len(),
        format::bytes(outcome.bytes),
        outcome.rank,
        format::time(outcome.elapsed, outcome.bytes),
    )?;
    Ok(())
}
