//! INT8: the difference of a tensor from its base as codes of -127 to 127 and scales. Lossy, and measured.
//!
//! With `d = target - base` (in `f32` of the exact values; in `f64` where either is F64), a segment's scale is
//! `max |d| / 127`, an element's code the nearest integer to `d / scale`, ties to even, and the rebuilt element
//! `base + code * scale`, rounded once to the target's type; where the code is 0 it is the base's element. A segment
//! without a difference has scale 0. Nothing here depends on threads or on how the work is cut.

mod coded;
mod real;
mod segments;
#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use coded::Coded;
pub(crate) use real::Real;
pub use segments::Granularity;

use crate::{CodecError, DType, TensorView, cast::cast_words, error::corrupt};
use segments::Segments;

/// Elements of a piece that a thread takes at a time.
const PIECE: usize = 1 << 16;

/// The scales of a tensor's segments.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// Of every type but F64.
    F32(Vec<f32>),
    /// Of F64.
    F64(Vec<f64>),
}

impl Scales {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(all) => all.len(),
            Self::F64(all) => all.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their little-endian bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(all) => all.iter().flat_map(|s| s.to_le_bytes()).collect(),
            Self::F64(all) => all.iter().flat_map(|s| s.to_le_bytes()).collect(),
        }
    }

    fn width(wide: bool) -> usize {
        if wide { 8 } else { 4 }
    }

    /// As many scales as there are segments, none of which is negative or not finite.
    fn from_bytes(bytes: &[u8], count: usize, wide: bool) -> Result<Self, CodecError> {
        if bytes.len() / Self::width(wide) != count
            || !bytes.len().is_multiple_of(Self::width(wide))
        {
            return Err(corrupt("the scales are of another number"));
        }
        let (sound, scales) = if wide {
            let all: Vec<f64> = bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b))
                .collect();
            let sound = all.iter().all(|s| s.is_finite() && *s >= 0.0);
            (sound, Self::F64(all))
        } else {
            let all: Vec<f32> = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect();
            let sound = all.iter().all(|s| s.is_finite() && *s >= 0.0);
            (sound, Self::F32(all))
        };
        if sound {
            Ok(scales)
        } else {
            Err(corrupt("a scale is negative or not finite"))
        }
    }
}

/// How far a tensor is from an approximation of it: `d` is its difference from its base, `value` what is kept of that.
/// Of INT8, `value` is code * scale, before the rebuilt element is rounded to the tensor's type.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distortion {
    /// Elements.
    pub count: u64,
    /// Elements that come back bit for bit after rounding.
    pub exact: u64,
    /// Largest |value - d|.
    pub max_abs: f64,
    /// Sum of |value - d|.
    pub sum_abs: f64,
    /// Sum of (value - d)^2.
    pub error_sq: f64,
    /// Sum of d^2.
    pub difference_sq: f64,
    /// Sum of value^2.
    pub value_sq: f64,
    /// Sum of d * value.
    pub dot: f64,
}

impl Distortion {
    /// Of the words of an approximation, rounding included; without a base the difference is the tensor itself.
    ///
    /// # Errors
    /// Types without values, and tensors that do not fit one another.
    pub fn of_rebuilt(
        target: TensorView<'_>,
        base: Option<TensorView<'_>>,
        rebuilt: &[u8],
    ) -> Result<Self, CodecError> {
        let dtype = target.dtype.filter(|dtype| quantisable(*dtype));
        let base = base.map(|base| (base.dtype.filter(|dtype| quantisable(*dtype)), base.data));
        let (Some(dtype), None | Some((Some(_), _))) = (dtype, base) else {
            return Err(CodecError::Unsupported {
                what: "only floats have errors that can be measured".into(),
            });
        };
        let width = dtype.word_bytes();
        let count = target.data.len() / width;
        let base = base.and_then(|(dtype, data)| Some((dtype?, data)));
        let fits = base.is_none_or(|(dtype, data)| data.len() == count * dtype.word_bytes());
        if rebuilt.len() != target.data.len() || !fits {
            return Err(CodecError::Length {
                expected: target.data.len() as u64,
                found: rebuilt.len() as u64,
            });
        }
        let piece = |piece: usize| {
            let range = piece * PIECE..count.min((piece + 1) * PIECE);
            let read = |dtype: DType, data: &[u8]| {
                let width = dtype.word_bytes();
                let mut values = vec![0f64; range.len()];
                f64::read(
                    dtype,
                    &data[range.start * width..range.end * width],
                    &mut values,
                );
                values
            };
            let mut all = Self {
                count: range.len() as u64,
                ..Self::default()
            };
            let (wanted, found) = (read(dtype, target.data), read(dtype, rebuilt));
            let bases = base.map(|(dtype, data)| read(dtype, data));
            for (at, (wanted, found)) in wanted.iter().zip(&found).enumerate() {
                let base = bases.as_ref().map_or(0.0, |bases| bases[at]);
                let (d, value) = (wanted - base, found - base);
                if d.is_finite() && value.is_finite() {
                    all.add(d, value);
                }
            }
            let bytes = range.start * width..range.end * width;
            let pairs = target.data[bytes.clone()]
                .chunks_exact(width)
                .zip(rebuilt[bytes].chunks_exact(width));
            all.exact = pairs.map(|(a, b)| u64::from(a == b)).sum();
            all
        };
        let parts: Vec<Self> = (0..count.div_ceil(PIECE))
            .into_par_iter()
            .map(piece)
            .collect();
        let mut all = Self::default();
        parts.iter().for_each(|part| all.merge(part));
        Ok(all)
    }

    fn add(&mut self, d: f64, value: f64) {
        let error = value - d;
        self.max_abs = self.max_abs.max(error.abs());
        self.sum_abs += error.abs();
        self.error_sq += error * error;
        self.difference_sq += d * d;
        self.value_sq += value * value;
        self.dot += d * value;
    }

    /// Adds the errors of other elements.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.exact += other.exact;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.sum_abs += other.sum_abs;
        self.error_sq += other.error_sq;
        self.difference_sq += other.difference_sq;
        self.value_sq += other.value_sq;
        self.dot += other.dot;
    }

    /// The mean |value - d|; 0 without elements.
    #[must_use]
    pub fn mean_abs(&self) -> f64 {
        self.sum_abs / self.count.max(1) as f64
    }

    /// The norm of the error over that of the difference; 0 where nothing differs.
    #[must_use]
    pub fn relative(&self) -> f64 {
        if self.difference_sq == 0.0 {
            0.0
        } else {
            (self.error_sq / self.difference_sq).sqrt()
        }
    }

    /// The cosine of the angle between the difference and what is kept of it; 1 where both are zero, 0 where one is.
    #[must_use]
    pub fn cosine(&self) -> f64 {
        match (self.difference_sq == 0.0, self.value_sq == 0.0) {
            (true, true) => 1.0,
            (false, false) => {
                (self.dot / (self.difference_sq.sqrt() * self.value_sq.sqrt())).clamp(-1.0, 1.0)
            }
            _ => 0.0,
        }
    }

    /// The share of elements that come back bit for bit; 1 without elements.
    #[must_use]
    pub fn exact_share(&self) -> f64 {
        if self.count == 0 {
            1.0
        } else {
            self.exact as f64 / self.count as f64
        }
    }
}

/// Whether elements of a type have values whose differences can be quantised.
fn quantisable(dtype: DType) -> bool {
    dtype.is_float() && dtype != DType::C64
}

/// A tensor's codes and scales, found once; codes are computed again for the elements asked for, so that nothing of the
/// tensor's size is kept.
#[derive(Clone, Debug)]
pub struct Int8<'a> {
    target: (DType, &'a [u8]),
    base: Option<(DType, &'a [u8])>,
    segments: Segments,
    granularity: Granularity,
    scales: Scales,
}

impl<'a> Int8<'a> {
    /// Whether a model's tensor is one that is quantised rather than kept exactly: a float tensor of two dimensions or more
    /// whose base is a float tensor of the same shape. What is left out (norms, biases, added rows) is little, and matters.
    #[must_use]
    pub fn suits(target: TensorView<'_>, base: Option<TensorView<'_>>) -> bool {
        let Some(base) = base else {
            return false;
        };
        let floats = |view: TensorView<'_>| view.dtype.is_some_and(quantisable);
        floats(target)
            && floats(base)
            && target.shape == base.shape
            && target.shape.len() >= 2
            && !target.data.is_empty()
    }

    /// Finds the scales of `target`'s difference from `base`, or of `target` itself.
    ///
    /// # Errors
    /// Types without values, other shapes, data of another length, and [`CodecError::NotFinite`] for a difference that is
    /// infinite or not a number.
    pub fn new(
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        granularity: Granularity,
    ) -> Result<Self, CodecError> {
        let mut this = Self::without_scales(target, base, granularity)?;
        this.scales = if this.is_wide() {
            Scales::F64(this.find_scales()?)
        } else {
            Scales::F32(this.find_scales()?)
        };
        Ok(this)
    }

    /// As [`Self::new`], with the largest magnitude of each segment's differences found elsewhere.
    ///
    /// # Errors
    /// As [`Self::new`], and another number of them; F64, which is not quantised elsewhere.
    pub fn with_largest(
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        granularity: Granularity,
        largest: Vec<f32>,
    ) -> Result<Self, CodecError> {
        let mut this = Self::without_scales(target, base, granularity)?;
        if this.is_wide() || largest.len() != this.segments.count() {
            return Err(CodecError::Unsupported {
                what: format!(
                    "{} magnitudes are not those of the tensor's segments",
                    largest.len()
                ),
            });
        }
        this.scales = Scales::F32(largest.into_iter().map(Real::scale).collect());
        Ok(this)
    }

    fn without_scales(
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        granularity: Granularity,
    ) -> Result<Self, CodecError> {
        target.check()?;
        let floats = |view: TensorView<'a>| match view.dtype.filter(|dtype| quantisable(*dtype)) {
            Some(dtype) => Ok((dtype, view.data)),
            None => Err(CodecError::Unsupported {
                what: format!(
                    "INT8 takes floats (BF16, F16, F32, F64, F8_E4M3, F8_E5M2), not {}: store the tensor exactly",
                    view.dtype.map_or("an unknown type", DType::name)
                ),
            }),
        };
        if let Some(base) = base {
            base.check()?;
            if base.shape != target.shape {
                return Err(CodecError::Unsupported {
                    what: format!(
                        "INT8 takes a base of the tensor's shape {:?}, not {:?}: store the tensor exactly",
                        target.shape, base.shape
                    ),
                });
            }
        }
        let (dtype, data) = floats(target)?;
        let elements = data.len() / dtype.word_bytes();
        Ok(Self {
            target: (dtype, data),
            base: base.map(floats).transpose()?,
            segments: Segments::new(target.shape, elements, granularity),
            granularity,
            scales: Scales::F32(Vec::new()),
        })
    }

    /// The tensor's dtype and words.
    #[must_use]
    pub fn target(&self) -> (DType, &'a [u8]) {
        self.target
    }

    /// Those of its base.
    #[must_use]
    pub fn base(&self) -> Option<(DType, &'a [u8])> {
        self.base
    }

    /// Whether it computes in `f64`.
    fn is_wide(&self) -> bool {
        self.target.0 == DType::F64 || self.base.is_some_and(|base| base.0 == DType::F64)
    }

    /// What shares a scale.
    #[must_use]
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Elements of a row of a tensor, and of the segments that it is cut into.
    #[must_use]
    pub fn row_of(target: TensorView<'_>, granularity: Granularity) -> (usize, usize) {
        let width = target.dtype.map_or(1, DType::word_bytes);
        let segments = Segments::new(target.shape, target.data.len() / width, granularity);
        (segments.row, segments.group)
    }

    /// As [`Self::row_of`], of this tensor.
    #[must_use]
    pub fn row(&self) -> (usize, usize) {
        (self.segments.row, self.segments.group)
    }

    /// The scale of each segment, in order.
    #[must_use]
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.segments.elements
    }

    /// Bytes of codes and scales as they are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.elements() + self.scales.len() * Scales::width(self.is_wide())) as u64
    }

    fn pieces(&self) -> impl IndexedParallelIterator<Item = Range<usize>> + use<> {
        let elements = self.segments.elements;
        (0..elements.div_ceil(PIECE))
            .into_par_iter()
            .map(move |piece| piece * PIECE..elements.min((piece + 1) * PIECE))
    }

    /// Differences of some elements, and the base's values where `bases` is given.
    fn differences<T: Real>(&self, range: &Range<usize>, out: &mut Vec<T>, bases: &mut Vec<T>) {
        let part = |(dtype, data): (DType, &'a [u8])| {
            let width = dtype.word_bytes();
            (
                dtype,
                data.get(range.start * width..range.end * width)
                    .unwrap_or_default(),
            )
        };
        out.clear();
        out.resize(range.len(), T::ZERO);
        let (dtype, data) = part(self.target);
        T::read(dtype, data, out);
        bases.clear();
        bases.resize(range.len(), T::ZERO);
        if let Some(base) = self.base {
            let (dtype, data) = part(base);
            T::read(dtype, data, bases);
            for (value, base) in out.iter_mut().zip(&*bases) {
                *value = T::difference(*value, *base);
            }
        }
    }

    fn find_scales<T: Real>(&self) -> Result<Vec<T>, CodecError> {
        let parts = self
            .pieces()
            .map_init(
                || (Vec::new(), Vec::new()),
                |(values, bases), range| {
                    let first = range.start;
                    self.differences::<T>(&range, values, bases);
                    if let Some(at) = values.iter().position(|d| !d.is_finite()) {
                        return Err(CodecError::NotFinite {
                            element: (first + at) as u64,
                        });
                    }
                    let largest = |part: Range<usize>| {
                        values[part]
                            .iter()
                            .map(|d| d.magnitude())
                            .fold(T::ZERO, |a, b| if b > a { b } else { a })
                    };
                    Ok(self
                        .segments
                        .within(range)
                        .map(|(segment, part)| (segment, largest(part)))
                        .collect::<Vec<_>>())
                },
            )
            .collect::<Result<Vec<_>, _>>()?;
        let mut largest = vec![T::ZERO; self.segments.count()];
        for (segment, part) in parts.into_iter().flatten() {
            if let Some(all) = largest.get_mut(segment)
                && part > *all
            {
                *all = part;
            }
        }
        Ok(largest.into_iter().map(T::scale).collect())
    }

    /// The codes of some elements.
    pub fn codes(&self, elements: Range<usize>, out: &mut Vec<i8>) {
        match &self.scales {
            Scales::F32(scales) => self.codes_of(scales, elements, out),
            Scales::F64(scales) => self.codes_of(scales, elements, out),
        }
    }

    fn codes_of<T: Real>(&self, scales: &[T], elements: Range<usize>, out: &mut Vec<i8>) {
        let (mut values, mut bases) = (Vec::new(), Vec::new());
        self.differences::<T>(&elements, &mut values, &mut bases);
        quantise(&self.segments, scales, elements, &values, out);
    }

    /// All codes, as bytes.
    #[must_use]
    pub fn all_codes(&self) -> Vec<u8> {
        self.pieces()
            .flat_map_iter(|range| {
                let mut codes = Vec::new();
                self.codes(range, &mut codes);
                codes.into_iter().map(i8::cast_unsigned)
            })
            .collect()
    }

    /// The rebuilt bytes of some elements, which are what a decoder makes of codes and scales.
    pub fn rebuild(&self, elements: Range<usize>, out: &mut [u8]) {
        let mut codes = Vec::new();
        self.codes(elements.clone(), &mut codes);
        rebuild(
            self.target.0,
            self.base,
            &self.segments,
            &self.scales,
            elements,
            &codes,
            out,
        );
    }

    /// As [`Self::rebuild`], on all threads, into a buffer of its own.
    #[must_use]
    pub fn rebuilt(&self, elements: Range<usize>) -> Vec<u8> {
        let width = self.target.0.word_bytes();
        let elements = elements.start.min(self.elements())..elements.end.min(self.elements());
        let mut out = vec![0; elements.len() * width];
        out.par_chunks_mut(PIECE * width)
            .enumerate()
            .for_each(|(piece, out)| {
                let start = elements.start + piece * PIECE;
                self.rebuild(start..elements.end.min(start + PIECE), out);
            });
        out
    }

    /// How far the tensor is from its rebuilt self.
    #[must_use]
    pub fn measure(&self) -> Distortion {
        let parts: Vec<Distortion> = match &self.scales {
            Scales::F32(scales) => self.pieces().map(|r| self.measured(scales, r)).collect(),
            Scales::F64(scales) => self.pieces().map(|r| self.measured(scales, r)).collect(),
        };
        // In order, so that the sums are the same whatever the number of threads.
        let mut all = Distortion::default();
        parts.iter().for_each(|part| all.merge(part));
        all
    }

    fn measured<T: Real>(&self, scales: &[T], range: Range<usize>) -> Distortion {
        let (mut values, mut bases, mut codes) = (Vec::new(), Vec::new(), Vec::new());
        self.differences::<T>(&range, &mut values, &mut bases);
        quantise(&self.segments, scales, range.clone(), &values, &mut codes);
        let mut all = Distortion {
            count: range.len() as u64,
            ..Distortion::default()
        };
        for (segment, part) in self.segments.within(range.clone()) {
            let scale = scales.get(segment).copied().unwrap_or(T::ZERO);
            for (d, code) in values[part.clone()].iter().zip(&codes[part]) {
                all.add(d.wide(), T::value(*code, scale).wide());
            }
        }
        let width = self.target.0.word_bytes();
        let mut words = vec![0; range.len() * width];
        rebuild(
            self.target.0,
            self.base,
            &self.segments,
            &self.scales,
            range.clone(),
            &codes,
            &mut words,
        );
        let target = self.target.1.get(range.start * width..).unwrap_or_default();
        let pairs = words.chunks_exact(width).zip(target.chunks_exact(width));
        all.exact = pairs.map(|(a, b)| u64::from(a == b)).sum();
        all
    }
}

fn quantise<T: Real>(
    segments: &Segments,
    scales: &[T],
    elements: Range<usize>,
    values: &[T],
    out: &mut Vec<i8>,
) {
    out.clear();
    for (segment, part) in segments.within(elements) {
        let scale = scales.get(segment).copied().unwrap_or(T::ZERO);
        out.extend(values[part].iter().map(|d| d.code(scale)));
    }
}

/// The rebuilt bytes of some elements.
fn rebuild(
    dtype: DType,
    base: Option<(DType, &[u8])>,
    segments: &Segments,
    scales: &Scales,
    elements: Range<usize>,
    codes: &[i8],
    out: &mut [u8],
) {
    match scales {
        Scales::F32(scales) => rebuild_of(dtype, base, segments, scales, elements, codes, out),
        Scales::F64(scales) => rebuild_of(dtype, base, segments, scales, elements, codes, out),
    }
}

fn rebuild_of<T: Real>(
    dtype: DType,
    base: Option<(DType, &[u8])>,
    segments: &Segments,
    scales: &[T],
    elements: Range<usize>,
    codes: &[i8],
    out: &mut [u8],
) {
    let mut values = vec![T::ZERO; elements.len()];
    let words = base.map(|(from, data)| {
        let width = from.word_bytes();
        let words = data
            .get(elements.start * width..elements.end * width)
            .unwrap_or_default();
        T::read(from, words, &mut values);
        (from, words)
    });
    for (segment, part) in segments.within(elements) {
        let scale = scales.get(segment).copied().unwrap_or(T::ZERO);
        for (value, code) in values[part.clone()].iter_mut().zip(&codes[part]) {
            *value = value.plus(T::value(*code, scale));
        }
    }
    T::write(dtype, &values, out);
    // A code of 0 leaves the base's bits as they are: the sign of a zero, the bits of a NaN.
    if let Some((from, words)) = words {
        let cast;
        let words = if from == dtype {
            words
        } else {
            cast = cast_words(from, words, dtype);
            &cast
        };
        let width = dtype.word_bytes();
        let places = out.chunks_exact_mut(width).zip(words.chunks_exact(width));
        for ((out, word), _) in places.zip(codes).filter(|(_, code)| **code == 0) {
            out.copy_from_slice(word);
        }
    }
}

/// The bytes that codes and scales (as little-endian bytes) make of a base, or of nothing.
///
/// # Errors
/// Types without values; codes or scales of another number than the shape asks for; a base of another length.
pub fn int8_dequantize(
    codes: &[u8],
    scales: &[u8],
    dtype: DType,
    shape: &[u64],
    base: Option<(DType, &[u8])>,
    granularity: Granularity,
) -> Result<Vec<u8>, CodecError> {
    let elements = codes.len();
    let asked = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    if asked != Some(elements as u64) {
        return Err(CodecError::Length {
            expected: asked.unwrap_or(u64::MAX),
            found: elements as u64,
        });
    }
    for dtype in [Some(dtype), base.map(|base| base.0)].into_iter().flatten() {
        if !quantisable(dtype) {
            return Err(CodecError::Unsupported {
                what: format!("INT8 makes floats, not {}", dtype.name()),
            });
        }
    }
    if let Some((from, data)) = base
        && data.len() != elements * from.word_bytes()
    {
        return Err(CodecError::Length {
            expected: (elements * from.word_bytes()) as u64,
            found: data.len() as u64,
        });
    }
    let segments = Segments::new(shape, elements, granularity);
    let wide = dtype == DType::F64 || base.is_some_and(|base| base.0 == DType::F64);
    let scales = Scales::from_bytes(scales, segments.count(), wide)?;
    let width = dtype.word_bytes();
    let mut out = vec![0; elements * width];
    out.par_chunks_mut(PIECE * width)
        .zip(codes.par_chunks(PIECE))
        .enumerate()
        .for_each(|(piece, (out, codes))| {
            let codes: Vec<i8> = codes.iter().map(|code| code.cast_signed()).collect();
            let range = piece * PIECE..piece * PIECE + codes.len();
            rebuild(dtype, base, &segments, &scales, range, &codes, out);
        });
    Ok(out)
}
