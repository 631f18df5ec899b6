//! INT8 of whole models wherever the choice of device leads.

use std::ops::Range;
use std::sync::Arc;

use sparse_codec::{Granularity, Int8, TensorView};

use crate::int8_ring::Int8Ring;
use crate::{Choice, Compute, GpuError};

/// Elements of a tensor that are worked on at a time.
const CHUNK: usize = 1 << 20;
/// Such pieces under way, of all threads.
const SLOTS: usize = 8;

/// The codec's INT8, on a GPU where one is used, for as many threads as like. Scales and words are those that the CPU makes.
///
/// Tensors go through a ring of pinned memory whose size does not depend on theirs, made as threads ask for it.
///
/// At [`Choice::Auto`] a GPU that fails is left for good, with one line in the log, and the CPU does the rest.
pub struct Int8Streamed {
    compute: Arc<Compute>,
    ring: Option<Int8Ring>,
}

impl Int8Streamed {
    /// Opens the device.
    ///
    /// # Errors
    /// At [`Choice::Cuda`], no GPU that can be used, and its failures.
    pub fn open(choice: Choice) -> Result<Self, GpuError> {
        Self::on(&Arc::new(Compute::open(choice)?))
    }

    /// On a device that is open, shared with others that compute there: what fails is left by all.
    ///
    /// # Errors
    /// Where the choice was [`Choice::Cuda`], the device's failures.
    pub fn on(compute: &Arc<Compute>) -> Result<Self, GpuError> {
        Self::sized(compute, CHUNK, SLOTS)
    }

    /// As [`Self::open`], with a ring of `slots` pieces of `chunk` elements.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_ring(choice: Choice, chunk: usize, slots: usize) -> Result<Self, GpuError> {
        Self::sized(&Arc::new(Compute::open(choice)?), chunk, slots)
    }

    fn sized(compute: &Arc<Compute>, chunk: usize, slots: usize) -> Result<Self, GpuError> {
        let ring = compute.attempt(|device| Int8Ring::new(device, chunk, slots))?;
        Ok(Self {
            compute: Arc::clone(compute),
            ring,
        })
    }

    /// [`Int8::new`]: the scales of a difference.
    ///
    /// # Errors
    /// [`GpuError::Codec`] as there; at [`Choice::Cuda`], failures of the device.
    pub fn quantise<'a>(
        &self,
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        granularity: Granularity,
    ) -> Result<Int8<'a>, GpuError> {
        let shapes = base.is_none_or(|base| base.shape == target.shape && base.check().is_ok());
        if let Some(ring) = &self.ring
            && target.check().is_ok()
            && shapes
            && Int8Ring::takes(target.dtype, base.map(|base| base.dtype))
        {
            let found = self.compute.attempt(|_| {
                let row = Int8::row_of(target, granularity);
                ring.largest(target, base.map(|base| base.data), row)
            })?;
            if let Some(largest) = found {
                return Ok(Int8::with_largest(target, base, granularity, largest)?);
            }
        }
        Ok(Int8::new(target, base, granularity)?)
    }

    /// [`Int8::rebuilt`]: the words of some elements.
    ///
    /// # Errors
    /// At [`Choice::Cuda`], failures of the device.
    pub fn rebuilt(&self, int8: &Int8<'_>, elements: Range<usize>) -> Result<Vec<u8>, GpuError> {
        let elements = elements.start.min(int8.elements())..elements.end.min(int8.elements());
        let (dtype, _) = int8.target();
        let base = int8.base();
        if let Some(ring) = &self.ring
            && Int8Ring::takes(Some(dtype), base.map(|(dtype, _)| Some(dtype)))
            && let Some(words) = self
                .compute
                .attempt(|_| ring.rebuilt(int8, elements.clone()))?
        {
            return Ok(words);
        }
        Ok(int8.rebuilt(elements))
    }
}
