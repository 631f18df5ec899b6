//! How far single tensors of a candidate are from the fine-tune's.

use std::str::FromStr;

use serde::Serialize;
use sparse_codec::{DType, Distortion, Int8};
use sparse_store::Pair;

use crate::InferenceError;
use crate::candidate::{Candidate, Rebuilt, release, view};

/// Which tensors are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// This many of the largest that are not exact.
    Largest(usize),
    /// All that are not exact.
    All,
}

impl Default for Sample {
    fn default() -> Self {
        Self::Largest(2)
    }
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("all", _) => Ok(Self::All),
            (_, Ok(count)) => Ok(Self::Largest(count)),
            _ => Err(format!(
                "'{text}' is no number of layers: give a number, or all"
            )),
        }
    }
}

/// One tensor of a candidate. Errors are those of its difference from the base: of INT8 before the rebuilt weights are
/// rounded to their type, of other deltas after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerMetrics {
    /// Its name in the fine-tune.
    pub name: String,
    /// Bytes in the fine-tune over bytes of what is kept: for INT8 codes and scales as they are, else as stored.
    pub compression_ratio: f64,
    /// Largest error.
    pub max_abs_error: f64,
    /// Mean error.
    pub mean_abs_error: f64,
    /// The norm of the errors over that of the difference; 0 where nothing differs.
    pub relative_error: f64,
    /// The cosine of the angle between the difference and what is kept of it.
    pub cosine: f64,
    /// The share of elements that come back bit for bit, rounding included.
    pub exact_share: f64,
    /// Its element type.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
}

/// Measures tensors of a candidate, the largest first; those of equal size in the order of the files.
pub(crate) fn measure(
    candidate: &Candidate,
    rebuilt: &Rebuilt<'_>,
    pairs: &[Pair<'_>],
    sample: Sample,
    step: &dyn Fn() -> Result<(), InferenceError>,
) -> Result<Vec<LayerMetrics>, InferenceError> {
    let mut order: Vec<&Pair<'_>> = pairs
        .iter()
        .filter(|pair| pair.same_as.is_none() && may_differ(candidate, pair))
        .collect();
    order.sort_by_key(|pair| std::cmp::Reverse(pair.target.entry.bytes()));
    let wanted = match sample {
        Sample::Largest(count) => count,
        Sample::All => usize::MAX,
    };
    let mut found = Vec::new();
    for pair in order {
        if found.len() >= wanted {
            break;
        }
        step()?;
        let measured = match candidate {
            Candidate::Int8(_) => rebuilt
                .quantised(pair)?
                .map(|int8| (int8.measure(), int8.bytes())),
            _ => of_delta(rebuilt, pair)?,
        };
        if let Some((error, bytes)) = measured {
            found.push(metrics(pair, &error, bytes));
        }
        release(pair);
    }
    Ok(found)
}

/// Whether a tensor is one of those that a candidate approximates.
fn may_differ(candidate: &Candidate, pair: &Pair<'_>) -> bool {
    let (target, base) = (view(pair.target), pair.base.map(view));
    match candidate {
        Candidate::Int8(_) => Int8::suits(target, base),
        _ => {
            target
                .dtype
                .is_some_and(|d| d.is_float() && d != DType::C64)
                && base.is_some()
        }
    }
}

/// The error of what a delta makes of a tensor; none where that is exact and the base has it too, for then there is nothing
/// to tell.
fn of_delta(
    rebuilt: &Rebuilt<'_>,
    pair: &Pair<'_>,
) -> Result<Option<(Distortion, u64)>, InferenceError> {
    let name = pair.target.name();
    let Some(base) = pair.base else {
        return Ok(None);
    };
    let target = pair.target.data();
    let (bytes, stored) = match rebuilt {
        Rebuilt::Delta { tensors, .. } => {
            let found = tensors
                .form(name)
                .map(|(dtype, shape)| (dtype.to_owned(), shape.to_vec()));
            if found
                != Some((
                    pair.target.entry.dtype.clone(),
                    pair.target.shape().to_vec(),
                ))
            {
                return Err(InferenceError::usage(format!(
                    "the delta has no tensor {name:?} of the fine-tune's dtype and shape: it was made of another fine-tune"
                )));
            }
            (tensors.read(name)?, tensors.stored(name).unwrap_or(0))
        }
        Rebuilt::Base(_)
            if base.entry.dtype == pair.target.entry.dtype
                && base.shape() == pair.target.shape() =>
        {
            (base.data().to_vec(), 0)
        }
        _ => return Ok(None),
    };
    if bytes == target {
        return Ok(None);
    }
    let base = (base.shape() == pair.target.shape()).then(|| view(base));
    Distortion::of_rebuilt(view(pair.target), base, &bytes)
        .map(|error| Some((error, stored)))
        .map_err(|error| InferenceError::model(name, error.to_string()))
}

fn metrics(pair: &Pair<'_>, error: &Distortion, bytes: u64) -> LayerMetrics {
    LayerMetrics {
        name: pair.target.name().to_owned(),
        compression_ratio: pair.target.entry.bytes() as f64 / bytes.max(1) as f64,
        max_abs_error: error.max_abs,
        mean_abs_error: error.mean_abs(),
        relative_error: error.relative(),
        cosine: error.cosine(),
        exact_share: error.exact_share(),
        dtype: pair.target.entry.dtype.clone(),
        shape: pair.target.shape().to_vec(),
    }
}
