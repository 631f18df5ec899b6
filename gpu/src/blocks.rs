//! Decoding the blocks of whole models wherever the choice of device leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sparse_codec::TensorDecoder;

use crate::ring::BlockRing;
use crate::{Choice, Compute, GpuError, OnDevice, Restored};

/// Bytes of a tensor that are decoded at a time.
const CHUNK: usize = 4 << 20;
/// Such runs under way: kernels of several overlap, and a warp has a strip of many words.
const SLOTS: usize = 8;

/// Decodes blocks on a GPU where one is used, for as many threads as like. The bytes are those that the CPU makes.
///
/// Blocks go through a ring of pinned memory whose size does not depend on the tensors: about 12 bytes for each byte of a run on
/// either side, made as threads ask for it.
///
/// At [`Choice::Auto`] a GPU that fails is left for good, with one line in the log, and the CPU does the rest.
pub struct Blocks {
    compute: Arc<Compute>,
    ring: Option<BlockRing>,
    device: AtomicU64,
    cpu: AtomicU64,
}

impl Blocks {
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

    /// As [`Self::open`], with a ring of `slots` runs of `chunk` bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_ring(choice: Choice, chunk: usize, slots: usize) -> Result<Self, GpuError> {
        Self::sized(&Arc::new(Compute::open(choice)?), chunk, slots)
    }

    fn sized(compute: &Arc<Compute>, chunk: usize, slots: usize) -> Result<Self, GpuError> {
        let ring = compute.attempt(|device| BlockRing::new(device, chunk, slots))?;
        Ok(Self {
            compute: Arc::clone(compute),
            ring,
            device: AtomicU64::new(0),
            cpu: AtomicU64::new(0),
        })
    }

    /// Bytes of a tensor whose blocks are best decoded together; `None` where the CPU does them.
    pub fn chunk(&self, decoder: &TensorDecoder) -> Option<usize> {
        self.compute.device()?;
        self.ring.as_ref()?.chunk(decoder)
    }

    /// Decodes consecutive blocks of a tensor, from its `first` on, into `out`, which begins where they do. Gives those that
    /// are left for the caller to decode on the CPU, by their places in `blocks`; of `out` their bytes say nothing.
    ///
    /// Left are blocks that have no kernel or need none, such that no encoder wrote, and all where no GPU is used.
    ///
    /// # Errors
    /// At [`Choice::Cuda`], failures of the device.
    pub fn decode(
        &self,
        tensor: &OnDevice,
        decoder: &TensorDecoder,
        first: usize,
        blocks: &[&[u8]],
        base: &[u8],
        out: &mut [u8],
    ) -> Result<Vec<usize>, GpuError> {
        let done = match &self.ring {
            Some(ring) => self
                .compute
                .attempt(|_| ring.decode(tensor, decoder, first, blocks, base, out))?,
            None => None,
        };
        let left = done.unwrap_or_else(|| (0..blocks.len()).collect());
        let count = |n: usize| n as u64;
        self.cpu.fetch_add(count(left.len()), Ordering::Relaxed);
        self.device
            .fetch_add(count(blocks.len() - left.len()), Ordering::Relaxed);
        Ok(left)
    }

    /// How many blocks were given to [`Self::decode`] and done where.
    pub fn done(&self) -> Restored {
        Restored {
            device: self.device.load(Ordering::Relaxed),
            cpu: self.cpu.load(Ordering::Relaxed),
        }
    }
}
