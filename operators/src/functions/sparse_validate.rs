//! `sparse_validate(base, finetune [, delta])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::common::exec_err;
use futures::stream::BoxStream;
use sparse_inference::Candidate;

use super::{once, validation};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Kind, Parameter, Spec};

static SPEC: Spec = Spec {
    name: "sparse_validate",
    row: "layer, then prompt",
    description: "How a delta of any kind behaves: the model it makes of the base, its tensors produced on demand, is run on \
                  prompts beside the fine-tune, and its layers are compared with the fine-tune's. Without a delta the base \
                  itself is judged: what doing nothing costs. Models and limits are those of sparse_validate_int8.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required("finetune", "The fine-tuned model.").or(&["ft"]),
        Parameter::optional(
            "delta",
            "The delta: a folder, an object-store URL, a Hub id, or a key in the delta store. Low-rank approximations, INT8 \
             deltas and lossless ones.",
        ),
    ],
    options: &[
        validation::SAMPLE_LAYERS,
        validation::PROMPTS,
        validation::MAX_LENGTH,
        Parameter::of(
            "rank",
            Kind::Count(&[]),
            "Which of a low-rank approximation's ranks; its largest where it is not given.",
        ),
    ],
    columns: validation::COLUMNS,
    examples: &[
        "SELECT count(*) FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/int8-delta', mode => 'int8');\n\
         SELECT name, relative_error, exact_share\n\
         FROM sparse_validate('examples/models/base', 'examples/models/sft', delta => '{tmp}/int8-delta', prompts => [])\n\
         WHERE kind = 'layer';",
    ],
};

#[derive(Debug)]
pub(super) struct SparseValidate;

impl SparseFunction for SparseValidate {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseValidate {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let rank = request.options.count("rank");
            let candidate = match (inputs.get(2).cloned().flatten(), rank) {
                (Some(path), rank) => Candidate::Delta { path, rank },
                (None, None) => Candidate::Base,
                (None, Some(_)) => {
                    return exec_err!("{}: a rank belongs to a delta; give one", SPEC.name);
                }
            };
            let (base, finetune) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
            validation::run(&SPEC, base, finetune, candidate, &request).await
        })
    }
}
