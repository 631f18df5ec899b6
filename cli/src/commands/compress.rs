//! `sparse compress`.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::json;
use sparse_delta::{CompressOutcome, DeltaType, Mode};

use super::print_json;
use crate::args::Compress;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &Compress, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut compress = sparse_delta::Compress::new(&args.base, &args.finetune)
        .effort(args.effort)
        .mode(Mode::parse(&args.mode, args.granularity)?)
        .dry_run(args.dry_run)
        .overwrite(args.overwrite)
        .threads(context.global.threads)
        .device(context.device())
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(adapter) = &args.adapter {
        compress = compress.adapter(adapter);
    }
    if let Some(output) = &args.output {
        compress = compress.output(output);
    }
    let outcome = compress.stage().await?.commit().await?;
    drop(bar);
    print(&outcome, context)
}

/// Tells the metrics and the user what was made.
pub(super) fn print(outcome: &CompressOutcome, context: &Context) -> Result<u8, Failure> {
    let manifest = &outcome.manifest;
    let kind = match manifest.delta_type == DeltaType::Adapter.name() {
        true => "adapter",
        false => "model",
    };
    let codec = manifest
        .lossy
        .as_ref()
        .map_or("lossless", |lossy| lossy.method.as_str());
    context.measure_bytes(
        kind,
        codec,
        outcome.metrics.original_bytes,
        outcome.metrics.artifact_bytes,
    );
    if context.global.json {
        print_json(&document(outcome))?;
    } else if context.talks() {
        summary(outcome)?;
    } else {
        writeln!(std::io::stdout(), "{}", outcome.path)?;
    }
    Ok(0)
}

fn document(outcome: &CompressOutcome) -> serde_json::Value {
    let manifest = &outcome.manifest;
    json!({
        "status": outcome.status.name(),
        "path": outcome.path,
        "key": manifest.key,
        "base": manifest.base_model_id,
        "finetune": manifest.finetune_model_id,
        "effort": manifest.effort,
        "lossy": manifest.lossy,
        "original_bytes": manifest.original_bytes,
        "artifact_bytes": manifest.artifact_bytes,
        "ratio": manifest.compression_ratio,
        "total_params": manifest.total_params,
        "changed_params": manifest.changed_params,
        "device_blocks": outcome.metrics.device_blocks,
        "seconds": outcome.metrics.elapsed.as_secs_f64(),
        "tensors": outcome.tensors,
    })
}

fn summary(outcome: &CompressOutcome) -> Result<(), Failure> {
    let manifest = &outcome.manifest;
    let mut out = std::io::stdout().lock();
    let what = match outcome.status {
        sparse_delta::Status::Created => "created",
        sparse_delta::Status::Exists => "exists already, and is sound:",
        sparse_delta::Status::DryRun => "dry run, nothing written to",
    };
    writeln!(out, "{what} {}", outcome.path)?;
    writeln!(
        out,
        "  {} -> {}, ratio {:.2}, in {}",
        format::bytes(manifest.original_bytes),
        format::bytes(manifest.artifact_bytes),
        manifest.compression_ratio,
        format::time(outcome.metrics.elapsed, manifest.original_bytes),
    )?;
    if let Some(lossy) = &manifest.lossy {
        writeln!(
            out,
            "  lossy ({}): {} tensors approximated, relative error {:.2e}, {:.2} % of their weights exact",
            lossy.describe(),
            lossy.tensors,
            lossy.relative_error,
            100.0 * lossy.exact_params as f64 / lossy.params.max(1) as f64,
        )?;
    }
    let mut methods: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in &outcome.tensors {
        *methods.entry(&tensor.method).or_default() += 1;
    }
    let methods: Vec<String> = methods
        .iter()
        .map(|(method, tensors)| format!("{tensors} {method}"))
        .collect();
    writeln!(
        out,
        "  {} tensors ({}), {} of {} parameters changed",
        manifest.num_layers,
        methods.join(", "),
        format::count(manifest.changed_params),
        format::count(manifest.total_params),
    )?;
    Ok(())
}
