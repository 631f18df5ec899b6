//! GPT-2.

use candle_core::Tensor;
use candle_nn::Module as _;

use crate::InferenceError;
use crate::config::Gpt2Config;
use crate::decoder::{Family, Linear, attention, rows};
use crate::weights::{Loader, Weights};

pub(crate) struct Gpt2<'w> {
    config: &'w Gpt2Config,
    loader: Loader<'w>,
}

impl<'w> Gpt2<'w> {
    pub(crate) fn new(
        config: &'w Gpt2Config,
        weights: &'w dyn Weights,
    ) -> Result<Self, InferenceError> {
        let loader = Loader::new(weights, &["transformer.", ""], "wte.weight")?;
        Ok(Self { config, loader })
    }

    fn norm(&self, name: &str) -> Result<candle_nn::LayerNorm, InferenceError> {
        let width = [self.config.hidden];
        Ok(candle_nn::LayerNorm::new(
            self.loader.tensor(&format!("{name}.weight"), &width)?,
            self.loader.tensor(&format!("{name}.bias"), &width)?,
            self.config.eps,
        ))
    }

    fn linears(&self) -> [(&'static str, [usize; 2]); 4] {
        let c = self.config;
        [
            ("attn.c_attn", [3 * c.hidden, c.hidden]),
            ("attn.c_proj", [c.hidden, c.hidden]),
            ("mlp.c_fc", [c.inner, c.hidden]),
            ("mlp.c_proj", [c.hidden, c.inner]),
        ]
    }
}

impl Family for Gpt2<'_> {
    fn check(&self) -> Result<(), InferenceError> {
        let c = self.config;
        self.loader.check("wte.weight", &[c.vocabulary, c.hidden])?;
        self.loader.check("wpe.weight", &[c.positions, c.hidden])?;
        if !c.tied {
            self.loader
                .check_whole("lm_head.weight", &[c.vocabulary, c.hidden])?;
        }
        let norm = |name: &str| {
            self.loader.check(&format!("{name}.weight"), &[c.hidden])?;
            self.loader.check(&format!("{name}.bias"), &[c.hidden])
        };
        norm("ln_f")?;
        for number in 0..c.layers {
            norm(&format!("h.{number}.ln_1"))?;
            norm(&format!("h.{number}.ln_2"))?;
            for (name, [out, input]) in self.linears() {
                self.loader
                    .check(&format!("h.{number}.{name}.weight"), &[input, out])?;
                self.loader
                    .check(&format!("h.{number}.{name}.bias"), &[out])?;
            }
        }
        Ok(())
    }

    fn embed(&self, prompts: &[Vec<u32>]) -> Result<Vec<Tensor>, InferenceError> {
        let c = self.config;
        let table = self
            .loader
            .values("wte.weight", &[c.vocabulary, c.hidden])?;
        let places = self.loader.values("wpe.weight", &[c.positions, c.hidden])?;
        prompts
            .iter()
            .map(|tokens| {
                let numbers: Vec<u32> = (0..).take(tokens.len()).collect();
                Ok((rows(&table, c.hidden, tokens)? + rows(&places, c.hidden, &numbers)?)?)
            })
            .collect()
    }

    fn layers(&self) -> usize {
        self.config.layers
    }

    fn layer(&self, number: usize, states: &mut [Tensor]) -> Result<(), InferenceError> {
        let c = self.config;
        let head = c.hidden / c.heads;
        let name = |part: &str| format!("h.{number}.{part}");
        let [qkv, projection, inner, outer] = self
            .linears()
            .map(|(part, shape)| Linear::transposed(&self.loader, &name(part), shape));
        let (qkv, projection, inner, outer) = (qkv?, projection?, inner?, outer?);
        let (first, second) = (self.norm(&name("ln_1"))?, self.norm(&name("ln_2"))?);
        let mut scale = if c.scaled {
            1.0 / (head as f64).sqrt()
        } else {
            1.0
        };
        if c.scaled_by_layer {
            scale /= (number + 1) as f64;
        }
        for state in states.iter_mut() {
            let tokens = state.dim(0)?;
            let all = qkv.apply(&first.forward(state)?)?;
            let part = |at: usize| -> Result<Tensor, InferenceError> {
                let part = all.narrow(1, at * c.hidden, c.hidden)?.contiguous()?;
                Ok(part.reshape((tokens, c.heads, head))?.transpose(0, 1)?)
            };
            let seen = attention(&part(0)?, &part(1)?, &part(2)?, scale, None)?;
            *state = (&*state + projection.apply(&seen)?)?;
            let x = inner.apply(&second.forward(state)?)?;
            *state = (&*state + outer.apply(&c.activation.apply(&x)?)?)?;
        }
        Ok(())
    }

    fn head(&self, states: &mut [Tensor]) -> Result<Tensor, InferenceError> {
        let c = self.config;
        let norm = self.norm("ln_f")?;
        for state in states.iter_mut() {
            *state = norm.forward(state)?;
        }
        let shape = [c.vocabulary, c.hidden];
        if c.tied && !self.loader.has("lm_head.weight") {
            self.loader.tensor("wte.weight", &shape)
        } else {
            self.loader.whole("lm_head.weight", &shape)
        }
    }
}
