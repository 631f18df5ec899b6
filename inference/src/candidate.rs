//! What is judged: the model that INT8 or a delta makes of the base, its tensors made when they are asked for.

use std::collections::HashMap;

use sparse_codec::{CodecError, DType, Granularity, Int8, TensorView};
use sparse_delta::{DeltaError, DeltaTensors};
use sparse_gpu::{GpuError, Int8Streamed};
use sparse_store::{Model, Pair, TensorHandle};

use crate::InferenceError;
use crate::weights::{Weights, floats};

/// What stands in for the fine-tune.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// The base and the INT8 codes of the fine-tune's difference from it, what shares a scale given.
    Int8(Granularity),
    /// What a delta artifact makes of the base (a folder, URL, or key in the delta store), at one of a low-rank
    /// approximation's ranks; its largest where none is given.
    Delta {
        /// The artifact.
        path: String,
        /// The rank.
        rank: Option<u64>,
    },
    /// The base itself: what doing nothing costs.
    Base,
}

/// A candidate whose tensors can be asked for.
pub(crate) enum Rebuilt<'m> {
    Int8 {
        pairs: &'m [Pair<'m>],
        numbers: HashMap<&'m str, usize>,
        granularity: Granularity,
        streamed: Int8Streamed,
        id: String,
    },
    Delta {
        tensors: DeltaTensors<'m>,
        id: String,
    },
    Base(&'m Model),
}

impl<'m> Rebuilt<'m> {
    pub(crate) fn int8(
        pairs: &'m [Pair<'m>],
        granularity: Granularity,
        streamed: Int8Streamed,
        finetune: &str,
    ) -> Self {
        let mut numbers = HashMap::new();
        for (number, pair) in pairs.iter().enumerate() {
            numbers.entry(pair.target.name()).or_insert(number);
        }
        Self::Int8 {
            pairs,
            numbers,
            granularity,
            streamed,
            id: format!("{finetune} in INT8"),
        }
    }

    /// The difference of a pair, quantised; none where the tensor is kept exactly.
    pub(crate) fn quantised(&self, pair: &Pair<'m>) -> Result<Option<Int8<'m>>, InferenceError> {
        match self {
            Self::Int8 {
                granularity,
                streamed,
                ..
            } => quantised(streamed, pair, *granularity),
            _ => Ok(None),
        }
    }
}

fn quantised<'m>(
    streamed: &Int8Streamed,
    pair: &Pair<'m>,
    granularity: Granularity,
) -> Result<Option<Int8<'m>>, InferenceError> {
    let (target, base) = (view(pair.target), pair.base.map(view));
    if !Int8::suits(target, base) {
        return Ok(None);
    }
    match streamed.quantise(target, base, granularity) {
        Ok(int8) => Ok(Some(int8)),
        Err(GpuError::Codec(CodecError::NotFinite { .. })) => Ok(None),
        Err(GpuError::Codec(error)) => Err(InferenceError::model(
            pair.target.file.name.as_str(),
            format!("tensor {:?}: {error}", pair.target.name()),
        )),
        Err(error) => Err(DeltaError::from(error).into()),
    }
}

/// A tensor as the codec sees it.
pub(crate) fn view(tensor: TensorHandle<'_>) -> TensorView<'_> {
    tensor.view()
}

impl Weights for Rebuilt<'_> {
    fn id(&self) -> &str {
        match self {
            Self::Int8 { id, .. } | Self::Delta { id, .. } => id,
            Self::Base(model) => model.id(),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        match self {
            Self::Int8 { pairs, numbers, .. } => {
                let pair = numbers.get(name).and_then(|number| pairs.get(*number))?;
                Some(pair.target.shape().to_vec())
            }
            Self::Delta { tensors, .. } => tensors.form(name).map(|(_, shape)| shape.to_vec()),
            Self::Base(model) => Weights::shape(*model, name),
        }
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, InferenceError> {
        match self {
            Self::Int8 {
                pairs,
                numbers,
                granularity,
                streamed,
                id,
            } => {
                let pair = numbers
                    .get(name)
                    .and_then(|number| pairs.get(*number))
                    .ok_or_else(|| {
                        InferenceError::model(id, format!("it has no tensor {name:?}"))
                    })?;
                let dtype = pair.target.dtype();
                let values = match quantised(streamed, pair, *granularity)? {
                    Some(int8) => {
                        let words = streamed.rebuilt(&int8, 0..int8.elements());
                        floats(id, name, dtype, &words.map_err(DeltaError::from)?)
                    }
                    None => floats(id, name, dtype, pair.target.data()),
                };
                release(pair);
                values
            }
            Self::Delta { tensors, id } => {
                let dtype: Option<DType> = tensors.dtype(name);
                floats(id, name, dtype, &tensors.read(name)?)
            }
            Self::Base(model) => Weights::values(*model, name),
        }
    }
}

/// Lets go of the pages of both tensors.
pub(crate) fn release(pair: &Pair<'_>) {
    pair.target.release();
    if let Some(base) = pair.base {
        base.release();
    }
}
