//! `sparse_find_base(model, catalog)`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_catalog::{BaseFound, Catalog, FindBase};

use super::{CancelOnDrop, once};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_find_base",
    row: "model",
    description: "The base a fine-tune descends from, among the models of a catalog, by its weights. Of each model a few hundred \
                  kilobytes are read, at the same places; names may differ by leading components, dtypes and vocabulary rows may \
                  differ. Fine-tunes of one base often move alike, so relatives are compared with one another too: the base is the \
                  one from which all of them are nearest. From one relative alone nothing says which of the two came first.",
    inputs: &[
        Parameter::required("model", "The fine-tune: a path, or a Hub id."),
        Parameter::required(
            "catalog",
            "Where to look, as in sparse_models. Only models whose weights are on this machine are compared.",
        ),
    ],
    options: &[],
    columns: &[
        Column::new(
            "base",
            Type::Text,
            "The base; null where there is none in the catalog.",
        ),
        Column::new(
            "outcome",
            Type::Text,
            "found (by the weights), declared (the model names it, and the weights do not speak against it), root (the model is \
             itself the base of its relatives), copy (only the same weights under another name were found) or none (no relative, or only \
             siblings by what they say).",
        ),
        Column::new(
            "score",
            Type::Real,
            "1 - bit distance / the bit distance of strangers, measured on the same samples: 1 for the same weights, around 0 for \
             strangers. A relative has at least 0.08, six standard errors above 0.",
        ),
        Column::new(
            "confidence",
            Type::Real,
            "The share of 200 repeated draws of the samples that choose the same base among the relatives.",
        ),
        Column::new(
            "bit_distance",
            Type::Real,
            "Mean over the samples of log2(1 + steps between two weights), a step being 1/128 of an octave.",
        ),
        Column::new("declared", Type::Text, "The base that the model names."),
        Column::new(
            "nearest",
            Type::Text,
            "The relative with the least distance: the base, or a sibling.",
        ),
        Column::new("relatives", Type::Count, "Relatives in the catalog."),
        Column::new(
            "compared",
            Type::Count,
            "Models of the catalog with matrices in common.",
        ),
        Column::new(
            "bytes_read",
            Type::Count,
            "Bytes of weights read, of all models together.",
        ),
    ],
    examples: &[
        "SELECT base, outcome, relatives FROM sparse_find_base('examples/models/sft', 'examples/models');",
        "-- For many models at once.\n\
         SELECT model, base, round(score, 2) AS score\n\
         FROM sparse_find_base((SELECT model, 'examples/models' AS catalog FROM sparse_models('examples/models')))\n\
         ORDER BY model;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseFindBase;

impl SparseFunction for SparseFindBase {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseFindBase {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let (_guard, cancel) = CancelOnDrop::new();
            let catalog = Catalog::parse(required(&SPEC, &inputs, 1)?).map_err(error::catalog)?;
            let found = FindBase::new(required(&SPEC, &inputs, 0)?, catalog)
                .open_options(request.config.open_options())
                .cancel(move || cancel.is_cancelled())
                .run()
                .await
                .map_err(error::catalog)?;
            request.project(&batch(&found)?)
        })
    }
}

fn batch(found: &BaseFound) -> Result<RecordBatch> {
    let text = |value: Option<&str>| columns::texts([value]);
    let all = vec![
        text(found.base.as_deref()),
        text(Some(found.outcome.name())),
        columns::reals([found.score]),
        columns::reals([found.confidence]),
        columns::reals([found.bit_distance]),
        text(found.declared.as_deref()),
        text(found.nearest.as_deref()),
        columns::counts([Some(found.relatives)]),
        columns::counts([Some(found.compared)]),
        columns::counts([Some(found.bytes_read)]),
    ];
    columns::batch(SPEC.schema(), all, 1)
}
