//! `sparse_tensors(model)`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use sparse_store::Model;

use crate::error;
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Parameter, Spec};
use crate::tensors::{self, Listing};

static SPEC: Spec = Spec {
    name: "sparse_tensors",
    row: "tensor",
    description: "The tensors of a model. Only headers are read until `data` is looked at; filters on the other columns are \
                  applied to the headers.",
    inputs: &[Parameter::required(
        "model",
        "A safetensors file, a model folder (sharded or not), an object-store URL or a Hub id.",
    )],
    options: &[],
    columns: tensors::COLUMNS,
    examples: &[
        "SELECT name, dtype, shape, bytes FROM sparse_tensors('examples/models/base') ORDER BY bytes DESC, name LIMIT 5;",
        "SELECT dtype, count(*) AS tensors, sum(params) AS params FROM sparse_tensors('examples/models/base') GROUP BY dtype;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseTensors;

impl SparseFunction for SparseTensors {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }

    fn takes_filters(&self) -> bool {
        true
    }
}

impl Reader for SparseTensors {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        stream::once(list(inputs, Arc::clone(&request)))
            .map_ok(move |listing| {
                let rows = match request.columns.contains(&tensors::DATA) {
                    true => request.batch_size.min(tensors::DATA_ROWS),
                    false => request.batch_size,
                }
                .max(1);
                let starts: Vec<usize> = (0..listing.len()).step_by(rows).collect();
                let request = Arc::clone(&request);
                stream::iter(starts).map(move |start| {
                    let end = (start + rows).min(listing.len());
                    listing.batch(start..end, &request.columns, request.schema(&SPEC)?)
                })
            })
            .try_flatten()
            .boxed()
    }
}

async fn list(inputs: Inputs, request: Arc<Request>) -> Result<Listing> {
    let model = required(&SPEC, &inputs, 0)?;
    let model = Model::open(model, &request.config.open_options())
        .await
        .map_err(error::store)?;
    Listing::of(Arc::new(model)).filter(&SPEC.schema(), &request.filters)
}
