//! `sparse_validate_int8(base, finetune)`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::{Result, exec_datafusion_err};
use futures::stream::BoxStream;
use sparse_inference::Candidate;

use super::{once, validation};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Parameter, Spec};

static SPEC: Spec = Spec {
    name: "sparse_validate_int8",
    row: "layer, then prompt",
    description: "What storing a fine-tune's difference from its base in 8-bit integers would cost: errors per layer, and the \
                  behaviour of the model that comes back, run on prompts beside the fine-tune. Of tensors of two dimensions or \
                  more the difference is quantised (code = nearest integer to difference / scale, scale = largest \
                  magnitude / 127); the rest stays exact. Llama, Mistral, Qwen 2 and 3 and GPT-2 models with a config.json and a \
                  tokenizer.json are run, in f32; of others the layers are measured, and a note says why.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required("finetune", "The fine-tuned model.").or(&["ft"]),
    ],
    options: &[
        validation::SAMPLE_LAYERS,
        validation::PROMPTS,
        validation::MAX_LENGTH,
        Parameter::choice(
            "granularity",
            &["tensor", "row", "group"],
            Some("row"),
            "What shares a scale: the tensor, a row, or 128 elements of a row.",
        ),
    ],
    columns: validation::COLUMNS,
    examples: &[
        "SELECT name, compression_ratio, max_abs_error, mean_abs_error\n\
         FROM sparse_validate_int8('examples/models/base', 'examples/models/sft', prompts => [])\n\
         WHERE kind = 'layer';",
        "SELECT kind, round(perplexity, 2) AS ppl, round(reference_perplexity, 2) AS of_finetune, kl_mean < 0.001 AS close\n\
         FROM sparse_validate_int8('examples/models/base', 'examples/models/sft', sample_layers => 0,\n\
         \u{20}                         prompts => ['The river rose in the night.', 'Water boils at a lower temperature.'])\n\
         WHERE kind = 'all prompts';",
    ],
};

#[derive(Debug)]
pub(super) struct SparseValidateInt8;

impl SparseFunction for SparseValidateInt8 {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseValidateInt8 {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let granularity = request
                .options
                .text("granularity")
                .unwrap_or("row")
                .parse()
                .map_err(|e| exec_datafusion_err!("granularity: {e}"))?;
            let (base, finetune) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
            let candidate = Candidate::Int8(granularity);
            validation::run(&SPEC, base, finetune, candidate, &request).await
        })
    }
}
