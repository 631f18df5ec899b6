//! Decoders of the Llama family: llama, mistral, qwen2, qwen3.

use candle_core::{Device, Tensor};

use crate::InferenceError;
use crate::config::{LlamaConfig, Stretch};
use crate::decoder::{Family, Linear, attention, rows};
use crate::weights::{Loader, Weights};

pub(crate) struct Llama<'w> {
    config: &'w LlamaConfig,
    loader: Loader<'w>,
}

impl<'w> Llama<'w> {
    pub(crate) fn new(
        config: &'w LlamaConfig,
        weights: &'w dyn Weights,
    ) -> Result<Self, InferenceError> {
        let loader = Loader::new(weights, &["model.", ""], "embed_tokens.weight")?;
        Ok(Self { config, loader })
    }

    /// Every tensor of a layer and its shape.
    fn shapes(&self, number: usize) -> Vec<(String, Vec<usize>)> {
        let c = self.config;
        let (q, kv) = (c.heads * c.head, c.kv_heads * c.head);
        let mut all = Vec::new();
        let mut linear = |name: &str, out: usize, input: usize, bias: bool| {
            all.push((format!("layers.{number}.{name}.weight"), vec![out, input]));
            if bias {
                all.push((format!("layers.{number}.{name}.bias"), vec![out]));
            }
        };
        linear("self_attn.q_proj", q, c.hidden, c.qkv_bias);
        linear("self_attn.k_proj", kv, c.hidden, c.qkv_bias);
        linear("self_attn.v_proj", kv, c.hidden, c.qkv_bias);
        linear("self_attn.o_proj", c.hidden, q, c.output_bias);
        linear("mlp.gate_proj", c.intermediate, c.hidden, c.mlp_bias);
        linear("mlp.up_proj", c.intermediate, c.hidden, c.mlp_bias);
        linear("mlp.down_proj", c.hidden, c.intermediate, c.mlp_bias);
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            all.push((format!("layers.{number}.{norm}.weight"), vec![c.hidden]));
        }
        if c.head_norms {
            for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
                all.push((format!("layers.{number}.{norm}.weight"), vec![c.head]));
            }
        }
        all
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, InferenceError> {
        Ok(Norm {
            weight: self.loader.tensor(&format!("{name}.weight"), &[width])?,
            eps: self.config.eps,
        })
    }

    /// Cosines and sines of the angles of `tokens` positions, `[tokens, head / 2]` each.
    fn rotation(&self, tokens: usize) -> Result<(Tensor, Tensor), InferenceError> {
        let frequencies = frequencies(self.config);
        let angles: Vec<f32> = (0..tokens)
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
            .collect();
        let angles = Tensor::from_vec(angles, (tokens, frequencies.len()), &Device::Cpu)?;
        Ok((angles.cos()?, angles.sin()?))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "frequencies are f32, as where models are trained"
)]
fn frequencies(config: &LlamaConfig) -> Vec<f32> {
    let half = config.head / 2;
    (0..half)
        .map(|i| {
            let plain = 1.0 / config.theta.powf(2.0 * i as f64 / config.head as f64);
            let stretched = match config.stretch {
                Stretch::None => plain,
                Stretch::Linear(factor) => plain / factor,
                Stretch::Llama3 {
                    factor,
                    low,
                    high,
                    original,
                } => {
                    let wave = 2.0 * std::f64::consts::PI / plain;
                    if wave > original / low {
                        plain / factor
                    } else if wave < original / high {
                        plain
                    } else {
                        let smooth = (original / wave - low) / (high - low);
                        (1.0 - smooth) * plain / factor + smooth * plain
                    }
                }
            };
            stretched as f32
        })
        .collect()
}

/// A norm by the root of the mean square.
struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    #[expect(clippy::cast_possible_truncation, reason = "candle takes an f32")]
    fn apply(&self, x: &Tensor) -> Result<Tensor, InferenceError> {
        Ok(candle_nn::ops::rms_norm(
            &x.contiguous()?,
            &self.weight,
            self.eps as f32,
        )?)
    }
}

impl Family for Llama<'_> {
    fn check(&self) -> Result<(), InferenceError> {
        let c = self.config;
        self.loader
            .check("embed_tokens.weight", &[c.vocabulary, c.hidden])?;
        self.loader.check("norm.weight", &[c.hidden])?;
        if !c.tied {
            self.loader
                .check_whole("lm_head.weight", &[c.vocabulary, c.hidden])?;
        }
        for number in 0..c.layers {
            for (name, shape) in self.shapes(number) {
                self.loader.check(&name, &shape)?;
            }
        }
        Ok(())
    }

    fn embed(&self, prompts: &[Vec<u32>]) -> Result<Vec<Tensor>, InferenceError> {
        let c = self.config;
        let table = self
            .loader
            .values("embed_tokens.weight", &[c.vocabulary, c.hidden])?;
        prompts
            .iter()
            .map(|tokens| rows(&table, c.hidden, tokens))
            .collect()
    }

    fn layers(&self) -> usize {
        self.config.layers
    }

    fn layer(&self, number: usize, states: &mut [Tensor]) -> Result<(), InferenceError> {
        let c = self.config;
        let name = |part: &str| format!("layers.{number}.{part}");
        let linear = |part: &str, shape, bias| Linear::load(&self.loader, &name(part), shape, bias);
        let (width, kv_width) = (c.heads * c.head, c.kv_heads * c.head);
        let before = self.norm(&name("input_layernorm"), c.hidden)?;
        let q = linear("self_attn.q_proj", [width, c.hidden], c.qkv_bias)?;
        let k = linear("self_attn.k_proj", [kv_width, c.hidden], c.qkv_bias)?;
        let v = linear("self_attn.v_proj", [kv_width, c.hidden], c.qkv_bias)?;
        let o = linear("self_attn.o_proj", [c.hidden, width], c.output_bias)?;
        let head_norms = if c.head_norms {
            Some((
                self.norm(&name("self_attn.q_norm"), c.head)?,
                self.norm(&name("self_attn.k_norm"), c.head)?,
            ))
        } else {
            None
        };
        for state in states.iter_mut() {
            let tokens = state.dim(0)?;
            let x = before.apply(state)?;
            let heads = |linear: &Linear, heads: usize| -> Result<Tensor, InferenceError> {
                Ok(linear.apply(&x)?.reshape((tokens, heads, c.head))?)
            };
            let (mut qs, mut ks) = (heads(&q, c.heads)?, heads(&k, c.kv_heads)?);
            if let Some((of_q, of_k)) = &head_norms {
                (qs, ks) = (of_q.apply(&qs)?, of_k.apply(&ks)?);
            }
            let (cos, sin) = self.rotation(tokens)?;
            let turn = |x: &Tensor| -> Result<Tensor, InferenceError> {
                let x = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
                Ok(candle_nn::rotary_emb::rope(&x, &cos, &sin)?.squeeze(0)?)
            };
            let vs = heads(&v, c.kv_heads)?.transpose(0, 1)?;
            let scale = 1.0 / (c.head as f64).sqrt();
            let seen = attention(&turn(&qs)?, &turn(&ks)?, &vs, scale, c.window)?;
            *state = (&*state + o.apply(&seen)?)?;
        }
        drop((q, k, v, o));
        let before = self.norm(&name("post_attention_layernorm"), c.hidden)?;
        let gate = linear("mlp.gate_proj", [c.intermediate, c.hidden], c.mlp_bias)?;
        let up = linear("mlp.up_proj", [c.intermediate, c.hidden], c.mlp_bias)?;
        let down = linear("mlp.down_proj", [c.hidden, c.intermediate], c.mlp_bias)?;
        for state in states.iter_mut() {
            let x = before.apply(state)?;
            let inner = (c.activation.apply(&gate.apply(&x)?)? * up.apply(&x)?)?;
            *state = (&*state + down.apply(&inner)?)?;
        }
        Ok(())
    }

    fn head(&self, states: &mut [Tensor]) -> Result<Tensor, InferenceError> {
        let c = self.config;
        let norm = self.norm("norm", c.hidden)?;
        for state in states.iter_mut() {
            *state = norm.apply(state)?;
        }
        let shape = [c.vocabulary, c.hidden];
        // Tied weights are saved once; some tools save them again.
        if c.tied && !self.loader.has("lm_head.weight") {
            self.loader.tensor("embed_tokens.weight", &shape)
        } else {
            self.loader.whole("lm_head.weight", &shape)
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;
    use crate::config::Config;

    fn llama(json: serde_json::Value) -> LlamaConfig {
        match Config::parse("m", &serde_json::to_vec(&json).unwrap()).unwrap() {
            Config::Llama(config) => config,
            Config::Gpt2(_) => unreachable!(),
        }
    }

    #[test]
    fn llama3_stretches_low_frequencies_only() {
        let base = serde_json::json!({
            "model_type": "llama", "hidden_size": 256, "num_attention_heads": 2, "intermediate_size": 8,
            "num_hidden_layers": 1, "vocab_size": 10, "rope_theta": 500000.0,
        });
        let plain = frequencies(&llama(base.clone()));
        let mut stretched = base;
        stretched["rope_scaling"] = serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let stretched = frequencies(&llama(stretched));
        assert_eq!(plain[0], stretched[0]);
        assert!((plain[63] / stretched[63] - 8.0).abs() < 1e-5);
        let between = plain.iter().zip(&stretched).filter(|(a, b)| {
            let ratio = *a / *b;
            ratio > 1.01 && ratio < 7.9
        });
        assert!(between.count() > 0);
    }
}
