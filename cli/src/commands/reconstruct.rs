//! `sparse reconstruct`.

use std::io::Write as _;

use serde_json::json;
use sparse_delta::{ReconstructOutcome, Status};

use super::print_json;
use crate::args::Reconstruct;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &Reconstruct, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut reconstruct = sparse_delta::Reconstruct::new(&args.base, &args.delta)
        .dry_run(args.dry_run)
        .overwrite(args.overwrite)
        .threads(context.global.threads)
        .device(context.device())
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(output) = &args.output {
        reconstruct = reconstruct.output(output);
    }
    if let Some(rule) = args.merge {
        reconstruct = reconstruct.merge(rule);
    }
    let outcome = reconstruct.stage().await?.commit().await?;
    drop(bar);
    if context.global.json {
        print_json(&json!({
            "status": outcome.status.name(),
            "path": outcome.path,
            "key": outcome.manifest.key,
            "lossy": outcome.manifest.lossy,
            "bytes": outcome.metrics.bytes,
            "device_blocks": outcome.metrics.device_blocks,
            "seconds": outcome.metrics.elapsed.as_secs_f64(),
            "files": outcome.files,
        }))?;
    } else if context.talks() {
        summary(&outcome)?;
    } else {
        writeln!(std::io::stdout(), "{}", outcome.path)?;
    }
    Ok(0)
}

fn summary(outcome: &ReconstructOutcome) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for file in &outcome.files {
        let how = match file.status.as_str() {
            "merged" => "merged",
            "approximated" => "approximate",
            _ => "identical",
        };
        writeln!(out, "{how}: sha256 {}  {}", file.sha256, file.file)?;
    }
    if let Some(lossy) = &outcome.manifest.lossy {
        writeln!(
            out,
            "lossy ({}): the weights are not those of {}",
            lossy.describe(),
            outcome.manifest.finetune_model_id
        )?;
    }
    let what = match outcome.status {
        Status::Created => "created",
        Status::Exists => "exists already, and is the same:",
        Status::DryRun => "dry run, nothing written to",
    };
    writeln!(
        out,
        "{what} {}\n  {} files, {}, in {}",
        outcome.path,
        outcome.files.len(),
        format::bytes(outcome.metrics.bytes),
        format::time(outcome.metrics.elapsed, outcome.metrics.bytes),
    )?;
    Ok(())
}
