//! `tokenizer.json`: texts in, token numbers out.

use sparse_store::Model;
use tokenizers::{PostProcessor as _, Tokenizer, TruncationParams};

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
        // The library subtracts these from the length without a check, and would read on without end.
        let special = self
            .0
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(false));
        if special > max_length {
            return Err(InferenceError::usage(format!(
                "tokenizer.json of {model} adds {special} special tokens to a text, and a text is cut to {max_length} tokens, by \
                 max_length or the positions in config.json: give a larger max_length, or no prompts"
            )));
        }
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    /// A tokenizer of whole words that puts three special tokens before a text.
    fn words() -> Tokens {
        let special = serde_json::json!({ "SpecialToken": { "id": "[A]", "type_id": 0 } });
        let text = |id: &str| serde_json::json!({ "Sequence": { "id": id, "type_id": 0 } });
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [special, special, special, text("A")],
                "pair": [text("A"), text("B")],
                "special_tokens": { "[A]": { "id": "[A]", "ids": [2], "tokens": ["[A]"] } },
            },
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": { "a": 0, "b": 1, "[A]": 2 }, "unk_token": "a" },
        });
        Tokens(Tokenizer::from_bytes(json.to_string()).unwrap())
    }

    #[test]
    fn special_tokens_that_do_not_fit_are_an_error() {
        let texts = ["a b a b".to_owned()];
        let mut tokens = words();
        let cut = tokens.encode("m", &texts, 5, 3).unwrap();
        assert_eq!(cut, vec![vec![2u32, 2, 2, 0, 1]]);
        for length in [1, 2] {
            let error = tokens.encode("m", &texts, length, 3).unwrap_err();
            assert!(matches!(error, InferenceError::Usage { .. }), "{error}");
        }
    }
}
