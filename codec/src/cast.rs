//! Values of elements, and casts between float types with one rounding (to nearest, ties to even).

use half::{bf16, f16};
use rayon::prelude::*;

use crate::{CodecError, DType, int8::Real as _, word::load};

/// Elements that a thread converts at a time.
const PIECE: usize = 1 << 16;

/// The value of one float word. FP8 follows the OCP 8-bit specification: E4M3 has no infinities.
pub(crate) fn word_value(dtype: DType, word: u64) -> f64 {
    let low16 = u16::try_from(word & 0xffff).unwrap_or(0);
    let low32 = u32::try_from(word & 0xffff_ffff).unwrap_or(0);
    match dtype {
        DType::BF16 => f64::from(bf16::from_bits(low16)),
        DType::F16 => f64::from(f16::from_bits(low16)),
        DType::F32 | DType::C64 => f64::from(f32::from_bits(low32)),
        DType::F64 => f64::from_bits(word),
        DType::F8E4M3 if word & 0x7f == 0x7f => f64::NAN,
        DType::F8E4M3 => small_float(word, 4, 3, 7),
        DType::F8E5M2 if word & 0x7c == 0x7c => match word & 0x83 {
            0 => f64::INFINITY,
            0x80 => f64::NEG_INFINITY,
            _ => f64::NAN,
        },
        DType::F8E5M2 => small_float(word, 5, 2, 15),
        DType::F8E8M0 if word == 0xff => f64::NAN,
        DType::F8E8M0 => 2f64.powi(i32::try_from(word & 0xff).unwrap_or(0) - 127),
        DType::I8 => f64::from(low16.to_le_bytes()[0].cast_signed()),
        DType::I16 => f64::from(low16.cast_signed()),
        DType::I32 => f64::from(low32.cast_signed()),
        DType::I64 => word.cast_signed() as f64,
        _ => word as f64,
    }
}

fn small_float(word: u64, exponent: u32, mantissa: u32, bias: i32) -> f64 {
    let sign = if word >> (exponent + mantissa) & 1 == 1 {
        -1.0
    } else {
        1.0
    };
    let e = i32::try_from(word >> mantissa & ((1 << exponent) - 1)).unwrap_or(0);
    let m = (word & ((1 << mantissa) - 1)) as f64 / f64::from(1u32 << mantissa);
    sign * if e == 0 {
        m * 2f64.powi(1 - bias)
    } else {
        (1.0 + m) * 2f64.powi(e - bias)
    }
}

/// Whether elements of `dtype` have values this crate can compute with.
fn has_values(dtype: DType) -> bool {
    !matches!(
        dtype,
        DType::F4 | DType::F6E2M3 | DType::F6E3M2 | DType::C64
    )
}

fn check_values(dtype: DType) -> Result<(), CodecError> {
    if has_values(dtype) {
        return Ok(());
    }
    Err(CodecError::Unsupported {
        what: format!(
            "{} has no real value per element: use a float or integer type",
            dtype.name()
        ),
    })
}

/// The elements as `f64`, appended to `out`. Integers beyond 2^53 lose their low bits.
///
/// # Errors
/// Packed 4- and 6-bit floats and complex numbers, which have no single value a word.
pub fn to_f64(dtype: DType, data: &[u8], out: &mut Vec<f64>) -> Result<(), CodecError> {
    check_values(dtype)?;
    let width = dtype.word_bytes();
    let word = match width {
        1 => load::<1>,
        2 => load::<2>,
        4 => load::<4>,
        _ => load::<8>,
    };
    out.extend((0..data.len() / width).map(|i| word_value(dtype, word(data, i))));
    Ok(())
}

/// As [`to_f64`], rounded to `f32`.
///
/// # Errors
/// As [`to_f64`].
pub fn to_f32(dtype: DType, data: &[u8], out: &mut Vec<f32>) -> Result<(), CodecError> {
    check_values(dtype)?;
    let (width, start) = (dtype.word_bytes(), out.len());
    out.resize(start + data.len() / width, 0.0);
    out[start..]
        .par_chunks_mut(PIECE)
        .zip(data.par_chunks(PIECE * width))
        .for_each(|(out, data)| f32::read(dtype, data, out));
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to the nearest f32 is what is meant"
)]
pub(crate) fn narrow(value: f64) -> f32 {
    value as f32
}

/// Casts float elements from one float type to another, with one rounding.
pub(crate) fn cast_words(from: DType, data: &[u8], to: DType) -> Vec<u8> {
    let width = from.word_bytes();
    let word = match width {
        1 => load::<1>,
        2 => load::<2>,
        4 => load::<4>,
        _ => load::<8>,
    };
    let count = data.len() / width;
    let mut out = Vec::with_capacity(count * to.word_bytes());
    for i in 0..count {
        let value = word_value(from, word(data, i));
        match to {
            DType::BF16 => out.extend_from_slice(&rounded(value, 8, 7).to_le_bytes()[..2]),
            DType::F16 => out.extend_from_slice(&rounded(value, 5, 10).to_le_bytes()[..2]),
            DType::F32 => out.extend_from_slice(&rounded(value, 8, 23).to_le_bytes()[..4]),
            DType::F64 => out.extend_from_slice(&rounded(value, 11, 52).to_le_bytes()),
            DType::F8E4M3 => out.push(to_small(value, 4, 3, 7, 448.0, 0x7f)),
            DType::F8E5M2 => out.push(to_small(value, 5, 2, 15, 57344.0, 0x7e)),
            _ => out.resize(out.len() + to.word_bytes(), 0),
        }
    }
    out
}

/// The bits of the IEEE float with `exponent` and `mantissa` bits nearest to `value`, ties to even, by integers alone: a
/// prediction must come out the same on every machine, and conversions by the CPU's instructions round some numbers twice.
/// Every NaN becomes the same one.
fn rounded(value: f64, exponent: u32, mantissa: u32) -> u64 {
    let bits = value.to_bits();
    let top = ((1u64 << exponent) - 1) << mantissa;
    if value.is_nan() {
        return top | 1 << (mantissa - 1);
    }
    if exponent == 11 {
        return bits;
    }
    let sign = bits >> 63 << (exponent + mantissa);
    let field = bits >> 52 & 0x7ff;
    if field == 0 {
        // A denormal f64 is far below half of the smallest value here.
        return sign;
    }
    // The exponent field before rounding; the last place stays where it is below the normal range.
    let e = i64::try_from(field).unwrap_or(0) - 1023 + ((1 << (exponent - 1)) - 1);
    let Ok(lost) = u32::try_from(i64::from(52 - mantissa) + (1 - e).max(0)) else {
        return sign;
    };
    if lost > 53 {
        return sign;
    }
    let full = bits & ((1 << 52) - 1) | 1 << 52;
    let (kept, rest, half) = (full >> lost, full & ((1 << lost) - 1), 1u64 << (lost - 1));
    let kept = kept + u64::from(rest > half || rest == half && kept & 1 == 1);
    // The leading bit adds one to the exponent field, and so does a carry out of the mantissa.
    let field = u64::try_from(e - 1).unwrap_or(0);
    sign | ((field << mantissa) + kept).min(top)
}

/// Rounds to an 8-bit float; what is too large becomes NaN (E4M3) or infinity (E5M2).
fn to_small(value: f64, exponent: u32, mantissa: u32, bias: i32, max: f64, nan: u8) -> u8 {
    let sign = if value.is_sign_negative() { 0x80u8 } else { 0 };
    let a = value.abs();
    if a.is_nan() {
        return nan;
    }
    let lowest = 1 - bias;
    let e = if a > 0.0 {
        exponent_of(a).max(lowest)
    } else {
        lowest
    };
    let steps = i32::try_from(mantissa).unwrap_or(0);
    let quantum = 2f64.powi(e - steps);
    let rounded = (a / quantum).round_ties_even() * quantum;
    if rounded > max {
        return sign | if exponent == 5 { 0x7c } else { nan };
    }
    let e = if rounded > 0.0 {
        exponent_of(rounded).max(lowest)
    } else {
        lowest
    };
    let units = (rounded / 2f64.powi(e - steps)).round();
    let hidden = f64::from(1u32 << mantissa);
    let (field, fraction) = if units >= hidden {
        (e + bias, units - hidden)
    } else {
        (0, units)
    };
    let bits = (u32::try_from(field).unwrap_or(0) << mantissa)
        | (0..1u32 << mantissa)
            .find(|m| f64::from(*m) == fraction)
            .unwrap_or(0);
    sign | u8::try_from(bits & 0x7f).unwrap_or(nan)
}

/// The binary exponent of a positive value; denormal f64 count as the smallest.
fn exponent_of(a: f64) -> i32 {
    i32::try_from(a.to_bits() >> 52 & 0x7ff).unwrap_or(0) - 1023
}

/// Casts elements to another type: between floats with one rounding (nearest, ties to even), from integers to floats, and
/// to the same type unchanged.
///
/// # Errors
/// Types without a value per element, and casts to integers, which would lose what they cannot hold.
pub fn cast(from: DType, data: &[u8], to: DType) -> Result<Vec<u8>, CodecError> {
    if from == to {
        return Ok(data.to_vec());
    }
    if !has_values(from) || !to.is_float() || to == DType::C64 {
        return Err(CodecError::Unsupported {
            what: format!(
                "no cast from {} to {}: cast to a float type",
                from.name(),
                to.name()
            ),
        });
    }
    Ok(cast_words(from, data, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut state = 7u64;
        for i in 0..200_000u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let high = u32::try_from(state >> 32).unwrap_or(0);
            let x = f32::from_bits(if i % 3 == 0 {
                high
            } else {
                high & 0x8fff_ffff | 0x3000_0000
            });
            if x.is_nan() {
                continue;
            }
            let wide = f64::from(x);
            assert_eq!(
                rounded(wide, 5, 10),
                u64::from(f16::from_f32(x).to_bits()),
                "{x:e}"
            );
            assert_eq!(
                rounded(wide, 8, 7),
                u64::from(bf16::from_f32(x).to_bits()),
                "{x:e}"
            );
            let y = f64::from_bits(state >> 3 & !(0x7ff << 52) | u64::from(800 + i % 400) << 52);
            assert_eq!(rounded(y, 8, 23), u64::from(narrow(y).to_bits()), "{y:e}");
        }
    }

    #[test]
    fn eight_bit_floats_come_back_from_their_values() {
        for dtype in [DType::F8E4M3, DType::F8E5M2] {
            for bits in 0..=255u8 {
                let value = word_value(dtype, u64::from(bits));
                if value.is_nan() {
                    continue;
                }
                let wide = value.to_le_bytes();
                assert_eq!(
                    cast_words(DType::F64, &wide, dtype),
                    [bits],
                    "{dtype:?} {value}"
                );
            }
        }
    }
}
