//! One model on some texts.

use std::sync::Arc;

use sparse_store::{Model, OpenOptions};

use crate::InferenceError;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::tokens::Tokens;

/// A configuration this large is not one.
const MAX_CONFIG: u64 = 16 << 20;

/// What a model predicts of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// The text's tokens.
    pub tokens: Vec<u32>,
    /// Columns of `values`.
    pub vocabulary: usize,
    /// Logits of the token after each, row after row.
    pub values: Vec<f32>,
}

/// The logits of a model at every position of some texts, computed in `f32`.
///
/// # Errors
/// A model that cannot be opened, that this crate does not run, or whose files do not fit one another.
pub async fn logits(
    model: &str,
    prompts: Vec<String>,
    max_length: usize,
    open: &OpenOptions,
) -> Result<Vec<Logits>, InferenceError> {
    let model = Arc::new(Model::open(model, open).await?);
    tokio::task::spawn_blocking(move || {
        let config = config(&model)?.ok_or_else(|| {
            InferenceError::unsupported(format!("{} has no config.json", model.id()))
        })?;
        let mut tokens = Tokens::of(&[&model])?.ok_or_else(|| {
            InferenceError::unsupported(format!("{} has no tokenizer.json", model.id()))
        })?;
        let length = max_length.min(config.positions());
        let tokens = tokens.encode(model.id(), &prompts, length, config.vocabulary())?;
        let outputs = Decoder::new(&config, &*model)?.run(&tokens, &|| Ok(()))?;
        tokens
            .into_iter()
            .enumerate()
            .map(|(prompt, tokens)| {
                Ok(Logits {
                    values: outputs.logits(prompt, 0..tokens.len())?,
                    vocabulary: config.vocabulary(),
                    tokens,
                })
            })
            .collect()
    })
    .await
    .map_err(|error| InferenceError::Compute {
        message: error.to_string(),
    })?
}

/// The configuration of a model; `None` where it has none.
pub(crate) fn config(model: &Model) -> Result<Option<Config>, InferenceError> {
    let Some(file) = model.carried().iter().find(|f| f.name == "config.json") else {
        return Ok(None);
    };
    if file.size > MAX_CONFIG {
        return Err(InferenceError::model(
            model.id(),
            format!("config.json has {} bytes, far too many", file.size),
        ));
    }
    Config::parse(model.id(), &file.read()?).map(Some)
}
