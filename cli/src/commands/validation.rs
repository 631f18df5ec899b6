//! What `validate` and `validate-int8` share.

use std::io::Write as _;
use std::path::Path;

use serde_json::json;
use sparse_inference::{Behaviour, Candidate, Validation};

use super::{json, print_json};
use crate::args::Judging;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

/// A file of prompts this large is not one.
const MAX_PROMPTS: u64 = 64 << 20;

pub(super) async fn run(
    base: &str,
    finetune: &str,
    candidate: Candidate,
    args: &Judging,
    context: &Context,
) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut validate = sparse_inference::Validate::new(base, finetune, candidate)
        .sample_layers(args.sample_layers)
        .max_length(args.max_length)
        .threads(context.global.threads)
        .device(context.device())
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(prompts) = prompts(args)? {
        validate = validate.prompts(prompts);
    }
    let found = validate.run().await?;
    drop(bar);
    if context.global.json {
        print_json(&json!({
            "status": "✅ Completed",
            "rust_acceleration": true,
            "acceleration": found.acceleration,
            "base": base,
            "finetune": finetune,
            "candidate": found.candidate,
            "layer_metrics": json(&found.layer_metrics),
            "behaviour": json(found.behaviour),
            "prompts": json(&found.prompts),
            "notes": found.notes,
            "seconds": found.elapsed.as_secs_f64(),
        }))?;
    } else {
        show(&found, context.talks())?;
    }
    Ok(0)
}

/// The texts of the arguments and of the file; `None` where the built-in ones are meant.
fn prompts(args: &Judging) -> Result<Option<Vec<String>>, Failure> {
    if args.layers_only {
        return Ok(Some(Vec::new()));
    }
    let mut prompts = args.prompt.clone();
    if let Some(path) = &args.prompts {
        prompts.extend(lines(path)?);
    }
    Ok((!prompts.is_empty()).then_some(prompts))
}

/// The lines of a file that are not blank.
fn lines(path: &Path) -> Result<Vec<String>, Failure> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound {
            6
        } else {
            1
        };
        Failure::new(format!("--prompts {shown}: {error}"), code)
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_PROMPTS {
        return Err(Failure::usage(format!(
            "--prompts {shown}: it is larger than {}; give fewer texts",
            format::bytes(MAX_PROMPTS)
        )));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let lines: Vec<String> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect();
    if lines.is_empty() {
        return Err(Failure::usage(format!(
            "--prompts {shown}: it has no texts; write one a line"
        )));
    }
    Ok(lines)
}

fn show(found: &Validation, talks: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if !found.layer_metrics.is_empty() {
        let header = [
            "tensor",
            "dtype",
            "ratio",
            "max error",
            "mean error",
            "relative",
            "cosine",
            "exact",
        ];
        let rows: Vec<Vec<String>> = found
            .layer_metrics
            .iter()
            .map(|layer| {
                vec![
                    layer.name.clone(),
                    layer.dtype.clone(),
                    format!("{:.2}", layer.compression_ratio),
                    format!("{:.3e}", layer.max_abs_error),
                    format!("{:.3e}", layer.mean_abs_error),
                    format!("{:.4}", layer.relative_error),
                    format!("{:.6}", layer.cosine),
                    format!("{:.2} %", 100.0 * layer.exact_share),
                ]
            })
            .collect();
        write!(
            out,
            "{}",
            format::table(&header, &[2, 3, 4, 5, 6, 7], &rows)
        )?;
    }
    if let Some(behaviour) = &found.behaviour {
        if !found.layer_metrics.is_empty() {
            writeln!(out)?;
        }
        for (name, value) in lines_of(behaviour) {
            writeln!(out, "{name:<26} {value}")?;
        }
    }
    for note in &found.notes {
        writeln!(out, "note: {note}")?;
    }
    if talks {
        writeln!(
            out,
            "judged {} on {} in {:.1} s",
            found.candidate,
            match found.prompts.len() {
                1 => "1 prompt".into(),
                count => format!("{count} prompts"),
            },
            found.elapsed.as_secs_f64()
        )?;
    }
    Ok(())
}

/// In the order and units of `llama-perplexity --kl-divergence`.
fn lines_of(b: &Behaviour) -> Vec<(&'static str, String)> {
    let measured = |m: sparse_inference::Measured| format!("{:.6} ± {:.6}", m.value, m.error);
    let percent = |x: f64| format!("{:.3} %", 100.0 * x);
    let (kl, dp) = (&b.divergence, &b.delta_p);
    vec![
        ("positions", format::count(b.positions)),
        ("perplexity, rebuilt", measured(b.perplexity)),
        ("perplexity, fine-tune", measured(b.reference_perplexity)),
        (
            "correlation of ln",
            format!("{:.4} %", 100.0 * b.correlation),
        ),
        ("ln of the ratio", measured(b.ln_ratio)),
        ("ratio", measured(b.ratio)),
        ("difference", measured(b.difference)),
        (
            "KL divergence, mean",
            format!("{:.3e} ± {:.1e}", kl.mean, kl.error),
        ),
        ("KL divergence, maximum", format!("{:.3e}", kl.max)),
        ("KL divergence, 99.9 %", format!("{:.3e}", kl.p99_9)),
        ("KL divergence, 99 %", format!("{:.3e}", kl.p99)),
        ("KL divergence, 95 %", format!("{:.3e}", kl.p95)),
        ("KL divergence, median", format!("{:.3e}", kl.median)),
        ("KL divergence, minimum", format!("{:.3e}", kl.min)),
        (
            "delta p, mean",
            format!("{} ± {}", percent(dp.mean), percent(dp.error)),
        ),
        ("delta p, maximum", percent(dp.max)),
        ("delta p, 99 %", percent(dp.p99)),
        ("delta p, 95 %", percent(dp.p95)),
        ("delta p, median", percent(dp.median)),
        ("delta p, 5 %", percent(dp.p5)),
        ("delta p, 1 %", percent(dp.p1)),
        ("delta p, minimum", percent(dp.min)),
        (
            "delta p, RMS",
            format!("{} ± {}", percent(dp.rms), percent(dp.rms_error)),
        ),
        (
            "same top token",
            format!(
                "{} ± {}",
                percent(b.same_top.value),
                percent(b.same_top.error)
            ),
        ),
    ]
}
