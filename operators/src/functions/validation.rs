//! What `sparse_validate` and `sparse_validate_int8` share: options, columns, rows.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::{Result, exec_datafusion_err};
use sparse_inference::{Behaviour, Candidate, LayerMetrics, Sample, Validate, Validation};

use super::{CancelOnDrop, threads};
use crate::function::Request;
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error};

/// Options in the order of the API reference.
pub(super) const SAMPLE_LAYERS: Parameter = Parameter::of(
    "sample_layers",
    Kind::Count(&["all"]),
    "How many of the largest tensors that are not exact are measured; 'all' of them.",
)
.by_default("2");
pub(super) const PROMPTS: Parameter = Parameter::of(
    "prompts",
    Kind::Texts,
    "The texts both models are run on; a small built-in set where none are given; [] runs nothing.",
);
pub(super) const MAX_LENGTH: Parameter = Parameter::of(
    "max_length",
    Kind::Count(&[]),
    "Tokens of a text that are looked at; never more than the model's positions.",
)
.by_default("128");

pub(super) const COLUMNS: &[Column] = &[
    Column::new(
        "kind",
        Type::Text,
        "layer, prompt, all prompts (their positions together), or note (what a reader must know).",
    ),
    Column::new("name", Type::Text, "The tensor, the prompt, or the note."),
    Column::new("dtype", Type::Text, "A layer's element type."),
    Column::new("shape", Type::Shape, "A layer's dimensions."),
    Column::new(
        "compression_ratio",
        Type::Real,
        "A layer's bytes over those kept: codes and scales as they are for INT8, as stored for deltas.",
    ),
    Column::new(
        "max_abs_error",
        Type::Real,
        "Largest error of a layer's difference from the base: for INT8 before rounding to the dtype, for deltas after.",
    ),
    Column::new("mean_abs_error", Type::Real, "The mean error."),
    Column::new(
        "relative_error",
        Type::Real,
        "The norm of the errors over that of the difference; 0 where nothing differs.",
    ),
    Column::new(
        "cosine",
        Type::Real,
        "Cosine of the angle between the difference and what is kept of it.",
    ),
    Column::new(
        "exact_share",
        Type::Real,
        "The share of a layer's elements that come back bit for bit.",
    ),
    Column::new(
        "positions",
        Type::Count,
        "Positions whose next token is known: one fewer than the tokens of a prompt. What follows is over these, the \
         fine-tune being the reference, in nats, as llama-perplexity --kl-divergence reports it.",
    ),
    Column::new("perplexity", Type::Real, "Perplexity of the rebuilt model."),
    Column::new("perplexity_error", Type::Real, "Its standard error."),
    Column::new(
        "reference_perplexity",
        Type::Real,
        "Perplexity of the fine-tune.",
    ),
    Column::new(
        "reference_perplexity_error",
        Type::Real,
        "Its standard error.",
    ),
    Column::new(
        "ln_ratio",
        Type::Real,
        "ln(perplexity / reference_perplexity).",
    ),
    Column::new("ln_ratio_error", Type::Real, "Its standard error."),
    Column::new(
        "kl_mean",
        Type::Real,
        "Mean Kullback-Leibler divergence of the rebuilt model from the fine-tune.",
    ),
    Column::new("kl_error", Type::Real, "Its standard error."),
    Column::new("kl_max", Type::Real, "Largest divergence."),
    Column::new("kl_p99_9", Type::Real, "Its 99.9th percentile."),
    Column::new("kl_p99", Type::Real, "Its 99th percentile."),
    Column::new("kl_p95", Type::Real, "Its 95th percentile."),
    Column::new("kl_median", Type::Real, "Its median."),
    Column::new(
        "same_top",
        Type::Real,
        "The share of positions where both find the same token the most probable.",
    ),
    Column::new("same_top_error", Type::Real, "Its standard error."),
    Column::new(
        "delta_p_mean",
        Type::Real,
        "Mean change of the probability of the token that follows, as a share of 1.",
    ),
    Column::new("delta_p_error", Type::Real, "Its standard error."),
    Column::new("delta_p_rms", Type::Real, "The root of its mean square."),
    Column::new("delta_p_max", Type::Real, "Its maximum."),
    Column::new("delta_p_p99", Type::Real, "Its 99th percentile."),
    Column::new("delta_p_p95", Type::Real, "Its 95th percentile."),
    Column::new("delta_p_median", Type::Real, "Its median."),
    Column::new("delta_p_p5", Type::Real, "Its 5th percentile."),
    Column::new("delta_p_p1", Type::Real, "Its 1st percentile."),
    Column::new("delta_p_min", Type::Real, "Its minimum."),
    Column::new("candidate", Type::Text, "What was judged."),
    Column::new(
        "acceleration",
        Type::Text,
        "The instruction set that computed.",
    ),
    Column::new("status", Type::Text, "completed."),
];

/// The behaviour columns, in their order.
const BEHAVIOUR: [fn(&Behaviour) -> f64; 25] = [
    |b| b.perplexity.value,
    |b| b.perplexity.error,
    |b| b.reference_perplexity.value,
    |b| b.reference_perplexity.error,
    |b| b.ln_ratio.value,
    |b| b.ln_ratio.error,
    |b| b.divergence.mean,
    |b| b.divergence.error,
    |b| b.divergence.max,
    |b| b.divergence.p99_9,
    |b| b.divergence.p99,
    |b| b.divergence.p95,
    |b| b.divergence.median,
    |b| b.same_top.value,
    |b| b.same_top.error,
    |b| b.delta_p.mean,
    |b| b.delta_p.error,
    |b| b.delta_p.rms,
    |b| b.delta_p.max,
    |b| b.delta_p.p99,
    |b| b.delta_p.p95,
    |b| b.delta_p.median,
    |b| b.delta_p.p5,
    |b| b.delta_p.p1,
    |b| b.delta_p.min,
];

/// Runs a validation and returns its rows.
pub(super) async fn run(
    spec: &Spec,
    base: &str,
    finetune: &str,
    candidate: Candidate,
    request: &Arc<Request>,
) -> Result<RecordBatch> {
    let options = &request.options;
    let sample: Sample = options
        .text("sample_layers")
        .unwrap_or("2")
        .parse()
        .map_err(|e| exec_datafusion_err!("sample_layers: {e}"))?;
    let max_length = options.count("max_length").unwrap_or(128);
    let (_guard, cancel) = CancelOnDrop::new();
    let mut validate = Validate::new(base, finetune, candidate)
        .sample_layers(sample)
        .max_length(usize::try_from(max_length).unwrap_or(usize::MAX))
        .device(request.config.device)
        .open_options(request.config.open_options())
        .cancel(cancel);
    if let Some(prompts) = options.texts("prompts") {
        validate = validate.prompts(prompts);
    }
    if let Some(threads) = threads(request) {
        validate = validate.threads(threads);
    }
    let found = validate.run().await.map_err(error::inference)?;
    request.project(&batch(spec, &found)?)
}

/// A row of the result.
#[derive(Clone, Copy)]
struct Row<'v> {
    kind: &'static str,
    name: Option<&'v str>,
    layer: Option<&'v LayerMetrics>,
    behaviour: Option<&'v Behaviour>,
}

fn rows(found: &Validation) -> Vec<Row<'_>> {
    let row = |kind, name| Row {
        kind,
        name,
        layer: None,
        behaviour: None,
    };
    let layers = found.layer_metrics.iter().map(|layer| Row {
        layer: Some(layer),
        ..row("layer", Some(layer.name.as_str()))
    });
    let prompts = found.prompts.iter().map(|prompt| Row {
        behaviour: prompt.behaviour.as_ref(),
        ..row("prompt", Some(prompt.prompt.as_str()))
    });
    let all = found.behaviour.iter().map(|behaviour| Row {
        behaviour: Some(behaviour),
        ..row("all prompts", None)
    });
    let notes = found
        .notes
        .iter()
        .map(|note| row("note", Some(note.as_str())));
    layers.chain(prompts).chain(all).chain(notes).collect()
}

fn batch(spec: &Spec, found: &Validation) -> Result<RecordBatch> {
    let rows = rows(found);
    let layer =
        |f: fn(&LayerMetrics) -> f64| columns::reals(rows.iter().map(|row| row.layer.map(f)));
    let same = |text: &str| columns::texts(vec![Some(text); rows.len()]);
    let empty: &[u64] = &[];
    let mut all = vec![
        columns::texts(rows.iter().map(|row| Some(row.kind))),
        columns::texts(rows.iter().map(|row| row.name)),
        columns::texts(rows.iter().map(|row| row.layer.map(|l| l.dtype.as_str()))),
        columns::shapes(rows.iter().map(|row| row.layer.map_or(empty, |l| &l.shape)))?,
        layer(|l| l.compression_ratio),
        layer(|l| l.max_abs_error),
        layer(|l| l.mean_abs_error),
        layer(|l| l.relative_error),
        layer(|l| l.cosine),
        layer(|l| l.exact_share),
        columns::counts(rows.iter().map(|row| row.behaviour.map(|b| b.positions))),
    ];
    all.extend(
        BEHAVIOUR
            .iter()
            .map(|f| columns::reals(rows.iter().map(|row| row.behaviour.map(f)))),
    );
    all.push(same(&found.candidate));
    all.push(same(&found.acceleration));
    all.push(same("completed"));
    columns::batch(spec.schema(), all, rows.len())
}
