//! Where a decoder's tensors come from: one at a time, when they are needed, so that no whole model is ever in memory.

use candle_core::{Device, Tensor};
use sparse_codec::DType;
use sparse_store::Model;

use crate::InferenceError;

/// The tensors of a model by name.
pub trait Weights: Sync {
    /// The model as messages call it.
    fn id(&self) -> &str;

    /// The shape of a tensor; `None` where there is none of that name.
    fn shape(&self, name: &str) -> Option<Vec<u64>>;

    /// The values of a tensor that [`Self::shape`] knows, row-major.
    ///
    /// # Errors
    /// A tensor that cannot be read or made, or whose type has no values.
    fn values(&self, name: &str) -> Result<Vec<f32>, InferenceError>;
}

impl Weights for Model {
    fn id(&self) -> &str {
        Self::id(self)
    }

    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        self.tensor(name).map(|tensor| tensor.shape().to_vec())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, InferenceError> {
        let tensor = self.tensor(name).ok_or_else(|| {
            InferenceError::model(Self::id(self), format!("it has no tensor {name:?}"))
        })?;
        let values = floats(Self::id(self), name, tensor.dtype(), tensor.data());
        tensor.release();
        values
    }
}

/// The values of a tensor's bytes.
pub(crate) fn floats(
    model: &str,
    name: &str,
    dtype: Option<DType>,
    data: &[u8],
) -> Result<Vec<f32>, InferenceError> {
    let dtype = dtype
        .filter(|d| d.is_float() && *d != DType::C64)
        .ok_or_else(|| {
            InferenceError::unsupported(format!(
                "{model}: tensor {name:?} is {}, and a decoder's weights are floats",
                dtype.map_or("of an unknown type", DType::name)
            ))
        })?;
    let mut values = Vec::new();
    sparse_codec::to_f32(dtype, data, &mut values)
        .map_err(|error| InferenceError::model(model, format!("tensor {name:?}: {error}")))?;
    Ok(values)
}

/// Takes tensors under a prefix, their shapes checked before anything of their size is made.
pub(crate) struct Loader<'w> {
    weights: &'w dyn Weights,
    prefix: &'static str,
}

impl<'w> Loader<'w> {
    /// A loader for the first of `prefixes` under which there is a tensor `witness`.
    pub(crate) fn new(
        weights: &'w dyn Weights,
        prefixes: &[&'static str],
        witness: &str,
    ) -> Result<Self, InferenceError> {
        let prefix = prefixes
            .iter()
            .find(|prefix| weights.shape(&format!("{prefix}{witness}")).is_some())
            .ok_or_else(|| {
                InferenceError::model(
                    weights.id(),
                    format!(
                        "it has no tensor \"{}{witness}\", which its config.json promises",
                        prefixes.first().unwrap_or(&"")
                    ),
                )
            })?;
        Ok(Self { weights, prefix })
    }

    /// Whether there is a tensor of this whole name.
    pub(crate) fn has(&self, whole: &str) -> bool {
        self.weights.shape(whole).is_some()
    }

    /// Checks that a tensor is there, of this shape.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<(), InferenceError> {
        self.check_whole(&format!("{}{name}", self.prefix), shape)
    }

    /// As [`Self::check`], for a name without the prefix.
    pub(crate) fn check_whole(&self, whole: &str, shape: &[usize]) -> Result<(), InferenceError> {
        let problem = match self.weights.shape(whole) {
            None => format!("it has no tensor {whole:?}, which its config.json promises"),
            Some(found) if found.iter().copied().eq(shape.iter().map(|n| *n as u64)) => {
                return Ok(());
            }
            Some(found) => format!(
                "tensor {whole:?} has the shape {found:?}, and by its config.json it has {shape:?}"
            ),
        };
        Err(InferenceError::model(
            self.weights.id(),
            format!("{problem}; give weights and configuration of one model"),
        ))
    }

    /// The values of a tensor of this shape.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InferenceError> {
        self.check(name, shape)?;
        self.weights.values(&format!("{}{name}", self.prefix))
    }

    /// A tensor of this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, InferenceError> {
        let values = self.values(name, shape)?;
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// As [`Self::tensor`], for a name without the prefix.
    pub(crate) fn whole(&self, whole: &str, shape: &[usize]) -> Result<Tensor, InferenceError> {
        self.check_whole(whole, shape)?;
        Ok(Tensor::from_vec(
            self.weights.values(whole)?,
            shape,
            &Device::Cpu,
        )?)
    }
}
