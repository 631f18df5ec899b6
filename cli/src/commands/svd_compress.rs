//! `sparse svd-compress`.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::json;
use sparse_delta::{Kept, Quality, Status, SvdDeltaManifest, SvdOutcome, SvdRank};

use super::{json, print_json};
use crate::args::SvdCompress;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &SvdCompress, context: &Context) -> Result<u8, Failure> {
    let rank = SvdRank::choose(
        args.rank.as_deref(),
        args.ranks.clone(),
        args.energy,
        args.bytes,
    )?;
    let bar = context.bar();
    let mut compress = sparse_delta::SvdCompress::new(&args.base, &args.finetune)
        .rank(rank)
        .max_rank(args.max_rank)
        .precision(args.precision)
        .signs(args.signs)
        .embeddings(args.embeddings)
        .adapter(args.profile.profile())
        .dry_run(args.dry_run)
        .overwrite(args.overwrite)
        .threads(context.global.threads)
        .device(context.device())
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(output) = &args.output {
        compress = compress.output(output);
    }
    let outcome = compress.stage().await?.commit().await?;
    drop(bar);
    context.measure_bytes(
        "model",
        "svd",
        outcome.metrics.original_bytes,
        outcome.metrics.artifact_bytes,
    );
    if context.global.json {
        print_json(&json!({
            "status": outcome.status.name(),
            "path": outcome.path,
            "seconds": outcome.metrics.elapsed.as_secs_f64(),
            "factor_bytes": outcome.metrics.factor_bytes,
            "adapter_bytes": outcome.metrics.adapter_bytes,
            "device_matrices": outcome.metrics.device_matrices,
            "manifest": json(&outcome.manifest),
        }))?;
    } else if context.talks() {
        summary(&outcome)?;
    } else {
        writeln!(std::io::stdout(), "{}", outcome.path)?;
    }
    Ok(0)
}

fn summary(outcome: &SvdOutcome) -> Result<(), Failure> {
    let manifest = &outcome.manifest;
    let mut out = std::io::stdout().lock();
    let what = match outcome.status {
        Status::Created => "created",
        Status::Exists => "exists already, and is sound:",
        Status::DryRun => "dry run, nothing written to",
    };
    writeln!(out, "{what} {}", outcome.path)?;
    writeln!(
        out,
        "  {} -> {}, ratio {:.2}, in {}",
        format::bytes(manifest.original_size_bytes),
        format::bytes(manifest.compressed_size_bytes),
        manifest.compression_ratio,
        format::time(outcome.metrics.elapsed, manifest.original_size_bytes),
    )?;
    qualities(&mut out, manifest)?;
    for adapter in &manifest.adapters {
        writeln!(
            out,
            "  adapter for {} of rank {}: {} ({})",
            adapter.profile,
            adapter.rank,
            adapter.folder,
            format::bytes(adapter.bytes),
        )?;
    }
    Ok(())
}

/// How much is approximated, and how far off it is.
pub(super) fn qualities(
    out: &mut impl std::io::Write,
    manifest: &SvdDeltaManifest,
) -> Result<(), Failure> {
    let mut kept: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in &manifest.tensors {
        *kept.entry(tensor.kept.name()).or_default() += 1;
    }
    let kept: Vec<String> = kept
        .iter()
        .map(|(kept, tensors)| format!("{tensors} {kept}"))
        .collect();
    let why: std::collections::BTreeSet<&str> = manifest
        .tensors
        .iter()
        .filter(|tensor| tensor.kept == Kept::Exact && !tensor.why.is_empty())
        .map(|tensor| tensor.why.as_str())
        .collect();
    let why: Vec<&str> = why.into_iter().collect();
    let note = if why.is_empty() {
        String::new()
    } else {
        format!("; exact where: {}", why.join(", "))
    };
    writeln!(
        out,
        "  {} tensors ({}){note}",
        manifest.tensors.len(),
        kept.join(", ")
    )?;
    for (rank, quality) in manifest.ranks.iter().zip(&manifest.quality) {
        writeln!(out, "  rank {rank}: {}", quality_line(quality))?;
    }
    writeln!(
        out,
        "  largest singular value {:.3e}, effective rank {:.1} on average; rounding explains {:.2} % of the energy",
        manifest.sigma_1,
        manifest.effective_rank,
        100.0 * manifest.noise_share,
    )?;
    Ok(())
}

fn quality_line(quality: &Quality) -> String {
    format!(
        "{:.2} % of the difference's energy, relative error {:.4}, largest error {:.3e}, mean error {:.3e}",
        100.0 * quality.captured_energy,
        quality.relative_error,
        quality.max_abs_error,
        quality.mean_abs_error,
    )
}
