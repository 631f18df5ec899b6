//! `sparse info`.

use std::io::Write as _;

use serde_json::json;
use sparse_delta::ArtifactInfo;

use super::{json, print_json};
use crate::args::Info;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &Info, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let info = sparse_delta::Info::new(&args.delta)
        .open_options(context.open_options(&bar))
        .run()
        .await?;
    drop(bar);
    if context.global.json {
        print_json(&json!({
            "path": info.path,
            "manifest": json(&info.manifest),
            "tensors": json(&info.tensors),
        }))?;
    } else {
        show(&info)?;
    }
    Ok(0)
}

fn show(info: &ArtifactInfo) -> Result<(), Failure> {
    let manifest = &info.manifest;
    let mut out = std::io::stdout().lock();
    let lines = [
        ("path", info.path.clone()),
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
    let rows: Vec<Vec<String>> = info
        .tensors
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
