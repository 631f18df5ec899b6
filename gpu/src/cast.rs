//! Words of one dtype from those of another: `kernels/cast.cu`.

use cudarc::driver::{CudaSlice, CudaStream, PushKernelArg};
use sparse_codec::DType;

use crate::device::launch_over;
use crate::error::During;
use crate::kernels::{Module, dtype_name};
use crate::{Device, GpuError};

/// Queues the casts of `count` words.
pub(crate) fn launch(
    device: &Device,
    stream: &CudaStream,
    (from, words): (DType, &CudaSlice<u8>),
    (to, out): (DType, &mut CudaSlice<u8>),
    count: usize,
) -> Result<(), GpuError> {
    let bytes = |dtype: DType| count.saturating_mul(dtype.word_bytes());
    let (Some(from_name), Some(to_name), true, true) = (
        dtype_name(from),
        dtype_name(to),
        bytes(from) <= words.len(),
        bytes(to) <= out.len(),
    ) else {
        return Err(GpuError::unsupported(
            "words are cast between BF16, F16 and F32 on a GPU",
        ));
    };
    let function = device.function(Module::Cast, &format!("cast_{from_name}_{to_name}"))?;
    let count = count as u64;
    let mut launch = stream.launch_builder(&function);
    launch.arg(words).arg(out).arg(&count);
    // SAFETY: the kernel's parameters in their order; both buffers hold the words.
    unsafe { launch.launch(launch_over(count, 256)?) }.during("casting")?;
    Ok(())
}
