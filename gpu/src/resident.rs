//! A base model that stays in the device's memory, and a variant of it beside that is switched in place: only deltas travel.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::CudaSlice;
use sparse_codec::{DType, Matrices, TensorView};

use crate::error::During;
use crate::int8::{Codes, Segments};
use crate::kernels::dtype_name;
use crate::restore::{Job, restore};
use crate::{Coded, Device, DeviceMatrices, GpuError, Quantised, Restored};

/// How a tensor of a variant comes from the base's.
#[derive(Clone, Copy, Debug)]
pub enum Update<'a> {
    /// INT8 codes and scales of the difference.
    Int8 {
        /// Codes and scales.
        quantised: &'a Quantised,
        /// What shares a scale.
        segments: Segments,
    },
    /// The base plus a low-rank update.
    LowRank(&'a Matrices),
    /// Blocks of a lossless delta.
    Coded(Coded<'a>),
    /// Words that replace the base's.
    Words(&'a [u8]),
}

#[derive(Debug)]
struct Tensor {
    dtype: DType,
    bytes: usize,
    base: CudaSlice<u8>,
    variant: CudaSlice<u8>,
}

/// A base model's tensors on a device and the variant that is switched in.
///
/// The variant's addresses never change, so that an inference engine may keep them. It takes as much memory as the base.
#[derive(Debug)]
pub struct Resident {
    device: Arc<Device>,
    tensors: Vec<Tensor>,
    /// The tensors that differ from the base.
    switched: Vec<bool>,
    whole: bool,
}

impl Resident {
    /// Copies a base to the device; the variant is the base itself at first.
    ///
    /// # Errors
    /// Dtypes other than BF16, F16 and F32, and failures of the device, a full memory among them.
    pub fn new(device: &Arc<Device>, base: &[TensorView<'_>]) -> Result<Self, GpuError> {
        let mut tensors = Vec::with_capacity(base.len());
        for view in base {
            let dtype = view
                .dtype
                .filter(|dtype| dtype_name(*dtype).is_some())
                .ok_or_else(|| {
                    GpuError::unsupported("a resident model's tensors are BF16, F16 or F32")
                })?;
            let bytes = view.data.len();
            let base = device.upload(view.data)?;
            let mut variant = device.alloc::<u8>(bytes)?;
            copy(device, &base, &mut variant, bytes)?;
            tensors.push(Tensor {
                dtype,
                bytes,
                base,
                variant,
            });
        }
        device.settle()?;
        Ok(Self {
            device: Arc::clone(device),
            switched: vec![false; tensors.len()],
            tensors,
            whole: true,
        })
    }

    /// Switches to a variant: each tensor named becomes what its update makes of the base, every other one the base's. Returns
    /// when the device is done, with how many coded blocks were decoded where.
    ///
    /// # Errors
    /// A tensor that is not there or named twice, an update that does not fit it (found before anything changes), and blocks
    /// that no encoder wrote or failures of the device, after which the variant cannot be read until another switch succeeds.
    pub fn switch(&mut self, updates: &[(usize, Update<'_>)]) -> Result<Restored, GpuError> {
        let mut named = vec![false; self.tensors.len()];
        for (index, update) in updates {
            let (Some(tensor), Some(seen)) = (self.tensors.get(*index), named.get_mut(*index))
            else {
                return Err(GpuError::unsupported(format!("there is no tensor {index}")));
            };
            if std::mem::replace(seen, true) {
                return Err(GpuError::unsupported(format!(
                    "tensor {index} is named twice"
                )));
            }
            tensor.check(*update)?;
        }
        let was_whole = std::mem::replace(&mut self.whole, false);
        let stream = Arc::clone(self.device.stream());
        for (index, tensor) in self.tensors.iter_mut().enumerate() {
            let (named, switched) = (named.get(index), self.switched.get(index));
            // What was the base's before stays.
            if named == Some(&false) && (switched == Some(&true) || !was_whole) {
                copy(
                    &self.device,
                    &tensor.base,
                    &mut tensor.variant,
                    tensor.bytes,
                )?;
            }
        }
        for (index, update) in updates {
            let Some(tensor) = self.tensors.get_mut(*index) else {
                continue;
            };
            match update {
                Update::Int8 {
                    quantised,
                    segments,
                } => {
                    let codes =
                        Codes::new(&self.device, &quantised.codes, &quantised.scales, *segments)?;
                    codes.apply(
                        &self.device,
                        &stream,
                        tensor.dtype,
                        Some(&tensor.base),
                        &mut tensor.variant,
                    )?;
                }
                Update::LowRank(matrices) => {
                    let count = tensor.bytes / tensor.dtype.word_bytes();
                    if count > 0 {
                        DeviceMatrices::new(&self.device, matrices)?.launch(
                            &stream,
                            &tensor.base,
                            &mut tensor.variant,
                            None,
                            0,
                            count,
                        )?;
                    }
                }
                // All at once, below.
                Update::Coded(_) | Update::Words([]) => {}
                Update::Words(words) => {
                    stream
                        .memcpy_htod(*words, &mut tensor.variant)
                        .during("copying to the device")?;
                }
            }
        }
        let coded: HashMap<usize, Coded<'_>> = updates
            .iter()
            .filter_map(|(index, update)| match update {
                Update::Coded(coded) => Some((*index, *coded)),
                _ => None,
            })
            .collect();
        let mut jobs: Vec<Job<'_, '_>> = self
            .tensors
            .iter_mut()
            .enumerate()
            .filter_map(|(index, tensor)| {
                Some(Job {
                    coded: *coded.get(&index)?,
                    dtype: tensor.dtype,
                    base: &tensor.base,
                    base_bytes: tensor.bytes,
                    out: &mut tensor.variant,
                })
            })
            .collect();
        let restored = restore(&self.device, &mut jobs)?;
        self.device.settle()?;
        self.switched = named;
        self.whole = true;
        Ok(restored)
    }

    /// A tensor of the variant in the device's memory: its bytes are the first of the slice.
    ///
    /// # Errors
    /// A tensor that is not there, and a variant that is not whole.
    pub fn variant(&self, index: usize) -> Result<&CudaSlice<u8>, GpuError> {
        self.get(index).map(|tensor| &tensor.variant)
    }

    /// A tensor of the variant, copied back.
    ///
    /// # Errors
    /// As [`Self::variant`], and failures of the device.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, GpuError> {
        let tensor = self.get(index)?;
        self.device.download(&tensor.variant, tensor.bytes)
    }

    fn get(&self, index: usize) -> Result<&Tensor, GpuError> {
        if !self.whole {
            return Err(GpuError::Broken);
        }
        self.tensors
            .get(index)
            .ok_or_else(|| GpuError::unsupported(format!("there is no tensor {index}")))
    }
}

impl Tensor {
    fn check(&self, update: Update<'_>) -> Result<(), GpuError> {
        let elements = self.bytes / self.dtype.word_bytes();
        let fits = match update {
            Update::Int8 {
                quantised,
                segments,
            } => {
                quantised.codes.len() == elements
                    && segments.count(elements as u64)? == quantised.scales.len() as u64
            }
            Update::LowRank(matrices) => {
                matrices.dtype() == self.dtype
                    && matrices.left().len() / matrices.rank().max(1) * matrices.cols() == elements
            }
            Update::Coded(coded) => {
                coded.bytes() == self.bytes && coded.blocks.len() == coded.decoder.blocks()
            }
            Update::Words(words) => words.len() == self.bytes,
        };
        if fits {
            Ok(())
        } else {
            Err(GpuError::unsupported(
                "an update does not fit the base's tensor: it was made for another base",
            ))
        }
    }
}

fn copy(
    device: &Device,
    from: &CudaSlice<u8>,
    to: &mut CudaSlice<u8>,
    bytes: usize,
) -> Result<(), GpuError> {
    if bytes == 0 {
        return Ok(());
    }
    device
        .stream()
        .memcpy_dtod(from, to)
        .during("copying on the device")
}
