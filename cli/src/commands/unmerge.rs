//! `sparse unmerge`.

use std::io::Write as _;

use serde_json::json;
use sparse_delta::{Status, UnmergeOutcome};

use super::print_json;
use crate::args::Unmerge;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &Unmerge, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut unmerge = sparse_delta::Unmerge::new(&args.base, &args.merged)
        .overwrite(args.overwrite)
        .threads(context.global.threads)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(output) = &args.output {
        unmerge = unmerge.output(output);
    }
    let outcome = unmerge.stage().await?.commit().await?;
    drop(bar);
    if context.global.json {
        let (exact, params) = outcome.exact();
        print_json(&json!({
            "status": outcome.status.name(),
            "path": outcome.path,
            "params": params,
            "exact": exact,
            "exact_share": exact as f64 / params.max(1) as f64,
            "seconds": outcome.elapsed.as_secs_f64(),
            "tensors": outcome.tensors,
        }))?;
    } else if context.talks() {
        summary(&outcome)?;
    } else if let Some(path) = &outcome.path {
        writeln!(std::io::stdout(), "{path}")?;
    }
    Ok(0)
}

fn summary(outcome: &UnmergeOutcome) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let path = outcome.path.as_deref().unwrap_or_default();
    match outcome.status {
        Status::Created => writeln!(out, "created {path}")?,
        Status::Exists => writeln!(out, "exists already, and is the same: {path}")?,
        Status::DryRun => writeln!(out, "dry run, nothing written")?,
    }
    let count = |status: &str| {
        outcome
            .tensors
            .iter()
            .filter(|t| t.status == status)
            .count()
    };
    let ranks: Vec<u64> = outcome.tensors.iter().filter_map(|t| t.rank).collect();
    writeln!(
        out,
        "  {} tensors in the adapter (rank {} to {}), {} unchanged, {} left out, in {:.1} s",
        count("adapter"),
        ranks.iter().min().unwrap_or(&0),
        ranks.iter().max().unwrap_or(&0),
        count("same"),
        count("left_out"),
        outcome.elapsed.as_secs_f64(),
    )?;
    let (exact, params) = outcome.exact();
    writeln!(
        out,
        "  merging it gives {} of {} weights exactly ({:.4} %)",
        format::count(exact),
        format::count(params),
        100.0 * exact as f64 / params.max(1) as f64,
    )?;
    for tensor in outcome.tensors.iter().filter(|t| t.status == "left_out") {
        writeln!(
            out,
            "  left out: {} (its update is not of low rank)",
            tensor.tensor
        )?;
    }
    Ok(())
}
