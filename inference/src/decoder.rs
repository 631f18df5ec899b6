//! A decoder-only model, run layer by layer over all prompts at once: of its weights only one layer is in memory.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::InferenceError;
use crate::config::Config;
use crate::gpt2::Gpt2;
use crate::llama::Llama;
use crate::weights::{Loader, Weights};

/// What the families implement. A state is the hidden vectors of one prompt, `[tokens, hidden]`.
pub(crate) trait Family {
    /// Checks that every tensor is there, of the shape that the configuration gives.
    fn check(&self) -> Result<(), InferenceError>;
    /// The states that the tokens of each prompt begin with.
    fn embed(&self, prompts: &[Vec<u32>]) -> Result<Vec<Tensor>, InferenceError>;
    fn layers(&self) -> usize;
    /// Takes the states through one layer.
    fn layer(&self, number: usize, states: &mut [Tensor]) -> Result<(), InferenceError>;
    /// The last norm and the weights of the vocabulary, `[vocabulary, hidden]`.
    fn head(&self, states: &mut [Tensor]) -> Result<Tensor, InferenceError>;
}

/// Runs a model.
pub(crate) struct Decoder<'w> {
    family: Box<dyn Family + 'w>,
}

impl<'w> Decoder<'w> {
    /// Checks all shapes; reads no weights.
    pub(crate) fn new(
        config: &'w Config,
        weights: &'w dyn Weights,
    ) -> Result<Self, InferenceError> {
        let family: Box<dyn Family + 'w> = match config {
            Config::Llama(config) => Box::new(Llama::new(config, weights)?),
            Config::Gpt2(config) => Box::new(Gpt2::new(config, weights)?),
        };
        family.check()?;
        Ok(Self { family })
    }

    /// Steps that [`Self::run`] reports.
    pub(crate) fn steps(&self) -> usize {
        self.family.layers() + 2
    }

    /// Runs all prompts; `step` is called after each layer and may stop it. Tokens must be below the vocabulary's size.
    pub(crate) fn run(
        &self,
        prompts: &[Vec<u32>],
        step: &dyn Fn() -> Result<(), InferenceError>,
    ) -> Result<Outputs, InferenceError> {
        let mut states = self.family.embed(prompts)?;
        step()?;
        for number in 0..self.family.layers() {
            self.family.layer(number, &mut states)?;
            step()?;
        }
        let head = self.family.head(&mut states)?;
        step()?;
        Ok(Outputs {
            states,
            head: head.t()?,
        })
    }
}

/// The last states of all prompts, and what makes logits of them.
pub(crate) struct Outputs {
    states: Vec<Tensor>,
    /// `[hidden, vocabulary]`.
    head: Tensor,
}

impl Outputs {
    /// The logits of some positions of a prompt, row after row.
    pub(crate) fn logits(
        &self,
        prompt: usize,
        positions: Range<usize>,
    ) -> Result<Vec<f32>, InferenceError> {
        let state = self
            .states
            .get(prompt)
            .ok_or_else(|| InferenceError::Compute {
                message: "no such prompt".into(),
            })?;
        let rows = state
            .narrow(0, positions.start, positions.len())?
            .contiguous()?;
        Ok(rows.matmul(&self.head)?.flatten_all()?.to_vec1()?)
    }
}

/// The rows of an embedding that tokens name.
pub(crate) fn rows(table: &[f32], width: usize, tokens: &[u32]) -> Result<Tensor, InferenceError> {
    let mut values = Vec::with_capacity(tokens.len() * width);
    for token in tokens {
        let row = *token as usize;
        let found =
            table
                .get(row * width..(row + 1) * width)
                .ok_or_else(|| InferenceError::Compute {
                    message: format!("token {token} has no embedding"),
                })?;
        values.extend_from_slice(found);
    }
    Ok(Tensor::from_vec(
        values,
        (tokens.len(), width),
        &Device::Cpu,
    )?)
}

/// A linear map, its weight stored `[out, in]`.
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(
        loader: &Loader<'_>,
        name: &str,
        [out, input]: [usize; 2],
        bias: bool,
    ) -> Result<Self, InferenceError> {
        Ok(Self {
            weight: loader
                .tensor(&format!("{name}.weight"), &[out, input])?
                .t()?,
            bias: bias
                .then(|| loader.tensor(&format!("{name}.bias"), &[out]))
                .transpose()?,
        })
    }

    /// As [`Self::load`], for a weight stored `[in, out]`, with a bias.
    pub(crate) fn transposed(
        loader: &Loader<'_>,
        name: &str,
        [out, input]: [usize; 2],
    ) -> Result<Self, InferenceError> {
        Ok(Self {
            weight: loader.tensor(&format!("{name}.weight"), &[input, out])?,
            bias: Some(loader.tensor(&format!("{name}.bias"), &[out])?),
        })
    }

    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor, InferenceError> {
        let y = x.matmul(&self.weight)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// Most scores of an attention that are in memory at a time.
const SCORES: usize = 16 << 20;

/// Causal attention. `q` is `[heads, tokens, width]`, `k` and `v` have as many heads or a part of them; the result is
/// `[tokens, heads * width]`. Worked on in runs of positions: the scores of all would need the square of their number.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    window: Option<usize>,
) -> Result<Tensor, InferenceError> {
    attention_within(q, k, v, scale, window, SCORES)
}

fn attention_within(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    window: Option<usize>,
    most: usize,
) -> Result<Tensor, InferenceError> {
    let (heads, tokens, width) = q.dims3()?;
    let shared = heads / k.dim(0)?.max(1);
    let spread = |x: &Tensor| -> Result<Tensor, InferenceError> {
        if shared == 1 {
            return Ok(x.contiguous()?);
        }
        let (kv, tokens, width) = x.dims3()?;
        Ok(x.unsqueeze(1)?
            .expand((kv, shared, tokens, width))?
            .reshape((heads, tokens, width))?)
    };
    let (k, v) = (spread(k)?, spread(v)?);
    let run = (most / (heads * tokens).max(1)).clamp(1, tokens.max(1));
    let mut parts = Vec::new();
    for start in (0..tokens).step_by(run) {
        let end = tokens.min(start + run);
        // What the first of the run sees of what is before it, to what the last sees: itself.
        let from = window.map_or(0, |w| (start + 1).saturating_sub(w));
        let keys = |x: &Tensor| -> Result<Tensor, InferenceError> {
            Ok(x.narrow(1, from, end - from)?.contiguous()?)
        };
        let q = q.narrow(1, start, end - start)?.contiguous()?;
        let scores = (q.matmul(&keys(&k)?.t()?)? * scale)?;
        let scores = scores.broadcast_add(&mask(start..end, from, window)?)?;
        parts.push(candle_nn::ops::softmax_last_dim(&scores)?.matmul(&keys(&v)?)?);
    }
    let out = Tensor::cat(&parts, 1)?;
    Ok(out.transpose(0, 1)?.reshape((tokens, heads * width))?)
}

/// Zero where a position of a run may look, minus infinity elsewhere; the columns are the positions from `first` on.
fn mask(run: Range<usize>, first: usize, window: Option<usize>) -> Result<Tensor, InferenceError> {
    let seen = |from: usize, to: usize| to <= from && window.is_none_or(|w| to + w > from);
    let (rows, end) = (run.len(), run.end);
    let values: Vec<f32> = run
        .flat_map(|from| {
            (first..end).map(move |to| {
                if seen(from, to) {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
        })
        .collect();
    Ok(Tensor::from_vec(values, (rows, end - first), &Device::Cpu)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    /// However few scores there is room for, attention is the same.
    #[test]
    fn runs_of_positions_are_the_whole() {
        let random = |heads: usize| Tensor::rand(-1_f32, 1., (heads, 37, 8), &Device::Cpu).unwrap();
        let (q, k, v) = (random(4), random(2), random(2));
        for window in [None, Some(1), Some(5), Some(100)] {
            let of = |most| {
                let out = attention_within(&q, &k, &v, 0.3, window, most).unwrap();
                out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let whole = of(usize::MAX);
            assert!(whole.iter().all(|x| x.is_finite()));
            for most in [0, 1, 4 * 37 * 3, 4 * 37 * 36] {
                let apart = of(most);
                assert!(apart.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
    }
}
