//! How far the predictions of one model are from those of another: what `llama-perplexity --kl-divergence` of llama.cpp
//! reports, by its formulas, in `f64`.

use rayon::prelude::*;
use serde::Serialize;

/// What was found at one position: both models have seen the same tokens and predict the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored {
    /// Minus the logarithm of the probability that the model gives the token that follows; the same of the reference.
    pub(crate) loss: f64,
    pub(crate) reference_loss: f64,
    /// Kullback-Leibler divergence of the model from the reference, in nats.
    pub(crate) divergence: f64,
    /// The probability of the token that follows, the model's minus the reference's.
    pub(crate) delta_p: f64,
    /// Both find the same token the most probable.
    pub(crate) same_top: bool,
}

/// Scores rows of logits: `reference` and `model` have `vocabulary` columns and a row for each of `next`.
pub(crate) fn score(
    reference: &[f32],
    model: &[f32],
    vocabulary: usize,
    next: &[u32],
) -> Vec<Scored> {
    reference
        .par_chunks_exact(vocabulary)
        .zip(model.par_chunks_exact(vocabulary))
        .zip(next)
        .map(|((reference, model), next)| position(reference, model, *next as usize))
        .collect()
}

/// The logarithm of the sum of exponentials, and the place of the largest logit (the first of equal ones).
fn normaliser(logits: &[f32]) -> (f64, usize) {
    let (mut top, mut largest) = (0, f32::NEG_INFINITY);
    for (place, logit) in logits.iter().enumerate() {
        if *logit > largest {
            (top, largest) = (place, *logit);
        }
    }
    let largest = f64::from(largest);
    let sum: f64 = logits.iter().map(|l| (f64::from(*l) - largest).exp()).sum();
    (largest + sum.ln(), top)
}

fn position(reference: &[f32], model: &[f32], next: usize) -> Scored {
    let ((r_norm, r_top), (m_norm, m_top)) = (normaliser(reference), normaliser(model));
    let divergence: f64 = reference
        .iter()
        .zip(model)
        .map(|(r, m)| {
            let (r, m) = (f64::from(*r) - r_norm, f64::from(*m) - m_norm);
            let p = r.exp();
            // A probability that is zero adds nothing, whatever its logarithm.
            if p > 0.0 { p * (r - m) } else { 0.0 }
        })
        .sum();
    let loss =
        |logits: &[f32], norm: f64| norm - f64::from(logits.get(next).copied().unwrap_or(f32::NAN));
    let (loss, reference_loss) = (loss(model, m_norm), loss(reference, r_norm));
    Scored {
        loss,
        reference_loss,
        // Rounding may leave less than nothing where the two are the same.
        divergence: divergence.max(0.0),
        delta_p: (-loss).exp() - (-reference_loss).exp(),
        same_top: r_top == m_top,
    }
}

/// A mean, or what follows from one, with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// The value.
    pub value: f64,
    /// Its standard error; 0 with fewer than two positions.
    pub error: f64,
}

/// The divergence of a model from a reference, in nats per token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "percentiles are what they are called")]
pub struct Divergence {
    pub mean: f64,
    /// The mean's standard error.
    pub error: f64,
    pub max: f64,
    pub p99_9: f64,
    pub p99: f64,
    pub p95: f64,
    pub median: f64,
    pub p10: f64,
    pub p5: f64,
    pub p1: f64,
    pub min: f64,
}

/// How the probability of the token that follows changed, as shares of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "percentiles are what they are called")]
pub struct DeltaP {
    pub mean: f64,
    /// The mean's standard error.
    pub error: f64,
    /// The root of the mean square.
    pub rms: f64,
    /// Its standard error.
    pub rms_error: f64,
    pub max: f64,
    pub p99_9: f64,
    pub p99: f64,
    pub p95: f64,
    pub p90: f64,
    pub p75: f64,
    pub median: f64,
    pub p25: f64,
    pub p10: f64,
    pub p5: f64,
    pub p1: f64,
    pub p0_1: f64,
    pub min: f64,
}

/// How a model behaves beside a reference (the fine-tune) on the same texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Behaviour {
    /// Positions whose next token is known.
    pub positions: u64,
    /// The model's perplexity.
    pub perplexity: Measured,
    /// The reference's.
    pub reference_perplexity: Measured,
    /// The correlation of the losses of both over the positions; 1 where they are the same.
    pub correlation: f64,
    /// ln(perplexity / reference perplexity).
    pub ln_ratio: Measured,
    /// perplexity / reference perplexity.
    pub ratio: Measured,
    /// perplexity - reference perplexity.
    pub difference: Measured,
    /// The divergence of the model from the reference.
    pub divergence: Divergence,
    /// The share of positions where both find the same token the most probable.
    pub same_top: Measured,
    /// How the probability of the token that follows changed.
    pub delta_p: DeltaP,
}

impl Behaviour {
    /// Of some positions; `None` where there are none.
    pub(crate) fn of(scored: &[Scored]) -> Option<Self> {
        if scored.is_empty() {
            return None;
        }
        let count = scored.len() as f64;
        let (loss, loss_error) = mean(scored.iter().map(|s| s.loss));
        let (reference, reference_error) = mean(scored.iter().map(|s| s.reference_loss));
        let covariance = covariance(scored, loss, reference);
        let spread = |a: f64, b: f64, between: f64| (a * a + b * b - 2.0 * between).max(0.0).sqrt();
        let ln_ratio = Measured {
            value: loss - reference,
            error: spread(loss_error, reference_error, covariance),
        };
        let perplexity = exponential(loss, loss_error);
        let reference_perplexity = exponential(reference, reference_error);
        let both = loss_error * reference_error;
        let same = scored.iter().filter(|s| s.same_top).count() as f64 / count;
        let mut divergences: Vec<f64> = scored.iter().map(|s| s.divergence).collect();
        let mut deltas: Vec<f64> = scored.iter().map(|s| s.delta_p).collect();
        divergences.sort_by(f64::total_cmp);
        deltas.sort_by(f64::total_cmp);
        let (divergence, divergence_error) = mean(scored.iter().map(|s| s.divergence));
        let (delta, delta_error) = mean(scored.iter().map(|s| s.delta_p));
        let (square, square_error) = mean(scored.iter().map(|s| s.delta_p * s.delta_p));
        let rms = square.sqrt();
        let kl = |fraction| percentile(&divergences, fraction);
        let dp = |fraction| percentile(&deltas, fraction);
        Some(Self {
            positions: scored.len() as u64,
            perplexity,
            reference_perplexity,
            correlation: if both > 0.0 { covariance / both } else { 1.0 },
            ln_ratio,
            ratio: exponential(ln_ratio.value, ln_ratio.error),
            difference: Measured {
                value: perplexity.value - reference_perplexity.value,
                error: spread(
                    perplexity.error,
                    reference_perplexity.error,
                    covariance * perplexity.value * reference_perplexity.value,
                ),
            },
            divergence: Divergence {
                mean: divergence,
                error: divergence_error,
                max: kl(1.0),
                p99_9: kl(0.999),
                p99: kl(0.99),
                p95: kl(0.95),
                median: kl(0.5),
                p10: kl(0.1),
                p5: kl(0.05),
                p1: kl(0.01),
                min: kl(0.0),
            },
            same_top: Measured {
                value: same,
                error: (same * (1.0 - same) / (count - 1.0).max(1.0)).sqrt(),
            },
            delta_p: DeltaP {
                mean: delta,
                error: delta_error,
                rms,
                rms_error: if rms > 0.0 {
                    0.5 * square_error / rms
                } else {
                    0.0
                },
                max: dp(1.0),
                p99_9: dp(0.999),
                p99: dp(0.99),
                p95: dp(0.95),
                p90: dp(0.9),
                p75: dp(0.75),
                median: dp(0.5),
                p25: dp(0.25),
                p10: dp(0.1),
                p5: dp(0.05),
                p1: dp(0.01),
                p0_1: dp(0.001),
                min: dp(0.0),
            },
        })
    }
}

/// The exponential of a mean.
fn exponential(mean: f64, error: f64) -> Measured {
    let value = mean.exp();
    Measured {
        value,
        error: value * error,
    }
}

/// Mean and standard error.
fn mean(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count();
    let mean = values.clone().sum::<f64>() / count.max(1) as f64;
    if count < 2 {
        return (mean, 0.0);
    }
    let variance = values.map(|x| (x - mean).powi(2)).sum::<f64>() / count as f64;
    (mean, (variance / (count - 1) as f64).sqrt())
}

/// The covariance of the means of both losses.
fn covariance(scored: &[Scored], loss: f64, reference: f64) -> f64 {
    let count = scored.len();
    if count < 2 {
        return 0.0;
    }
    let sum: f64 = scored
        .iter()
        .map(|s| (s.loss - loss) * (s.reference_loss - reference))
        .sum();
    sum / count as f64 / (count - 1) as f64
}

/// A percentile of sorted values, between two of them in proportion.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place among the values"
)]
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let place = fraction * (sorted.len().max(1) - 1) as f64;
    let below = place as usize;
    let part = place - below as f64;
    let at = |i: usize| {
        sorted
            .get(i.min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0.0)
    };
    (1.0 - part) * at(below) + part * at(below + 1)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_model_beside_itself() {
        let logits = [0.1f32, 2.0, -1.0, 0.0, 0.5, 0.25];
        let scored = score(&logits, &logits, 3, &[1, 0]);
        let found = Behaviour::of(&scored).unwrap();
        assert_eq!(found.positions, 2);
        assert_eq!(found.divergence.max, 0.0);
        assert_eq!(found.ln_ratio.value, 0.0);
        assert_eq!(found.same_top.value, 1.0);
        assert_eq!(found.delta_p.rms, 0.0);
        assert!((found.correlation - 1.0).abs() < 1e-12);
        assert_eq!(Behaviour::of(&[]), None);
    }

    #[test]
    fn a_pair_by_hand() {
        // Probabilities 1/2, 1/2 against 3/4, 1/4.
        let reference = [0.0f32, 0.0];
        let model = [3f32.ln(), 0.0];
        let scored = score(&reference, &model, 2, &[0]);
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((scored[0].divergence - expected).abs() < 1e-7);
        assert!((scored[0].delta_p - 0.25).abs() < 1e-7);
        assert!((scored[0].loss + 0.75f64.ln()).abs() < 1e-7);
        assert!(scored[0].same_top);
    }

    #[test]
    fn percentiles_lie_between() {
        let values = [0.0, 1.0, 2.0, 3.0];
        assert_eq!(percentile(&values, 0.5), 1.5);
        assert_eq!(
            (percentile(&values, 0.0), percentile(&values, 1.0)),
            (0.0, 3.0)
        );
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }
}
