//! What kinds of modules a model has.

use sparse_adapter::Layout;
use sparse_store::Model;

/// Names of modules whose weights are looked up by row, the last part.
const EMBEDDINGS: [&str; 7] = [
    "embed_tokens",
    "embed_positions",
    "wte",
    "wpe",
    "word_embeddings",
    "position_embeddings",
    "tok_embeddings",
];
/// A configuration this large is not one.
const MAX_CONFIG: u64 = 16 << 20;

/// What the models' configuration says of their modules.
pub(crate) struct Modules {
    causal: bool,
    /// Linear weights are `[in, out]`.
    transposed: bool,
}

impl Modules {
    pub(crate) fn of(base: &Model, tuned: &Model) -> Self {
        let config = [base, tuned]
            .into_iter()
            .flat_map(|model| model.carried())
            .filter(|file| file.name == "config.json" && file.size <= MAX_CONFIG)
            .find_map(|file| serde_json::from_slice::<serde_json::Value>(&file.read().ok()?).ok())
            .unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let causal = config["architectures"].as_array().is_some_and(|all| {
            all.iter()
                .map(text)
                .any(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"))
        });
        Self {
            causal,
            transposed: text(&config["model_type"]) == "gpt2",
        }
    }

    /// Whether the model is one whose linear weights are `[in, out]`.
    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// PEFT's name of the task.
    pub(crate) fn task(&self) -> Option<&'static str> {
        self.causal.then_some("CAUSAL_LM")
    }

    pub(crate) fn layout(&self, module: &str) -> Layout {
        let last = module.rsplit('.').next().unwrap_or(module);
        if EMBEDDINGS.contains(&last) {
            Layout::Embedding
        } else if self.transposed && last.starts_with("c_") {
            Layout::Transposed
        } else {
            Layout::Linear
        }
    }
}
