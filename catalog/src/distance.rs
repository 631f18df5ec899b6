//! How far apart the weights of two models are, in bits.
//!
//! A weight is put on a scale that is linear near zero and logarithmic beyond, in steps of 1/128 of an octave (those of BF16
//! where it is logarithmic); the bit distance of two weights is log2(1 + steps between them): 0 for the same weight, 1 for
//! neighbours, 4 for weights that share all but their last four bits. The scale makes models of different dtypes comparable.
//!
//! What strangers would have is measured on the same samples: the distance after one of the two has been shifted against the
//! other. The score is 1 minus the ratio of the two: 1 for the same weights, around 0 for strangers.

use crate::sample::Values;

/// Steps to an octave.
const STEPS: f32 = 128.0;
/// The scale is linear below this share of a sample's root mean square.
const LINEAR: f32 = 1.0 / 64.0;

/// Samples on the scale of distances.
pub(crate) type Scaled = Vec<Option<Vec<f32>>>;

/// The unit of each sample: its root mean square in the model in question. None for samples that say nothing: all zero, or not
/// finite.
pub(crate) fn units(values: &Values) -> Vec<Option<f32>> {
    values
        .iter()
        .map(|chunk| {
            let chunk = chunk.as_ref()?;
            #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
            let mean =
                chunk.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / chunk.len() as f64;
            #[expect(clippy::cast_possible_truncation, reason = "a unit needs no more")]
            let unit = mean.sqrt() as f32;
            (unit.is_finite() && unit > f32::MIN_POSITIVE).then_some(unit)
        })
        .collect()
}

/// Puts samples on the scale.
pub(crate) fn scale(values: &Values, units: &[Option<f32>]) -> Scaled {
    values
        .iter()
        .zip(units)
        .map(|(chunk, unit)| {
            let (chunk, unit) = (chunk.as_ref()?, (*unit)? * LINEAR);
            let on_scale = |x: &f32| {
                let steps = (x / unit).asinh() * (STEPS * std::f32::consts::LOG2_E);
                // What is no number is nowhere near anything.
                if steps.is_finite() { steps } else { f32::MAX }
            };
            Some(chunk.iter().map(on_scale).collect())
        })
        .collect()
}

/// The distance of one sample in two models.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gap {
    /// Mean bit distance of the weights.
    pub(crate) bits: f64,
    /// The same with one of the two shifted: that of strangers.
    pub(crate) null: f64,
    /// Weights compared; 0 where one model does not have the sample.
    pub(crate) count: usize,
}

/// The distances of two models, sample by sample.
pub(crate) fn gaps(a: &Scaled, b: &Scaled) -> Vec<Gap> {
    a.iter()
        .zip(b)
        .map(|(a, b)| match (a, b) {
            (Some(a), Some(b)) => gap(a, b),
            _ => Gap::default(),
        })
        .collect()
}

fn gap(a: &[f32], b: &[f32]) -> Gap {
    let count = a.len().min(b.len());
    let mean = |pairs: &mut dyn Iterator<Item = (&f32, &f32)>| {
        let sum: f64 = pairs
            .map(|(x, y)| f64::from((1.0 + (x - y).abs()).log2()))
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let mean = sum / count.max(1) as f64;
        mean
    };
    let bits = mean(&mut a.iter().zip(b));
    let shift = count / 2 + 1;
    let null = mean(&mut a.iter().zip(b.iter().cycle().skip(shift)));
    Gap { bits, null, count }
}

/// What samples say together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// 1 - distance / distance of strangers.
    pub(crate) score: f64,
    /// Mean bit distance.
    pub(crate) bits: f64,
    /// The score in units of its standard error, as it varies between samples.
    pub(crate) sigmas: f64,
    /// Samples that both models have and that say something.
    pub(crate) chunks: usize,
}

/// Sums up samples. Those in which even strangers would be alike (constants) say nothing.
pub(crate) fn summary(gaps: &[Gap]) -> Summary {
    let said: Vec<&Gap> = gaps
        .iter()
        .filter(|gap| gap.count > 0 && gap.null > 0.5)
        .collect();
    if said.is_empty() {
        return Summary::default();
    }
    let weigh = |f: fn(&Gap) -> f64| -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        said.iter().map(|gap| f(gap) * gap.count as f64).sum()
    };
    let (bits, null, count) = (weigh(|gap| gap.bits), weigh(|gap| gap.null), weigh(|_| 1.0));
    let score = 1.0 - bits / null;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let n = said.len() as f64;
    let spread: f64 = said
        .iter()
        .map(|gap| (1.0 - gap.bits / gap.null - score).powi(2))
        .sum();
    // Never more certain than the noise of the weights themselves allows.
    let error = (spread / n.max(2.0) / (n - 1.0).max(1.0))
        .sqrt()
        .max(0.25 / count.sqrt());
    Summary {
        score,
        bits: bits / count,
        sigmas: score / error,
        chunks: said.len(),
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
mod tests {
    use super::*;
    use crate::sample::mix;

    /// Numbers of a bell-like distribution.
    fn noise(seed: u64, count: usize) -> Vec<f32> {
        let unit = |at: u64| (mix(at) >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
        (0..count as u64)
            .map(|at| (0..4).map(|k| unit(seed * 1_000_003 + at * 4 + k)).sum())
            .collect()
    }

    fn score(a: &[f32], b: &[f32]) -> Summary {
        let split =
            |values: &[f32]| -> Values { values.chunks(512).map(|c| Some(c.to_vec())).collect() };
        let units = units(&split(a));
        summary(&gaps(&scale(&split(a), &units), &scale(&split(b), &units)))
    }

    #[test]
    fn the_same_near_and_strange() {
        let a = noise(1, 8192);
        assert!(score(&a, &a).score > 0.999);
        let near: Vec<f32> = a
            .iter()
            .zip(noise(2, 8192))
            .map(|(x, n)| x + n * 0.02)
            .collect();
        let far: Vec<f32> = a
            .iter()
            .zip(noise(2, 8192))
            .map(|(x, n)| x + n * 0.5)
            .collect();
        let (near, far, stranger) = (
            score(&a, &near),
            score(&a, &far),
            score(&a, &noise(3, 8192)),
        );
        assert!(near.score > 0.5 && near.sigmas > 20.0, "{near:?}");
        assert!(
            far.score > 0.1 && far.score < near.score && far.sigmas > 6.0,
            "{far:?}"
        );
        assert!(
            stranger.score.abs() < 0.03 && stranger.sigmas < 4.0,
            "{stranger:?}"
        );
    }

    #[test]
    fn constants_say_nothing() {
        let ones = vec![1.0; 1024];
        assert_eq!(score(&ones, &ones).chunks, 0);
        assert_eq!(score(&vec![0.0; 1024], &ones).chunks, 0);
        assert_eq!(score(&vec![f32::NAN; 1024], &ones).chunks, 0);
    }
}
