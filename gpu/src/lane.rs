//! What rings are made of: streams, and pinned memory with its counterpart on the device.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits,
};

use crate::error::During;
use crate::{Device, GpuError};

/// The streams that the slots of a ring share: copies to the device in one, copies from it in another.
pub(crate) struct Lanes {
    pub(crate) device: Arc<Device>,
    pub(crate) up: Arc<CudaStream>,
    pub(crate) down: Arc<CudaStream>,
}

/// What a slot has of its own: a stream for kernels, and the event of its last copy back.
pub(crate) struct Own {
    pub(crate) compute: Arc<CudaStream>,
    done: CudaEvent,
}

impl Lanes {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self, GpuError> {
        Ok(Self {
            device: Arc::clone(device),
            up: device.new_stream()?,
            down: device.new_stream()?,
        })
    }

    /// A new slot.
    pub(crate) fn slot<S>(
        &self,
        make: impl FnOnce(&Device, Own) -> Result<S, GpuError>,
    ) -> Result<S, GpuError> {
        let device = &self.device;
        let own = Own {
            compute: device.new_stream()?,
            done: device.new_event()?,
        };
        let slot = make(device, own)?;
        // Memory is allocated in the order of the device's own stream, and other streams use it.
        device.settle()?;
        Ok(slot)
    }

    /// Marks that nothing more of a slot's work is queued.
    pub(crate) fn end(&self, own: &Own) -> Result<(), GpuError> {
        own.done.record(&self.down).during("queueing a run")
    }

    /// Waits for what was queued before the last [`Self::end`].
    pub(crate) fn wait(&self, own: &Own) -> Result<(), GpuError> {
        own.done.synchronize().during("waiting for a run")?;
        let context = self.device.context();
        context.check_err().during("waiting for a run")
    }

    /// Waits after an error. No copy may be under way when a slot is used again: pinned memory carries no event.
    pub(crate) fn drain(&self, own: &Own) {
        drain(&[&self.up, &own.compute, &self.down]);
    }
}

/// Waits for streams after an error.
pub(crate) fn drain(streams: &[&Arc<CudaStream>]) {
    for stream in streams {
        if let Err(error) = stream.synchronize() {
            tracing::debug!("leaving a GPU's ring: {error}");
        }
    }
}

/// Pinned memory that is copied to a buffer on the device.
pub(crate) struct Up<T> {
    host: PinnedHostSlice<T>,
    pub(crate) on_device: CudaSlice<T>,
}

impl<T: DeviceRepr + ValidAsZeroBits + Copy> Up<T> {
    pub(crate) fn new(device: &Device, len: usize) -> Result<Self, GpuError> {
        Ok(Self {
            host: device.pinned(len, false)?,
            on_device: device.alloc(len)?,
        })
    }

    /// Most that can be sent at once.
    pub(crate) fn len(&self) -> usize {
        self.host.len()
    }

    /// Fills it and queues the copy. What was sent before must be there: pinned memory carries no event.
    pub(crate) fn send(&mut self, stream: &Arc<CudaStream>, from: &[T]) -> Result<(), GpuError> {
        if from.is_empty() {
            return Ok(());
        }
        let host = self.host.as_mut_slice().during("filling the ring")?;
        let Some(host) = host.get_mut(..from.len()) else {
            return Err(GpuError::unsupported("a run is larger than the ring"));
        };
        host.copy_from_slice(from);
        stream
            .memcpy_htod(&*host, &mut self.on_device)
            .during("copying to the device")
    }
}

/// A buffer on the device that is copied to pinned memory.
pub(crate) struct Down<T> {
    pub(crate) on_device: CudaSlice<T>,
    host: PinnedHostSlice<T>,
}

impl<T: DeviceRepr + ValidAsZeroBits> Down<T> {
    pub(crate) fn new(device: &Device, len: usize) -> Result<Self, GpuError> {
        Ok(Self {
            on_device: device.alloc(len)?,
            host: device.pinned(len, true)?,
        })
    }

    /// Queues the copy of a part, to the same place.
    pub(crate) fn fetch(
        &mut self,
        stream: &Arc<CudaStream>,
        range: Range<usize>,
    ) -> Result<(), GpuError> {
        if range.is_empty() {
            return Ok(());
        }
        let host = self.host.as_mut_slice().during("emptying the ring")?;
        let (Some(host), Some(from)) =
            (host.get_mut(range.clone()), self.on_device.try_slice(range))
        else {
            return Err(GpuError::unsupported("a run is larger than the ring"));
        };
        stream
            .memcpy_dtoh(&from, host)
            .during("copying from the device")
    }

    /// What was copied, once that was waited for.
    pub(crate) fn get(&self) -> Result<&[T], GpuError> {
        self.host.as_slice().during("emptying the ring")
    }
}
