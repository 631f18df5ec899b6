//! Decoding strips: `kernels/decode.cu`.

use cudarc::driver::{CudaSlice, CudaStream, PushKernelArg};
use sparse_codec::{Coding, DType, StripForm};

use crate::error::During;
use crate::kernels::{Module, dtype_name};
use crate::strips::{DeviceTables, Staged, Strip};
use crate::{Device, GpuError};

impl Staged {
    /// A strip to decode. Words, prediction and classes are for the caller to point to.
    pub(crate) fn coded(
        &mut self,
        coding: &Coding<'_>,
        form: &StripForm<'_>,
    ) -> Result<Strip, GpuError> {
        let narrow = |part: &[u8]| {
            u32::try_from(part.len())
                .ok()
                .filter(|n| *n <= 1 << 30)
                .ok_or_else(|| GpuError::unsupported("a strip is too large for a GPU"))
        };
        let strip = self.strip(coding, &form.words)?;
        let coded = form.coded.unwrap_or_default();
        let at = self.put(coded.iter().copied());
        self.put(form.raw.iter().copied());
        self.put(form.patches.iter().copied());
        Ok(Strip {
            coded: at,
            coded_bytes: narrow(coded)?,
            raw_bytes: narrow(form.raw)?,
            patch_bytes: narrow(form.patches)?,
            lanes: form.lanes.trailing_zeros(),
            is_coded: u32::from(form.coded.is_some()),
            ..strip
        })
    }
}

/// Queues the decoding of strips; what comes of each is put in `status`: 0 where it is sound.
pub(crate) fn launch(
    device: &Device,
    stream: &CudaStream,
    dtype: DType,
    tables: &DeviceTables,
    strips: &CudaSlice<Strip>,
    status: &mut CudaSlice<u32>,
    count: usize,
) -> Result<(), GpuError> {
    let name = dtype_name(dtype)
        .ok_or_else(|| GpuError::unsupported("strips on a GPU are of BF16, F16 and F32"))?;
    let count = u32::try_from(count)
        .ok()
        .filter(|n| *n <= 1 << 30 && *n as usize <= strips.len() && *n as usize <= status.len())
        .ok_or_else(|| GpuError::unsupported("too many strips for one launch on a GPU"))?;
    let function = device.function(Module::Decode, &format!("decode_{name}"))?;
    let config = tables.config(&function, count)?;
    let mut launch = stream.launch_builder(&function);
    launch
        .arg(strips)
        .arg(&count)
        .arg(&tables.intervals)
        .arg(&tables.tokens)
        .arg(&tables.map)
        .arg(&tables.map_words)
        .arg(&tables.tables)
        .arg(&tables.precision)
        .arg(&tables.first)
        .arg(&tables.fits)
        .arg(status);
    // SAFETY: the kernel's parameters in their order; strips point to buffers of the sizes they name, which the caller keeps.
    unsafe { launch.launch(config) }.during("decoding")?;
    Ok(())
}
