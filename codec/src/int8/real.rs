//! The numbers that INT8 computes in: `f32` for every float type but F64, which takes `f64`.

use half::{bf16, f16};

use crate::{
    DType,
    cast::{cast_words, narrow, word_value},
    word::load,
};

/// A number with what quantising needs of it.
pub(crate) trait Real: Copy + PartialOrd + Send + Sync + 'static {
    const ZERO: Self;
    /// The smallest positive number: a scale that underflows is this.
    const LEAST: Self;

    /// The values of some words, rounded where the type is wider. `out` has one place for each.
    fn read(dtype: DType, data: &[u8], out: &mut [Self]);
    /// Rounds values to words, to nearest, ties to even.
    fn write(dtype: DType, values: &[Self], out: &mut [u8]);
    /// `target - base`; zero where the two are the same, infinities too.
    fn difference(target: Self, base: Self) -> Self;
    fn magnitude(self) -> Self;
    fn is_finite(self) -> bool;
    /// The scale of a largest magnitude: its 127th part.
    fn scale(largest: Self) -> Self;
    /// The nearest code, ties to even; 0 for a scale of zero.
    fn code(self, scale: Self) -> i8;
    /// `code * scale`.
    fn value(code: i8, scale: Self) -> Self;
    fn plus(self, other: Self) -> Self;
    fn wide(self) -> f64;
}

macro_rules! real {
    ($real:ty, $least:expr) => {
        const ZERO: Self = 0.0;
        const LEAST: Self = <$real>::from_bits($least);

        #[inline(always)]
        fn difference(target: Self, base: Self) -> Self {
            if target.to_bits() == base.to_bits() {
                0.0
            } else {
                target - base
            }
        }

        #[inline(always)]
        fn magnitude(self) -> Self {
            self.abs()
        }

        #[inline(always)]
        fn is_finite(self) -> bool {
            self.is_finite()
        }

        fn scale(largest: Self) -> Self {
            let scale = largest / 127.0;
            if largest > 0.0 && scale == 0.0 {
                Self::LEAST
            } else {
                scale
            }
        }

        #[inline(always)]
        #[expect(clippy::cast_possible_truncation, reason = "clamped to a code")]
        fn code(self, scale: Self) -> i8 {
            if scale == 0.0 {
                return 0;
            }
            (self / scale).round_ties_even().clamp(-127.0, 127.0) as i8
        }

        #[inline(always)]
        fn value(code: i8, scale: Self) -> Self {
            Self::from(code) * scale
        }

        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            self + other
        }
    };
}

impl Real for f32 {
    real!(f32, 1);

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn read(dtype: DType, data: &[u8], out: &mut [Self]) {
        match dtype {
            DType::BF16 => each::<2>(data, out, |word| {
                bf16::from_bits(u16::from_le_bytes(word)).to_f32()
            }),
            DType::F16 => each::<2>(data, out, |word| {
                f16::from_bits(u16::from_le_bytes(word)).to_f32()
            }),
            DType::F32 => each::<4>(data, out, f32::from_le_bytes),
            _ => {
                for (i, value) in out.iter_mut().enumerate() {
                    *value = narrow(word_value(dtype, word(dtype, data, i)));
                }
            }
        }
    }

    fn write(dtype: DType, values: &[Self], out: &mut [u8]) {
        match dtype {
            DType::BF16 => put::<_, 2>(values, out, |v| bf16::from_f32(v).to_bits().to_le_bytes()),
            DType::F16 => put::<_, 2>(values, out, |v| f16::from_f32(v).to_bits().to_le_bytes()),
            DType::F32 => put::<_, 4>(values, out, f32::to_le_bytes),
            _ => {
                let wide: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                fill(out, &cast_words(DType::F32, &wide, dtype));
            }
        }
    }
}

impl Real for f64 {
    real!(f64, 1);

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    fn read(dtype: DType, data: &[u8], out: &mut [Self]) {
        for (i, value) in out.iter_mut().enumerate() {
            *value = word_value(dtype, word(dtype, data, i));
        }
    }

    fn write(dtype: DType, values: &[Self], out: &mut [u8]) {
        let wide: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        fill(out, &cast_words(DType::F64, &wide, dtype));
    }
}

fn word(dtype: DType, data: &[u8], i: usize) -> u64 {
    match dtype.word_bytes() {
        1 => load::<1>(data, i),
        2 => load::<2>(data, i),
        4 => load::<4>(data, i),
        _ => load::<8>(data, i),
    }
}

fn each<const W: usize>(data: &[u8], out: &mut [f32], value: impl Fn([u8; W]) -> f32) {
    for (out, word) in out.iter_mut().zip(data.as_chunks::<W>().0) {
        *out = value(*word);
    }
}

fn put<T: Copy, const W: usize>(values: &[T], out: &mut [u8], word: impl Fn(T) -> [u8; W]) {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<W>().0) {
        *out = word(*value);
    }
}

fn fill(out: &mut [u8], bytes: &[u8]) {
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = *byte;
    }
}
