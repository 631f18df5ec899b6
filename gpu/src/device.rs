//! A GPU that is open: its context, one stream for work in order, and the kernels loaded so far.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr,
    LaunchConfig, PinnedHostSlice, ValidAsZeroBits, sys,
};
use cudarc::nvrtc::Ptx;

use crate::error::During;
use crate::kernels::Module;
use crate::{Absent, Found, GpuError, probe};

/// A GPU that is open. Dropping the last of its clones and of what was allocated on it closes it.
pub struct Device {
    found: Found,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Mutex<HashMap<Module, Arc<CudaModule>>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// No GPU that can be used, or one that does not open.
    pub fn open() -> Result<Arc<Self>, GpuError> {
        let found = probe()?;
        // The probe asked for every function; cudarc may want one more on some device.
        catch_unwind(AssertUnwindSafe(|| {
            let context = CudaContext::new(0).during("opening the device")?;
            // With a stream of its own the device orders what several streams do with one buffer.
            let stream = context.new_stream().during("opening the device")?;
            Ok(Arc::new(Self {
                found,
                context,
                stream,
                modules: Mutex::new(HashMap::new()),
            }))
        }))
        .unwrap_or_else(|_| {
            Err(Absent::Broken {
                what: "its library cannot be used".to_owned(),
            }
            .into())
        })
    }

    /// What it is.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The CUDA context, for code that goes on with what is in the device's memory.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The stream that calls without a stream of their own use.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(crate) fn new_stream(&self) -> Result<Arc<CudaStream>, GpuError> {
        self.context.new_stream().during("opening a stream")
    }

    /// An event that many threads may wait for without spinning.
    pub(crate) fn new_event(&self) -> Result<CudaEvent, GpuError> {
        self.context
            .new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))
            .during("preparing the ring")
    }

    /// A kernel; its module is loaded the first time.
    pub(crate) fn function(&self, module: Module, name: &str) -> Result<CudaFunction, GpuError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match modules.get(&module) {
            Some(loaded) => Arc::clone(loaded),
            None => {
                let loaded = self
                    .context
                    .load_module(Ptx::from_src(module.ptx()))
                    .during("loading kernels")?;
                modules.insert(module, Arc::clone(&loaded));
                loaded
            }
        };
        loaded.load_function(name).during("loading a kernel")
    }

    /// Device memory whose content is not set. No buffer is empty: CUDA has none.
    pub(crate) fn alloc<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        // SAFETY: numbers of any bits; every caller writes before it reads.
        unsafe { self.stream.alloc(len.max(1)) }.during("allocating")
    }

    pub(crate) fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        len: usize,
    ) -> Result<CudaSlice<T>, GpuError> {
        self.stream.alloc_zeros(len.max(1)).during("allocating")
    }

    pub(crate) fn upload<T: DeviceRepr>(&self, from: &[T]) -> Result<CudaSlice<T>, GpuError> {
        let mut to = self.alloc(from.len())?;
        if !from.is_empty() {
            self.stream
                .memcpy_htod(from, &mut to)
                .during("copying to the device")?;
        }
        Ok(to)
    }

    pub(crate) fn download<T: DeviceRepr + Default + Clone>(
        &self,
        from: &CudaSlice<T>,
        len: usize,
    ) -> Result<Vec<T>, GpuError> {
        self.download_in(&self.stream, from, len)
    }

    /// As [`Self::download`], in the order of another stream.
    pub(crate) fn download_in<T: DeviceRepr + Default + Clone>(
        &self,
        stream: &Arc<CudaStream>,
        from: &CudaSlice<T>,
        len: usize,
    ) -> Result<Vec<T>, GpuError> {
        let mut to = vec![T::default(); len];
        if len > 0 {
            stream
                .memcpy_dtoh(&from.slice(..len), &mut to)
                .during("copying from the device")?;
        }
        self.wait_for(stream)?;
        Ok(to)
    }

    /// Pinned memory; with `read_back` for copies from the device, else for copies to it only.
    pub(crate) fn pinned<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        len: usize,
        read_back: bool,
    ) -> Result<PinnedHostSlice<T>, GpuError> {
        let flags = if read_back {
            0
        } else {
            cudarc::driver::sys::CU_MEMHOSTALLOC_WRITECOMBINED
        };
        // SAFETY: numbers of any bits; every caller writes before it reads.
        unsafe { self.context.alloc_pinned_with_flags(len.max(1), flags) }.during("pinning memory")
    }

    /// Bytes of shared memory that a block may ask for.
    pub(crate) fn shared_memory(&self) -> Result<usize, GpuError> {
        use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let bytes = self
            .context
            .attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .during("asking for shared memory")?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    /// Waits for the stream, and reports what went wrong where no result could be given.
    pub(crate) fn settle(&self) -> Result<(), GpuError> {
        self.wait_for(&self.stream)
    }

    fn wait_for(&self, stream: &CudaStream) -> Result<(), GpuError> {
        stream.synchronize().during("waiting for the device")?;
        self.context.check_err().during("waiting for the device")
    }
}

/// A launch of one dimension: `items` threads in blocks of `block`.
///
/// # Errors
/// More blocks than a grid has.
pub(crate) fn launch_over(items: u64, block: u32) -> Result<LaunchConfig, GpuError> {
    let blocks = u32::try_from(items.div_ceil(u64::from(block)))
        .ok()
        .filter(|blocks| *blocks <= i32::MAX.cast_unsigned())
        .ok_or_else(|| {
            GpuError::unsupported(
                "the tensor is too large for one launch on a GPU: use the device cpu",
            )
        })?;
    Ok(LaunchConfig {
        grid_dim: (blocks.max(1), 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes: 0,
    })
}
