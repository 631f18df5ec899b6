//! `tokenizer.json`: texts in, token numbers out.

use sparse_store::Model;
use tokenizers::{Tokenizer, TruncationParams};

use crate::InferenceError;

/// A tokenizer this large is not one.
const MAX_TOKENIZER: u64 = 256 << 20;

/// A model's tokenizer.
pub(crate) struct Tokens(Tokenizer);

impl Tokens {
    /// The tokenizer of the first of the models that has one; `None` where none has.
    pub(crate) fn of(models: &[&Model]) -> Result<Option<Self>, InferenceError> {
        for model in models {
            let Some(file) = model.carried().iter().find(|f| f.name == "tokenizer.json") else {
                continue;
            };
            let wrong = |problem: String| {
                InferenceError::model(
                    model.id(),
                    format!(
                        "tokenizer.json {problem}; give the tokenizer the model was trained with"
                    ),
                )
            };
            if file.size > MAX_TOKENIZER {
                return Err(wrong(format!("has {} bytes, far too many", file.size)));
            }
            let mut tokenizer = Tokenizer::from_bytes(file.read()?)
                .map_err(|error| wrong(format!("cannot be read ({error})")))?;
            tokenizer.with_padding(None);
            return Ok(Some(Self(tokenizer)));
        }
        Ok(None)
    }

    /// The numbers of each text's tokens, special ones added as the tokenizer says, cut to `max_length`.
    pub(crate) fn encode(
        &mut self,
        model: &str,
        texts: &[String],
        max_length: usize,
        vocabulary: usize,
    ) -> Result<Vec<Vec<u32>>, InferenceError> {
        let failed = |error: tokenizers::Error| {
            InferenceError::model(
                model,
                format!("tokenizer.json: a prompt cannot be read ({error})"),
            )
        };
        self.0
            .with_truncation(Some(TruncationParams {
                max_length,
                ..TruncationParams::default()
            }))
            .map_err(failed)?;
        texts
            .iter()
            .map(|text| {
                let encoding = self.0.encode(text.as_str(), true).map_err(failed)?;
                let ids = encoding.get_ids();
                match ids.iter().find(|id| **id as usize >= vocabulary) {
                    None => Ok(ids.to_vec()),
                    Some(id) => Err(InferenceError::model(
                        model,
                        format!(
                            "tokenizer.json gives token {id}, and the model has {vocabulary}: it belongs to another model; \
                             give the tokenizer the model was trained with"
                        ),
                    )),
                }
            })
            .collect()
    }
}
