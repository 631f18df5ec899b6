//! `sparse info`.

use std::io::Write as _;

use serde_json::json;
use sparse_dataset::DatasetInfo;
use sparse_delta::{ArtifactContent, DeltaManifest, Quality, SvdDeltaManifest, TensorReport};

use super::svd_compress::qualities;
use super::{json, print_json};
use crate::args::Info;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &Info, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let open = context.open_options(&bar);
    if sparse_dataset::is_dataset_delta(&args.delta, &open).await? {
        let info = sparse_dataset::Info::new(&args.delta)
            .open_options(open)
            .run()
            .await?;
        drop(bar);
        if context.global.json {
            print_json(&json!({ "path": info.path, "manifest": json(&info.manifest) }))?;
        } else {
            show_dataset(&info)?;
        }
        return Ok(0);
    }
    let info = sparse_delta::Info::new(&args.delta)
        .open_options(open)
        .run()
        .await?;
    drop(bar);
    if context.global.json {
        print_json(&match &info.content {
            ArtifactContent::Delta { manifest, tensors } => json!({
                "path": info.path,
                "manifest": json(manifest),
                "tensors": json(tensors),
            }),
            ArtifactContent::Svd(manifest) => json!({
                "path": info.path,
                "manifest": json(manifest),
            }),
        })?;
    } else {
        match &info.content {
            ArtifactContent::Delta { manifest, tensors } => show(&info.path, manifest, tensors)?,
            ArtifactContent::Svd(manifest) => show_svd(&info.path, manifest)?,
        }
    }
    Ok(0)
}

fn show_svd(path: &str, manifest: &SvdDeltaManifest) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let lines = [
        ("path", path.to_owned()),
        ("kind", manifest.delta_type.clone()),
        ("fine-tune", manifest.finetune_model_id.clone()),
        ("base", manifest.base_model_id.clone()),
        ("base fingerprint", manifest.base.fingerprint.clone()),
        ("key", manifest.key.clone()),
        (
            "created",
            format!(
                "{} by sparse {}, {}, {} factors",
                manifest.created_at, manifest.tool_version, manifest.rule, manifest.precision
            ),
        ),
        (
            "size",
            format!(
                "{} -> {}, ratio {:.2}",
                format::bytes(manifest.original_size_bytes),
                format::bytes(manifest.compressed_size_bytes),
                manifest.compression_ratio
            ),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<17} {value}")?;
    }
    writeln!(out)?;
    qualities(&mut out, manifest)?;
    let rows: Vec<Vec<String>> = manifest
        .rows()
        .iter()
        .map(|row| {
            let quality = |f: fn(&Quality) -> String| row.quality.map(f).unwrap_or_default();
            vec![
                row.tensor.tensor.clone(),
                row.tensor.dtype.clone(),
                format::shape(&row.tensor.shape),
                row.tensor.kept.name().to_owned(),
                quality(|q| q.rank.to_string()),
                quality(|q| format!("{:.4}", q.captured_energy)),
                quality(|q| format!("{:.4}", q.relative_error)),
                quality(|q| format!("{:.2e}", q.max_abs_error)),
                format::count(row.tensor.bytes),
                format::count(row.stored_bytes),
            ]
        })
        .collect();
    let header = [
        "tensor",
        "dtype",
        "shape",
        "kept",
        "rank",
        "energy",
        "rel. error",
        "max error",
        "bytes",
        "compressed",
    ];
    write!(
        out,
        "\n{}",
        format::table(&header, &[4, 5, 6, 7, 8, 9], &rows)
    )?;
    Ok(())
}

fn show(path: &str, manifest: &DeltaManifest, tensors: &[TensorReport]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let lines = [
        ("path", path.to_owned()),
        ("kind", manifest.delta_type.clone()),
        ("fine-tune", manifest.finetune_model_id.clone()),
        ("base", manifest.base_model_id.clone()),
        ("base fingerprint", manifest.base.fingerprint.clone()),
        ("key", manifest.key.clone()),
        (
            "created",
            format!(
                "{} by sparse {}, effort {}",
                manifest.created_at, manifest.tool_version, manifest.effort
            ),
        ),
        (
            "size",
            format!(
                "{} -> {}, ratio {:.2}",
                format::bytes(manifest.original_bytes),
                format::bytes(manifest.artifact_bytes),
                manifest.compression_ratio
            ),
        ),
        (
            "parameters",
            format!(
                "{} of {} changed",
                format::count(manifest.changed_params),
                format::count(manifest.total_params)
            ),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<17} {value}")?;
    }
    if let Some(lossy) = &manifest.lossy {
        writeln!(
            out,
            "{:<17} {}: relative error {:.2e}, {} of {} weights of {} tensors exact",
            "lossy",
            lossy.describe(),
            lossy.relative_error,
            format::count(lossy.exact_params),
            format::count(lossy.params),
            lossy.tensors,
        )?;
    }
    writeln!(out)?;
    for file in &manifest.files {
        writeln!(out, "sha256 {}  {}", file.sha256, file.path)?;
    }
    for file in &manifest.carried {
        writeln!(out, "sha256 {}  {}", file.sha256, file.path)?;
    }
    let rows: Vec<Vec<String>> = tensors
        .iter()
        .map(|tensor| {
            vec![
                tensor.tensor.clone(),
                tensor.dtype.clone(),
                format::shape(&tensor.shape),
                tensor.predictor.clone(),
                tensor.method.clone(),
                format::count(tensor.changed),
                format::count(tensor.bytes),
                format::count(tensor.compressed_bytes),
                format::ratio(tensor.ratio()),
            ]
        })
        .collect();
    let header = [
        "tensor",
        "dtype",
        "shape",
        "predictor",
        "method",
        "changed",
        "bytes",
        "compressed",
        "ratio",
    ];
    write!(out, "\n{}", format::table(&header, &[5, 6, 7, 8], &rows))?;
    Ok(())
}

fn show_dataset(info: &DatasetInfo) -> Result<(), Failure> {
    let manifest = &info.manifest;
    let sizes = &manifest.size_stats;
    let mut out = std::io::stdout().lock();
    let lines = [
        ("path", info.path.clone()),
        ("derivative", manifest.derivative_dataset_id.clone()),
        ("base", manifest.base_dataset_id.clone()),
        ("key", manifest.key.clone()),
        (
            "created",
            format!(
                "{} by sparse {}, effort {}",
                manifest.created_at, manifest.tool_version, manifest.effort
            ),
        ),
        (
            "size",
            format!(
                "{} -> {}, {:.2} % saved",
                format::bytes(sizes.derivative_size_bytes),
                format::bytes(sizes.delta_size_bytes),
                sizes.savings_pct
            ),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<17} {value}")?;
    }
    writeln!(out)?;
    for split in &manifest.splits {
        let restores = super::dataset_compress::restores(split);
        writeln!(out, "hash {}  {}, {restores}", split.hash, split.name)?;
    }
    let rows: Vec<Vec<String>> = manifest
        .splits
        .iter()
        .zip(&info.stored)
        .map(|(split, stored)| {
            let counts = [
                split.base_rows(),
                split.rows,
                split.shared,
                split.edited,
                split.new,
                split.removed,
                *stored,
            ];
            std::iter::once(split.name.clone())
                .chain(counts.map(format::count))
                .collect()
        })
        .collect();
    let header = [
        "split",
        "base rows",
        "rows",
        "shared",
        "edited",
        "new",
        "removed",
        "stored bytes",
    ];
    let numbers = [1, 2, 3, 4, 5, 6, 7];
    write!(out, "\n{}", format::table(&header, &numbers, &rows))?;
    Ok(())
}
