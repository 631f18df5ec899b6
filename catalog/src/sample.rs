//! Which elements of a model are looked at, and their values in every model that is compared with it.

use std::collections::HashMap;

use sparse_codec::DType;
use sparse_store::StoreError;

use crate::weights::{Tensor, Weights};

/// Elements of one sample: one read of at most 4 KiB.
pub(crate) const LEN: usize = 512;
/// Samples of a model.
pub(crate) const CHUNKS: usize = 128;
/// Of those, so many are enough to tell relatives from strangers.
pub(crate) const COARSE: usize = 32;
/// Leading components of tensor names that may differ (`model.`, `base_model.model.`).
const MAX_STRIPPED: usize = 3;

/// A run of elements of a tensor of the model in question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    tensor: usize,
    start: u64,
    len: usize,
}

/// The float type whose values can be compared; none for packed, integer and complex elements.
fn float(tensor: &Tensor) -> Option<DType> {
    DType::parse(&tensor.dtype).filter(|dtype| dtype.is_float() && *dtype != DType::C64)
}

/// Matrices and larger. Vectors (norms, biases) are nearly the same in strangers.
fn counts(tensor: &Tensor) -> bool {
    tensor.shape.len() >= 2 && tensor.params() > 0 && float(tensor).is_some()
}

/// Parameters of the tensors that count.
pub(crate) fn weight(weights: &Weights) -> u64 {
    weights
        .tensors
        .iter()
        .filter(|tensor| counts(tensor))
        .fold(0, |sum, tensor| sum.saturating_add(tensor.params()))
}

/// Runs of elements spread evenly over the tensors that count, in an order in which every beginning is spread evenly too.
/// The same model gives the same ones.
pub(crate) fn choose(weights: &Weights) -> Vec<Chunk> {
    let tensors: Vec<(usize, &Tensor)> = weights
        .tensors
        .iter()
        .enumerate()
        .filter(|(_, tensor)| counts(tensor))
        .collect();
    let total = tensors.iter().fold(0_u64, |sum, (_, tensor)| {
        sum.saturating_add(tensor.params())
    });
    let mut chunks = Vec::new();
    for number in 0..CHUNKS as u64 {
        // Bits of the number in reverse: 0, 1/2, 1/4, 3/4, 1/8, ... of the way.
        let reversed = number.reverse_bits() >> (64 - CHUNKS.trailing_zeros());
        let stride = u128::from(total) / CHUNKS as u128;
        let jitter = (u128::from(mix(number)) * stride) >> 64;
        let at = u128::from(reversed) * u128::from(total) / CHUNKS as u128 + jitter;
        let mut at = u64::try_from(at).unwrap_or(0);
        for &(tensor, shape) in &tensors {
            let params = shape.params();
            if at >= params {
                at -= params;
                continue;
            }
            let len = params.min(LEN as u64);
            let start = at.min(params - len);
            let len = usize::try_from(len).unwrap_or(LEN);
            chunks.push(Chunk { tensor, start, len });
            break;
        }
    }
    chunks
}

/// SplitMix64's finish: numbers that look random, always the same.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which tensor of another model each tensor of the model in question is.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// By number of the model's tensor: the other's.
    to: Vec<Option<usize>>,
    /// Share of the model's parameters (of those that count) that have a counterpart.
    pub(crate) covered: f64,
    /// Whether the other has more rows somewhere: an enlarged vocabulary.
    pub(crate) more_rows: bool,
}

impl Mapping {
    /// Pairs tensors of one name whose rows have one shape; their number may differ. Where that leaves most of the model
    /// without a counterpart, names are compared without up to three leading components on either side.
    pub(crate) fn new(model: &Weights, other: &Weights) -> Self {
        let total = weight(model).max(1);
        let mut best: Option<(u64, Vec<Option<usize>>)> = None;
        'search: for sum in 0..=2 * MAX_STRIPPED {
            for mine in 0..=sum.min(MAX_STRIPPED) {
                let theirs = sum - mine;
                if theirs > MAX_STRIPPED {
                    continue;
                }
                let (covered, to) = pair(model, other, mine, theirs);
                let enough = covered > total / 10 * 9;
                if best.as_ref().is_none_or(|(most, _)| covered > *most) {
                    best = Some((covered, to));
                }
                if enough {
                    break 'search;
                }
            }
        }
        let (covered, to) = best.unwrap_or_default();
        let more_rows = to.iter().zip(&model.tensors).any(|(to, tensor)| {
            to.and_then(|to| other.tensors.get(to))
                .is_some_and(|other| other.rows() > tensor.rows())
        });
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let covered = covered as f64 / total as f64;
        Self {
            to,
            covered,
            more_rows,
        }
    }
}

/// Pairs with `mine` and `theirs` leading components of names ignored; tensors that have the full name in common are paired too.
fn pair(model: &Weights, other: &Weights, mine: usize, theirs: usize) -> (u64, Vec<Option<usize>>) {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (at, tensor) in other.tensors.iter().enumerate().filter(|(_, t)| counts(t)) {
        by_name.insert(&tensor.name, at);
        if let Some(name) = stripped(&tensor.name, theirs) {
            by_name.entry(name).or_insert(at);
        }
    }
    let mut covered = 0_u64;
    let mut to = vec![None; model.tensors.len()];
    for (slot, tensor) in to.iter_mut().zip(&model.tensors).filter(|(_, t)| counts(t)) {
        let name = stripped(&tensor.name, mine).unwrap_or(&tensor.name);
        let Some(&at) = by_name.get(name) else {
            continue;
        };
        let Some(found) = other.tensors.get(at) else {
            continue;
        };
        if found.row_shape() == tensor.row_shape() && found.shape.len() == tensor.shape.len() {
            *slot = Some(at);
            let row = tensor.params() / tensor.rows().max(1);
            covered = covered.saturating_add(row.saturating_mul(tensor.rows().min(found.rows())));
        }
    }
    (covered, to)
}

fn stripped(name: &str, components: usize) -> Option<&str> {
    let mut rest = name;
    for _ in 0..components {
        rest = rest.split_once('.')?.1;
    }
    Some(rest)
}

/// The values of samples in one model; none where it has no counterpart of the tensor, or too few rows.
pub(crate) type Values = Vec<Option<Vec<f32>>>;

/// Reads the samples `chunks` of the model in question itself.
pub(crate) fn own(weights: &Weights, chunks: &[Chunk]) -> Result<(Values, u64), StoreError> {
    let to: Vec<Option<usize>> = (0..weights.tensors.len()).map(Some).collect();
    read(weights, weights, &to, chunks)
}

/// Reads the same samples of another model.
pub(crate) fn others(
    model: &Weights,
    other: &Weights,
    mapping: &Mapping,
    chunks: &[Chunk],
) -> Result<(Values, u64), StoreError> {
    read(model, other, &mapping.to, chunks)
}

fn read(
    model: &Weights,
    other: &Weights,
    to: &[Option<usize>],
    chunks: &[Chunk],
) -> Result<(Values, u64), StoreError> {
    let mut reader = other.reader()?;
    let mut values = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let found = to
            .get(chunk.tensor)
            .copied()
            .flatten()
            .and_then(|at| other.tensors.get(at));
        let end = chunk.start + chunk.len as u64;
        values.push(match found {
            Some(tensor) if end <= tensor.params() && model.tensors.len() > chunk.tensor => {
                match float(tensor) {
                    Some(dtype) => Some(reader.values(tensor, dtype, chunk.start, chunk.len)?),
                    None => None,
                }
            }
            _ => None,
        });
    }
    Ok((values, reader.bytes))
}
