//! `config.json`: which decoder a model is, its sizes checked against what any model has.

use serde_json::Value;

use crate::InferenceError;

/// No model has more of these; a configuration that says so is damaged or hostile.
const MAX_LAYERS: u64 = 4096;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_HEADS: u64 = 1 << 14;
const MAX_VOCABULARY: u64 = 1 << 26;
const MAX_POSITIONS: u64 = 1 << 31;

/// What a decoder does between its two linear maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    Gelu,
    /// The approximation by tanh.
    GeluTanh,
}

impl Activation {
    fn parse(name: &str) -> Result<Self, InferenceError> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            other => Err(InferenceError::unsupported(format!(
                "config.json: the activation {other:?} is not one this program runs (silu, gelu, gelu_new)"
            ))),
        }
    }

    pub(crate) fn apply(
        self,
        x: &candle_core::Tensor,
    ) -> Result<candle_core::Tensor, candle_core::Error> {
        match self {
            Self::Silu => candle_nn::ops::silu(x),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
        }
    }
}

/// How rotary angles are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stretch {
    None,
    /// All by one factor.
    Linear(f64),
    /// Low frequencies by a factor, high ones not, those between partly (Llama 3).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

/// A decoder of the Llama family: RMS norms, rotary positions, gated linear units, grouped queries.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LlamaConfig {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head: usize,
    pub(crate) vocabulary: usize,
    pub(crate) positions: usize,
    pub(crate) eps: f64,
    pub(crate) theta: f64,
    pub(crate) stretch: Stretch,
    pub(crate) tied: bool,
    /// Queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// The projection of attention's output has one.
    pub(crate) output_bias: bool,
    pub(crate) mlp_bias: bool,
    /// Queries and keys are normalised head by head (Qwen 3).
    pub(crate) head_norms: bool,
    pub(crate) activation: Activation,
    /// A position sees this many positions up to itself.
    pub(crate) window: Option<usize>,
}

/// GPT-2.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gpt2Config {
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) vocabulary: usize,
    pub(crate) positions: usize,
    pub(crate) eps: f64,
    pub(crate) activation: Activation,
    /// Scores are divided by the root of a head's width, and by the layer's number from 1.
    pub(crate) scaled: bool,
    pub(crate) scaled_by_layer: bool,
    pub(crate) tied: bool,
}

/// A decoder this crate runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Config {
    Llama(LlamaConfig),
    Gpt2(Gpt2Config),
}

impl Config {
    /// Reads a configuration. `model` is named in errors.
    pub(crate) fn parse(model: &str, text: &[u8]) -> Result<Self, InferenceError> {
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            InferenceError::model(
                model,
                format!("config.json is no JSON ({error}); fetch it again"),
            )
        })?;
        let fields = Fields {
            model,
            value: &value,
        };
        if value
            .get("quantization_config")
            .is_some_and(|q| !q.is_null())
        {
            return Err(InferenceError::unsupported(
                "config.json: the weights are quantised already, and this program runs float weights",
            ));
        }
        match fields.text("model_type")?.unwrap_or_default() {
            kind @ ("llama" | "mistral" | "qwen2" | "qwen3") => {
                Ok(Self::Llama(fields.llama(kind)?))
            }
            "gpt2" => Ok(Self::Gpt2(fields.gpt2()?)),
            other => Err(InferenceError::unsupported(format!(
                "config.json: models of type {other:?} are not run by this program; it runs llama, mistral, qwen2, qwen3 and \
                 gpt2"
            ))),
        }
    }

    pub(crate) fn vocabulary(&self) -> usize {
        match self {
            Self::Llama(config) => config.vocabulary,
            Self::Gpt2(config) => config.vocabulary,
        }
    }

    /// The positions the model was made for.
    pub(crate) fn positions(&self) -> usize {
        match self {
            Self::Llama(config) => config.positions,
            Self::Gpt2(config) => config.positions,
        }
    }
}

struct Fields<'v> {
    model: &'v str,
    value: &'v Value,
}

impl<'v> Fields<'v> {
    fn wrong(&self, name: &str, problem: impl std::fmt::Display) -> InferenceError {
        InferenceError::model(
            self.model,
            format!(
                "config.json: {name} {problem}; give the configuration the model was trained with"
            ),
        )
    }

    fn get(&self, name: &str) -> Option<&'v Value> {
        self.value.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&'v str>, InferenceError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, format!("is {other}, not a text"))),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, InferenceError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, format!("is {other}, not true or false"))),
        }
    }

    fn count_or(
        &self,
        name: &str,
        max: u64,
        default: Option<usize>,
    ) -> Result<usize, InferenceError> {
        let Some(value) = self.get(name) else {
            return default.ok_or_else(|| self.wrong(name, "is missing"));
        };
        value
            .as_u64()
            .filter(|n| (1..=max).contains(n))
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| {
                self.wrong(
                    name,
                    format!("is {value}, not a whole number of 1 to {max}"),
                )
            })
    }

    fn count(&self, name: &str, max: u64) -> Result<usize, InferenceError> {
        self.count_or(name, max, None)
    }

    /// A positive finite number.
    fn real(&self, name: &str, default: f64) -> Result<f64, InferenceError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        value
            .as_f64()
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| self.wrong(name, format!("is {value}, not a positive number")))
    }

    fn llama(&self, kind: &str) -> Result<LlamaConfig, InferenceError> {
        let hidden = self.count("hidden_size", MAX_WIDTH)?;
        let heads = self.count("num_attention_heads", MAX_HEADS)?;
        let kv_heads = self.count_or("num_key_value_heads", MAX_HEADS, Some(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.wrong(
                "num_key_value_heads",
                format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
            ));
        }
        let head = self.count_or("head_dim", MAX_WIDTH, Some((hidden / heads).max(1)))?;
        if !head.is_multiple_of(2) {
            return Err(self.wrong("head_dim", format!("is {head}, an odd number")));
        }
        if self.real("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(InferenceError::unsupported(
                "config.json: rotary positions over a part of each head are not run by this program",
            ));
        }
        let bias = self.flag("attention_bias", false)?;
        let (theta, stretch) = self.rotary()?;
        let sliding = kind == "mistral" || self.flag("use_sliding_window", false)?;
        let window = match self.get("sliding_window") {
            Some(_) if sliding => Some(self.count("sliding_window", MAX_POSITIONS)?),
            _ => None,
        };
        Ok(LlamaConfig {
            hidden,
            intermediate: self.count("intermediate_size", MAX_WIDTH)?,
            layers: self.count("num_hidden_layers", MAX_LAYERS)?,
            heads,
            kv_heads,
            head,
            vocabulary: self.count("vocab_size", MAX_VOCABULARY)?,
            positions: self.count_or("max_position_embeddings", MAX_POSITIONS, Some(2048))?,
            eps: self.real("rms_norm_eps", 1e-6)?,
            theta,
            stretch,
            tied: self.flag("tie_word_embeddings", false)?,
            qkv_bias: bias || kind == "qwen2",
            output_bias: bias,
            mlp_bias: self.flag("mlp_bias", false)?,
            head_norms: kind == "qwen3",
            activation: Activation::parse(self.text("hidden_act")?.unwrap_or("silu"))?,
            window,
        })
    }

    /// Base and stretch of rotary positions: `rope_parameters`, or `rope_theta` and `rope_scaling` of older versions.
    fn rotary(&self) -> Result<(f64, Stretch), InferenceError> {
        let scaling = self
            .get("rope_parameters")
            .or_else(|| self.get("rope_scaling"));
        let inner = Fields {
            model: self.model,
            value: scaling.unwrap_or(&Value::Null),
        };
        let theta = inner.real("rope_theta", self.real("rope_theta", 10000.0)?)?;
        let kind = match inner.text("rope_type")? {
            Some(kind) => kind,
            None => inner.text("type")?.unwrap_or("default"),
        };
        let needed = |name: &str| {
            let found = inner.real(name, f64::NAN)?;
            if found.is_nan() {
                Err(self.wrong(name, "is missing"))
            } else {
                Ok(found)
            }
        };
        let stretch = match kind {
            "default" => Stretch::None,
            "linear" => Stretch::Linear(needed("factor")?),
            "llama3" => Stretch::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original: needed("original_max_position_embeddings")?,
            },
            other => {
                return Err(InferenceError::unsupported(format!(
                    "config.json: rotary positions of type {other:?} are not run by this program (default, linear, llama3)"
                )));
            }
        };
        Ok((theta, stretch))
    }

    fn gpt2(&self) -> Result<Gpt2Config, InferenceError> {
        let hidden = self.count("n_embd", MAX_WIDTH)?;
        let heads = self.count("n_head", MAX_HEADS)?;
        if !hidden.is_multiple_of(heads) {
            return Err(self.wrong(
                "n_head",
                format!("is {heads}, which does not divide n_embd {hidden}"),
            ));
        }
        if self.flag("add_cross_attention", false)? {
            return Err(InferenceError::unsupported(
                "config.json: a decoder with cross attention is not run by this program",
            ));
        }
        Ok(Gpt2Config {
            hidden,
            inner: self.count_or("n_inner", MAX_WIDTH, Some(4 * hidden))?,
            layers: self.count("n_layer", MAX_LAYERS)?,
            heads,
            vocabulary: self.count("vocab_size", MAX_VOCABULARY)?,
            positions: self.count_or("n_positions", MAX_POSITIONS, Some(1024))?,
            eps: self.real("layer_norm_epsilon", 1e-5)?,
            activation: Activation::parse(self.text("activation_function")?.unwrap_or("gelu_new"))?,
            scaled: self.flag("scale_attn_weights", true)?,
            scaled_by_layer: self.flag("scale_attn_by_inverse_layer_idx", false)?,
            tied: self.flag("tie_word_embeddings", true)?,
        })
    }
}
