//! INT8 of a difference: `kernels/int8.cu`, the arithmetic of the codec's INT8 in `f32`.
//!
//! With `d = target - base`, a segment's scale is `max |d| / 127`, an element's code the nearest integer to `d / scale`, ties
//! to even, and the rebuilt element `base + code * scale`, rounded once; a code of 0 leaves the base's bits.

use std::ops::Range;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, PushKernelArg};
use sparse_codec::{DType, TensorView};

use crate::device::launch_over;
use crate::error::During;
use crate::kernels::{Module, NULL, dtype_name, pointer_or_null};
use crate::{Device, GpuError};

/// Elements of a segment that a warp looks at.
const PIECE: u64 = 4096;
/// Elements of a thread that quantises or rebuilds.
const RUN: u64 = 8;
const BLOCK: u32 = 256;

/// What shares a scale: rows, or groups within them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    row: u64,
    group: u64,
}

impl Segments {
    /// All of a tensor's elements.
    pub fn tensor(elements: u64) -> Self {
        Self::groups(elements, elements)
    }

    /// Rows of `row` elements: the last dimension.
    pub fn rows(row: u64) -> Self {
        Self::groups(row, row)
    }

    /// `group` elements of a row, the last of a row perhaps fewer.
    pub fn groups(row: u64, group: u64) -> Self {
        let row = row.max(1);
        Self {
            row,
            group: group.clamp(1, row),
        }
    }

    fn per_row(&self) -> u64 {
        self.row.div_ceil(self.group)
    }

    /// Whether there are codes and scales for so many elements.
    fn check(
        &self,
        count: u64,
        scales: &CudaSlice<f32>,
        codes: &CudaSlice<i8>,
    ) -> Result<(), GpuError> {
        if self.count(count)? > scales.len() as u64 || count > codes.len() as u64 {
            return Err(differ());
        }
        Ok(())
    }

    /// The segment of an element.
    fn of(&self, element: u64) -> u64 {
        element / self.row * self.per_row() + element % self.row / self.group
    }

    /// How many segments so many elements have.
    ///
    /// # Errors
    /// Elements that are no whole rows.
    pub fn count(&self, elements: u64) -> Result<u64, GpuError> {
        if elements.is_multiple_of(self.row) {
            Ok(elements / self.row * self.per_row())
        } else {
            Err(GpuError::unsupported(format!(
                "{elements} elements are no whole rows of {}",
                self.row
            )))
        }
    }
}

/// A tensor's difference as codes and scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// One for each element, -127 to 127.
    pub codes: Vec<i8>,
    /// One for each segment, in order.
    pub scales: Vec<f32>,
}

/// Codes and scales in the device's memory, checked against each other.
#[derive(Debug)]
pub(crate) struct Codes {
    codes: CudaSlice<i8>,
    scales: CudaSlice<f32>,
    segments: Segments,
    pub(crate) count: u64,
}

impl Codes {
    pub(crate) fn new(
        device: &Device,
        codes: &[i8],
        scales: &[f32],
        segments: Segments,
    ) -> Result<Self, GpuError> {
        let count = codes.len() as u64;
        if segments.count(count)? != scales.len() as u64 {
            return Err(GpuError::unsupported(format!(
                "{} scales for {} segments",
                scales.len(),
                segments.count(count)?
            )));
        }
        Ok(Self {
            codes: device.upload(codes)?,
            scales: device.upload(scales)?,
            segments,
            count,
        })
    }

    /// Queues `out = base + codes * scales`; both hold `count` words of the dtype.
    pub(crate) fn apply(
        &self,
        device: &Device,
        stream: &CudaStream,
        dtype: DType,
        base: Option<&CudaSlice<u8>>,
        out: &mut CudaSlice<u8>,
    ) -> Result<(), GpuError> {
        launch_apply(
            device,
            stream,
            dtype,
            base.map(|base| base.as_view()).as_ref(),
            &self
                .codes
                .slice(..usize::try_from(self.count).unwrap_or(usize::MAX)),
            &self.scales,
            self.segments,
            0..self.count,
            &mut out.as_view_mut(),
        )
    }
}

/// Queues the largest magnitude of each segment's differences, as bits: `out` holds `number` zeros before. `bad` becomes the
/// first element that is not finite, if it was a larger number.
#[expect(clippy::too_many_arguments, reason = "the buffers and what they hold")]
pub(crate) fn launch_largest<T>(
    device: &Device,
    stream: &CudaStream,
    dtype: DType,
    target: &CudaSlice<u8>,
    base: Option<&CudaSlice<u8>>,
    segments: Segments,
    number: u64,
    out: &mut CudaSlice<T>,
    bad: &mut CudaSlice<u64>,
) -> Result<(), GpuError> {
    let pieces = segments.group.div_ceil(PIECE);
    let (warps, elements) = number
        .checked_mul(pieces)
        .zip((number / segments.per_row()).checked_mul(segments.row))
        .ok_or_else(|| GpuError::unsupported("the tensor is too large"))?;
    if number == 0 {
        return Ok(());
    }
    if !number.is_multiple_of(segments.per_row()) || (out.len() as u64) < number {
        return Err(GpuError::unsupported("segments and their scales differ"));
    }
    holds(dtype, elements, &[Some(target), base])?;
    let function = device.function(Module::Int8, &format!("int8_largest_{}", name(dtype)?))?;
    let config = launch_over(warps.saturating_mul(32), 128)?;
    let per_row = segments.per_row();
    let mut launch = stream.launch_builder(&function);
    launch.arg(target);
    pointer_or_null(&mut launch, base);
    launch
        .arg(&segments.row)
        .arg(&segments.group)
        .arg(&per_row)
        .arg(&pieces)
        .arg(&warps)
        .arg(out)
        .arg(bad);
    // SAFETY: the kernel's parameters in their order; the lines above checked that words and scales go together.
    unsafe { launch.launch(config) }.during("finding INT8 scales")?;
    Ok(())
}

/// Queues the codes of `count` words' differences.
#[expect(clippy::too_many_arguments, reason = "the buffers and what they hold")]
pub(crate) fn launch_quantise(
    device: &Device,
    stream: &CudaStream,
    dtype: DType,
    target: &CudaSlice<u8>,
    base: Option<&CudaSlice<u8>>,
    scales: &CudaSlice<f32>,
    segments: Segments,
    count: u64,
    codes: &mut CudaSlice<i8>,
) -> Result<(), GpuError> {
    if count == 0 {
        return Ok(());
    }
    segments.check(count, scales, codes)?;
    holds(dtype, count, &[Some(target), base])?;
    let function = device.function(Module::Int8, &format!("int8_quantise_{}", name(dtype)?))?;
    let config = launch_over(count.div_ceil(RUN), BLOCK)?;
    let per_row = segments.per_row();
    let mut launch = stream.launch_builder(&function);
    launch.arg(target);
    pointer_or_null(&mut launch, base);
    launch
        .arg(scales)
        .arg(&segments.row)
        .arg(&segments.group)
        .arg(&per_row)
        .arg(&count)
        .arg(codes);
    // SAFETY: as above.
    unsafe { launch.launch(config) }.during("quantising to INT8")?;
    Ok(())
}

/// Queues `out = base + codes * scales` of some elements, with which base, codes and `out` begin; scales begin with the tensor's.
/// A code is a byte, and they are as many as elements.
#[expect(clippy::too_many_arguments, reason = "the buffers and what they hold")]
pub(crate) fn launch_apply<C: DeviceRepr>(
    device: &Device,
    stream: &CudaStream,
    dtype: DType,
    base: Option<&CudaView<'_, u8>>,
    codes: &CudaView<'_, C>,
    scales: &CudaSlice<f32>,
    segments: Segments,
    elements: Range<u64>,
    out: &mut CudaViewMut<'_, u8>,
) -> Result<(), GpuError> {
    let (first, count) = (elements.start, elements.end.saturating_sub(elements.start));
    if count == 0 {
        return Ok(());
    }
    let bytes = count.saturating_mul(dtype.word_bytes() as u64);
    let short = |len: usize| (len as u64) < bytes;
    if segments.of(elements.end - 1) >= scales.len() as u64
        || count != codes.len() as u64
        || base.is_some_and(|base| short(base.len()))
        || short(out.len())
    {
        return Err(differ());
    }
    let function = device.function(Module::Int8, &format!("int8_apply_{}", name(dtype)?))?;
    let config = launch_over(count.div_ceil(RUN), BLOCK)?;
    let per_row = segments.per_row();
    let mut launch = stream.launch_builder(&function);
    match base {
        Some(base) => launch.arg(base),
        None => launch.arg(&NULL),
    };
    launch
        .arg(codes)
        .arg(scales)
        .arg(&segments.row)
        .arg(&segments.group)
        .arg(&per_row)
        .arg(&first)
        .arg(&count)
        .arg(out);
    // SAFETY: the kernel's parameters in their order; the lines above checked that buffers and scales hold the elements.
    unsafe { launch.launch(config) }.during("applying INT8")?;
    Ok(())
}

/// Whether buffers that there are hold so many words.
fn holds(dtype: DType, count: u64, buffers: &[Option<&CudaSlice<u8>>]) -> Result<(), GpuError> {
    let bytes = count.saturating_mul(dtype.word_bytes() as u64);
    let short = |buffer: &CudaSlice<u8>| (buffer.len() as u64) < bytes;
    if buffers.iter().flatten().any(|buffer| short(buffer)) {
        return Err(differ());
    }
    Ok(())
}

fn differ() -> GpuError {
    GpuError::unsupported("INT8 codes and words differ in number")
}

fn name(dtype: DType) -> Result<&'static str, GpuError> {
    dtype_name(dtype).ok_or_else(|| {
        GpuError::unsupported(format!(
            "INT8 on a GPU takes BF16, F16 and F32, not {}: use the device cpu",
            dtype.name()
        ))
    })
}

impl Device {
    /// Quantises `target`'s difference from `base`, or `target` itself.
    ///
    /// # Errors
    /// Dtypes other than BF16, F16 and F32 or two different ones, lengths that do not go together, a difference that is not
    /// finite, and failures of the device.
    pub fn int8_quantise(
        &self,
        target: TensorView<'_>,
        base: Option<TensorView<'_>>,
        segments: Segments,
    ) -> Result<Quantised, GpuError> {
        let dtype = target
            .dtype
            .ok_or_else(|| GpuError::unsupported("INT8 takes floats, not an unknown dtype"))?;
        name(dtype)?;
        if base.is_some_and(|b| b.dtype != target.dtype || b.data.len() != target.data.len()) {
            return Err(GpuError::unsupported(
                "INT8 on a GPU takes a base of the tensor's dtype and size: use the device cpu",
            ));
        }
        let count = (target.data.len() / dtype.word_bytes()) as u64;
        let number = segments.count(count)?;
        if count == 0 {
            return Ok(Quantised {
                codes: Vec::new(),
                scales: Vec::new(),
            });
        }
        let size = |n: u64| {
            usize::try_from(n).map_err(|_| GpuError::unsupported("the tensor is too large"))
        };
        let (elements, scale_count) = (size(count)?, size(number)?);
        let target = self.upload(target.data)?;
        let base = base.map(|base| self.upload(base.data)).transpose()?;
        let mut scales = self.zeros::<f32>(scale_count)?;
        let mut bad = self.upload(&[u64::MAX])?;
        launch_largest(
            self,
            self.stream(),
            dtype,
            &target,
            base.as_ref(),
            segments,
            number,
            &mut scales,
            &mut bad,
        )?;
        let finish = self.function(Module::Int8, "int8_scales")?;
        let mut launch = self.stream().launch_builder(&finish);
        launch.arg(&mut scales).arg(&number);
        // SAFETY: the kernel's parameters in their order; there are `number` scales.
        unsafe { launch.launch(launch_over(number, BLOCK)?) }.during("finding INT8 scales")?;
        let mut codes = self.alloc::<i8>(elements)?;
        launch_quantise(
            self,
            self.stream(),
            dtype,
            &target,
            base.as_ref(),
            &scales,
            segments,
            count,
            &mut codes,
        )?;
        let bad = self.download(&bad, 1)?;
        if let Some(element) = bad.first().copied().filter(|at| *at != u64::MAX) {
            return Err(GpuError::NotFinite { element });
        }
        Ok(Quantised {
            codes: self.download(&codes, elements)?,
            scales: self.download(&scales, scale_count)?,
        })
    }

    /// The words that codes and scales make of a base.
    ///
    /// # Errors
    /// Other dtypes than BF16, F16 and F32, lengths that do not go together, and failures of the device.
    pub fn int8_apply(
        &self,
        base: TensorView<'_>,
        quantised: &Quantised,
        segments: Segments,
    ) -> Result<Vec<u8>, GpuError> {
        let dtype = base
            .dtype
            .ok_or_else(|| GpuError::unsupported("INT8 takes floats, not an unknown dtype"))?;
        name(dtype)?;
        if base.data.len() != quantised.codes.len() * dtype.word_bytes() {
            return Err(GpuError::unsupported(
                "INT8 codes and words differ in number",
            ));
        }
        let words = self.upload(base.data)?;
        self.int8_rebuild(dtype, Some(&words), quantised, segments)
    }

    /// The words that codes and scales make of nothing: the values themselves.
    ///
    /// # Errors
    /// As [`Self::int8_apply`].
    pub fn int8_dequantise(
        &self,
        dtype: DType,
        quantised: &Quantised,
        segments: Segments,
    ) -> Result<Vec<u8>, GpuError> {
        self.int8_rebuild(dtype, None, quantised, segments)
    }

    fn int8_rebuild(
        &self,
        dtype: DType,
        base: Option<&CudaSlice<u8>>,
        quantised: &Quantised,
        segments: Segments,
    ) -> Result<Vec<u8>, GpuError> {
        name(dtype)?;
        let codes = Codes::new(self, &quantised.codes, &quantised.scales, segments)?;
        let bytes = quantised.codes.len() * dtype.word_bytes();
        let mut out = self.alloc::<u8>(bytes)?;
        codes.apply(self, self.stream(), dtype, base, &mut out)?;
        self.download(&out, bytes)
    }
}
