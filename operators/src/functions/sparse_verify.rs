//! `sparse_verify(path [, base])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_dataset::is_dataset_delta;
use sparse_delta::{Check, Verify};

use super::{CancelOnDrop, once, threads};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error, rows};

static SPEC: Spec = Spec {
    name: "sparse_verify",
    row: "check",
    description: "Whether every hash of an artifact (a delta, an adapter, an approximation) still holds. What is damaged is a row with \
                  ok = false, not an error. With the base, every file is rebuilt in bounded memory and its SHA-256 compared (of a dataset, every split and its \
                  logical hash); nothing is written.",
    inputs: &[
        Parameter::required(
            "path",
            "The artifact: a folder, an object-store URL, a Hub id, or a key in the delta store.",
        ),
        Parameter::optional(
            "base",
            "The base model or dataset: rebuild everything from it too.",
        )
        .taking(Kind::Dataset),
    ],
    options: &[],
    columns: &[
        Column::new("item", Type::Text, "The file or tensor."),
        Column::new(
            "kind",
            Type::Text,
            "manifest, index, payload, adapter, tensor, carried, or file (rebuilt from the base; of an approximation, at each of \
             its ranks); of a dataset: manifest, payload, plan, split (rebuilt from the base).",
        ),
        Column::new("ok", Type::Flag, "Whether it is as it should be."),
        Column::new("detail", Type::Text, "What was checked, or what is wrong."),
    ],
    examples: &[
        "SELECT count(*) FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/verify-delta');\n\
         SELECT kind, bool_and(ok) AS ok FROM sparse_verify('{tmp}/verify-delta', base => 'examples/models/base')\n\
         GROUP BY kind ORDER BY kind;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseVerify;

impl SparseFunction for SparseVerify {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseVerify {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let (_guard, cancel) = CancelOnDrop::new();
            let path = required(&SPEC, &inputs, 0)?;
            let open = request.config.open_options();
            if is_dataset_delta(path, &open)
                .await
                .map_err(error::dataset)?
            {
                let mut verify = sparse_dataset::Verify::new(path)
                    .open_options(open)
                    .threads(threads(&request).unwrap_or(0))
                    .cancel(cancel);
                if inputs.get(1).is_some_and(Option::is_some) {
                    verify = verify.base(rows::dataset(&SPEC, &inputs, &request, 1)?);
                }
                let checks = verify.run().await.map_err(error::dataset)?;
                return request.project(&batch(&checks)?);
            }
            let mut verify = Verify::new(path)
                .device(request.config.device)
                .open_options(open)
                .cancel(cancel);
            if let Some(base) = inputs.get(1).and_then(Option::as_deref) {
                verify = verify.base(base);
            }
            if let Some(threads) = threads(&request) {
                verify = verify.threads(threads);
            }
            let rows = verify.run().await.map_err(error::delta)?;
            request.project(&batch(&rows)?)
        })
    }
}

fn batch(rows: &[Check]) -> Result<RecordBatch> {
    let text = |f: fn(&Check) -> &str| columns::texts(rows.iter().map(|row| Some(f(row))));
    let all = vec![
        text(|row| &row.item),
        text(|row| &row.kind),
        columns::flags(rows.iter().map(|row| Some(row.ok))),
        text(|row| &row.detail),
    ];
    columns::batch(SPEC.schema(), all, rows.len())
}
