//! `sparse_features()`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;

use super::once;
use crate::columns;
use crate::config::SparseConfig;
use crate::function::{Action, Inputs, Reader, Request, SparseFunction};
use crate::spec::{Column, Spec, Type};

static SPEC: Spec = Spec {
    name: "sparse_features",
    row: "feature",
    description: "What this build can do on this machine: versions, instruction sets in use, threads, devices, and the \
                  session's options.",
    inputs: &[],
    options: &[],
    columns: &[
        Column::new("name", Type::Text, "The feature or option."),
        Column::new(
            "value",
            Type::Text,
            "What it is here; null for an option that is not set.",
        ),
    ],
    examples: &["SELECT * FROM sparse_features();"],
};

#[derive(Debug)]
pub(super) struct SparseFeatures;

impl SparseFunction for SparseFeatures {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseFeatures {
    fn read(
        &self,
        _inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move { request.project(&batch(&request.config)?) })
    }
}

fn batch(config: &SparseConfig) -> Result<RecordBatch> {
    let own = [
        (
            "version".to_owned(),
            Some(env!("CARGO_PKG_VERSION").to_owned()),
        ),
        (
            "datafusion".to_owned(),
            Some(datafusion::DATAFUSION_VERSION.to_owned()),
        ),
        (
            "artifact_format".to_owned(),
            Some(sparse_delta::FORMAT_VERSION.to_string()),
        ),
    ];
    let codec = sparse_codec::features().into_iter().map(|feature| {
        (
            format!("codec.{}", feature.name),
            Some(feature.value.to_string()),
        )
    });
    let devices = sparse_gpu::features()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Some(value)));
    let options = config
        .documented()
        .into_iter()
        .map(|(name, value, _)| (name.to_owned(), value));
    let (names, values): (Vec<_>, Vec<_>) = own
        .into_iter()
        .chain(codec)
        .chain(devices)
        .chain(options)
        .unzip();
    let rows = names.len();
    let all = vec![
        columns::texts(names.into_iter().map(Some)),
        columns::texts(values),
    ];
    columns::batch(SPEC.schema(), all, rows)
}
