//! `sparse dataset-compress`.

use std::io::Write as _;

use serde_json::json;
use sparse_dataset::{CompressOutcome, Format, Restores, SplitEntry};
use sparse_delta::Status;

use super::{json, print_json};
use crate::args::DatasetCompress;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &DatasetCompress, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut compress = sparse_dataset::Compress::new(args.base.as_str(), args.derivative.as_str())
        .splits(args.splits.clone())
        .effort(args.effort)
        .restore(args.restore)
        .dry_run(args.dry_run)
        .overwrite(args.overwrite)
        .memory(args.memory.0)
        .threads(context.global.threads)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(output) = &args.output {
        compress = compress.output(output);
    }
    let outcome = compress.stage().await?.commit().await?;
    drop(bar);
    let sizes = &outcome.manifest.size_stats;
    context.measure_bytes(
        "dataset",
        "lossless",
        sizes.derivative_size_bytes,
        sizes.delta_size_bytes,
    );
    let rows = outcome.manifest.row_counts();
    context.measure_rows(&[
        ("shared", rows.shared),
        ("edited", rows.edited),
        ("new", rows.new),
        ("removed", rows.removed),
    ]);
    if context.global.json {
        print_json(&json!({
            "status": outcome.status.name(),
            "path": outcome.path,
            "seconds": outcome.elapsed.as_secs_f64(),
            "manifest": json(&outcome.manifest),
        }))?;
    } else if context.talks() {
        summary(&outcome)?;
    } else if let Some(path) = &outcome.path {
        writeln!(std::io::stdout(), "{path}")?;
    }
    Ok(0)
}

fn summary(outcome: &CompressOutcome) -> Result<(), Failure> {
    let manifest = &outcome.manifest;
    let sizes = &manifest.size_stats;
    let mut out = std::io::stdout().lock();
    let path = outcome.path.as_deref().unwrap_or_default();
    match outcome.status {
        Status::Created => writeln!(out, "created {path}")?,
        Status::Exists => writeln!(out, "exists already, and is sound: {path}")?,
        Status::DryRun => writeln!(out, "dry run, nothing written")?,
    }
    writeln!(
        out,
        "  {} -> {}, {:.2} % saved, in {}",
        format::bytes(sizes.derivative_size_bytes),
        format::bytes(sizes.delta_size_bytes),
        sizes.savings_pct,
        format::time(outcome.elapsed, sizes.derivative_size_bytes),
    )?;
    for split in &manifest.splits {
        writeln!(
            out,
            "  {}: {} rows ({} shared, {} edited, {} new), {} removed",
            split.name,
            format::count(split.rows),
            format::count(split.shared),
            format::count(split.edited),
            format::count(split.new),
            format::count(split.removed),
        )?;
        writeln!(out, "    comes back {}", restores(split))?;
    }
    Ok(())
}

/// How a split comes back.
pub(super) fn restores(split: &SplitEntry) -> String {
    let what = match (&split.restores, split.format) {
        (Restores::Bytes(_), _) => return "byte for byte".to_owned(),
        (Restores::Rows, Format::Csv | Format::Jsonl) => {
            return "row for row, in a text file written anew".to_owned();
        }
        (Restores::Rows, _) => "row for row, in a file written anew",
    };
    let why = match &split.why {
        Some(why) => why,
        None if split.is_base() => "it has the rows of its base, and no more is stored",
        None => "its bytes depend on the writer",
    };
    format!("{what}: {why}")
}
