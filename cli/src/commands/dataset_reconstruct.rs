//! `sparse dataset-reconstruct`.

use std::io::Write as _;

use serde_json::json;
use sparse_dataset::ReconstructOutcome;
use sparse_delta::Status;

use super::{json, print_json};
use crate::args::DatasetReconstruct;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &DatasetReconstruct, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut reconstruct = sparse_dataset::Reconstruct::new(&args.delta)
        .dry_run(args.dry_run)
        .rows_only(args.rows_only)
        .overwrite(args.overwrite)
        .memory(args.memory.0)
        .threads(context.global.threads)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(base) = &args.base {
        reconstruct = reconstruct.base(base.as_str());
    }
    if let Some(output) = &args.output {
        reconstruct = reconstruct.output(output);
    }
    let outcome = reconstruct.stage().await?.commit().await?;
    drop(bar);
    if context.global.json {
        print_json(&json!({
            "status": outcome.status.name(),
            "path": outcome.path,
            "key": outcome.manifest.key,
            "seconds": outcome.elapsed.as_secs_f64(),
            "splits": json(&outcome.manifest.splits),
        }))?;
    } else if context.talks() {
        summary(&outcome)?;
    } else if let Some(path) = &outcome.path {
        writeln!(std::io::stdout(), "{path}")?;
    }
    Ok(0)
}

fn summary(outcome: &ReconstructOutcome) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for split in &outcome.manifest.splits {
        writeln!(
            out,
            "identical: hash {}  {}, {} rows, {}",
            split.hash,
            split.name,
            format::count(split.rows),
            super::dataset_compress::restores(split)
        )?;
    }
    let path = outcome.path.as_deref().unwrap_or_default();
    match outcome.status {
        Status::Created => writeln!(out, "created {path}")?,
        Status::Exists => writeln!(out, "exists already, and is the same: {path}")?,
        Status::DryRun => writeln!(out, "dry run, nothing written")?,
    }
    let bytes = outcome.manifest.size_stats.derivative_size_bytes;
    writeln!(
        out,
        "  {} splits, in {}",
        outcome.manifest.splits.len(),
        format::time(outcome.elapsed, bytes)
    )?;
    Ok(())
}
