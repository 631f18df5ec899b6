//! `sparse_dataset_compress(base, derivative [, output])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::{Result, exec_datafusion_err};
use sparse_dataset::{Compress, CompressOutcome, Restore, SplitEntry, StagedDelta};

use super::{CancelOnDrop, failed_row, threads};
use crate::function::{Action, Committed, Inputs, Request, SparseFunction, Staged, Writer};
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error, rows};

static SPEC: Spec = Spec {
    name: "sparse_dataset_compress",
    row: "split",
    description: "The delta of a derivative dataset against its base, from which it is rebuilt exactly: schema, order, duplicates \
                  and every bit of every value. No key is needed. It is complete at `output` before the first row is returned; the \
                  same call again finds it and returns status `exists`.",
    inputs: &[
        Parameter::dataset("base", super::DATASET),
        Parameter::dataset("derivative", "The derivative dataset, given like the base."),
        Parameter::optional(
            "output",
            "Where the artifact goes: a folder or an object-store URL. Default: its key, in the delta store.",
        ),
    ],
    options: &[
        Parameter::of(
            "splits",
            Kind::Texts,
            "The splits of the derivative to store. Default: all.",
        ),
        Parameter::choice(
            "effort",
            &["fast", "default", "max"],
            None,
            "How hard to try; the session's sparse.effort where it is not given. default: new values are told by mixing, in splits \
             of more than 262144 rows only where they are few; max: by mixing, however many, at a megabyte or two of them a second, \
             both ways.",
        ),
        Parameter::choice(
            "restore",
            &sparse_dataset::Restore::NAMES,
            Some("auto"),
            "What comes back of Parquet files: rows, in files written anew; bytes, whatever it costs; auto: bytes where it costs little.",
        ),
        super::MEMORY,
        Parameter::flag("dry_run", "Compute everything, write nothing."),
        Parameter::flag(
            "overwrite",
            "Replace another dataset delta at the output. Nothing but one is ever replaced.",
        ),
        super::ON_ERROR,
    ],
    columns: &[
        Column::new("base", Type::Text, "The base dataset, as given."),
        Column::new("derivative", Type::Text, "The derivative, as given."),
        Column::new("split", Type::Text, "The split of the derivative."),
        Column::new(
            "base_split",
            Type::Text,
            "The splits of the base it was made from.",
        ),
        Column::new("base_rows", Type::Count, "Their rows."),
        Column::new("rows", Type::Count, "Rows of the derivative's split."),
        Column::new(
            "shared",
            Type::Count,
            "Rows that are in the base as they are.",
        ),
        Column::new(
            "edited",
            Type::Count,
            "Rows made from one of the base by changing values.",
        ),
        Column::new("new", Type::Count, "Rows that are not in the base."),
        Column::new(
            "removed",
            Type::Count,
            "Rows of the base that are not used.",
        ),
        Column::new(
            "restores",
            Type::Text,
            "What comes back of the split's files: bytes, or rows in files written anew.",
        ),
        Column::new(
            "base_size_bytes",
            Type::Count,
            "Bytes of the base, of all splits together (of a table: in memory).",
        ),
        Column::new(
            "derivative_size_bytes",
            Type::Count,
            "Bytes of the derivative, of all splits together.",
        ),
        Column::new(
            "delta_size_bytes",
            Type::Count,
            "Bytes of the whole artifact.",
        ),
        Column::new(
            "savings_pct",
            Type::Real,
            "What the artifact saves of the derivative's bytes, in percent.",
        ),
        Column::new(
            "path",
            Type::Text,
            "Where the artifact is; null after a dry run.",
        ),
        Column::new(
            "status",
            Type::Text,
            "created, exists (the same artifact was there), dry_run or failed.",
        ),
        Column::new("message", Type::Text, "Why it failed; null otherwise."),
    ],
    examples: &[
        "SELECT split, shared, edited, new, removed, delta_size_bytes, savings_pct, status\n\
         FROM sparse_dataset_compress('examples/datasets/wordnet/base', 'examples/datasets/wordnet/derivative', '{tmp}/delta');",
        "-- Tables and subqueries are datasets of one split, train.\n\
         CREATE VIEW words AS SELECT * FROM 'examples/datasets/wordnet/base/train.parquet';\n\
         SELECT shared, edited, new, removed, status\n\
         FROM sparse_dataset_compress(words, (SELECT *, upper(word) AS shouted FROM words WHERE pos = 'n' ORDER BY id), '{tmp}/nouns');",
    ],
};

#[derive(Debug)]
pub(super) struct SparseDatasetCompress;

impl SparseFunction for SparseDatasetCompress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseDatasetCompress {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let base = rows::dataset(&SPEC, &inputs, &request, 0)?;
        let derivative = rows::dataset(&SPEC, &inputs, &request, 1)?;
        let options = &request.options;
        let effort = match options.text("effort") {
            Some(effort) => effort
                .parse()
                .map_err(|e| exec_datafusion_err!("effort: {e}"))?,
            None => request.config.effort,
        };
        let (_guard, cancel) = CancelOnDrop::new();
        let mut compress = Compress::new(base, derivative)
            .splits(options.texts("splits").unwrap_or_default())
            .effort(effort)
            .restore(match options.text("restore") {
                Some(restore) => restore
                    .parse()
                    .map_err(|e| exec_datafusion_err!("restore: {e}"))?,
                None => Restore::Auto,
            })
            .memory(super::memory(&request)?)
            .dry_run(options.flag("dry_run"))
            .overwrite(options.flag("overwrite"))
            .open_options(request.config.open_options())
            .cancel(cancel);
        if let Some(output) = inputs.get(2).and_then(Option::as_deref) {
            compress = compress.output(output);
        }
        if let Some(threads) = threads(&request) {
            compress = compress.threads(threads);
        }
        let delta = compress.stage().await.map_err(error::dataset)?;
        Ok(Box::new(Pair { inputs, delta }))
    }

    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
        failed_row(&SPEC, inputs, message)
    }
}

/// A delta that is complete and not visible yet.
struct Pair {
    inputs: Inputs,
    delta: StagedDelta,
}

#[async_trait]
impl Staged for Pair {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let outcome = self.delta.commit().await.map_err(error::dataset)?;
        let sizes = &outcome.manifest.size_stats;
        Ok(Committed {
            rows: batch(&self.inputs, &outcome)?,
            bytes_read: sizes.base_size_bytes + sizes.derivative_size_bytes,
            bytes_written: match outcome.status {
                sparse_delta::Status::Created => sizes.delta_size_bytes,
                _ => 0,
            },
            original_bytes: sizes.derivative_size_bytes,
            artifact_bytes: sizes.delta_size_bytes,
            counts: row_classes(&outcome),
        })
    }
}

/// Rows of all splits by what became of them; a pipeline's metrics sum them.
fn row_classes(outcome: &CompressOutcome) -> Vec<(&'static str, u64)> {
    let rows = outcome.manifest.row_counts();
    vec![
        ("shared_rows", rows.shared),
        ("edited_rows", rows.edited),
        ("new_rows", rows.new),
        ("removed_rows", rows.removed),
    ]
}

fn batch(inputs: &Inputs, outcome: &CompressOutcome) -> Result<RecordBatch> {
    let splits = &outcome.manifest.splits;
    let sizes = &outcome.manifest.size_stats;
    let same = |value: Option<&str>| columns::texts(vec![value; splits.len()]);
    let total = |value: u64| columns::counts(vec![Some(value); splits.len()]);
    let count =
        |f: fn(&SplitEntry) -> u64| columns::counts(splits.iter().map(|split| Some(f(split))));
    let all = vec![
        same(inputs.first().and_then(Option::as_deref)),
        same(inputs.get(1).and_then(Option::as_deref)),
        columns::texts(splits.iter().map(|split| Some(&split.name))),
        columns::texts(splits.iter().map(SplitEntry::base_names)),
        count(SplitEntry::base_rows),
        count(|split| split.rows),
        count(|split| split.shared),
        count(|split| split.edited),
        count(|split| split.new),
        count(|split| split.removed),
        columns::texts(splits.iter().map(|split| Some(split.restores.name()))),
        total(sizes.base_size_bytes),
        total(sizes.derivative_size_bytes),
        total(sizes.delta_size_bytes),
        columns::reals(vec![Some(sizes.savings_pct); splits.len()]),
        same(outcome.path.as_deref()),
        same(Some(outcome.status.name())),
        same(None),
    ];
    columns::batch(SPEC.schema(), all, splits.len())
}
