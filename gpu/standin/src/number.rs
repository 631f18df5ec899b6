//! Arithmetic on registers, as PTX defines it: integers wrap, floats round once to nearest even, a NaN that arithmetic makes
//! has one form.

use crate::module::{Binary, Compare, Kind, Rounding, Ternary, Type, Unary};

const NAN32: u32 = 0x7fff_ffff;
const NAN64: u64 = 0x7fff_ffff_ffff_ffff;

pub(crate) fn mask(value: u64, ty: Type) -> u64 {
    match ty.bytes {
        8 => value,
        bytes => value & ((1 << (u32::from(bytes) * 8)) - 1),
    }
}

/// The value of an integer type.
pub(crate) fn integer(value: u64, ty: Type) -> i128 {
    let value = mask(value, ty);
    if ty.kind == Kind::Signed {
        let unused = 64 - u32::from(ty.bytes) * 8;
        i128::from((value << unused).cast_signed() >> unused)
    } else {
        i128::from(value)
    }
}

fn single(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

fn double(value: u64) -> f64 {
    f64::from_bits(value)
}

fn of_single(value: f32) -> u64 {
    u64::from(if value.is_nan() {
        NAN32
    } else {
        value.to_bits()
    })
}

fn of_double(value: f64) -> u64 {
    if value.is_nan() {
        NAN64
    } else {
        value.to_bits()
    }
}

fn low(value: i128) -> u64 {
    value as u64
}

fn float(ty: Type) -> bool {
    ty.kind == Kind::Float
}

pub(crate) fn unary(op: Unary, ty: Type, a: u64) -> u64 {
    let bits = u32::from(ty.bytes) * 8;
    match op {
        Unary::Move => mask(a, ty),
        Unary::Negate if float(ty) => mask(a ^ 1 << (bits - 1), ty),
        Unary::Negate => low(-integer(a, ty)),
        Unary::Absolute if float(ty) => mask(a & !(1 << (bits - 1)), ty),
        Unary::Absolute => low(integer(a, ty).abs()),
        Unary::Not if ty.kind == Kind::Predicate => a & 1 ^ 1,
        Unary::Not => mask(!a, ty),
        Unary::Population => u64::from(mask(a, ty).count_ones()),
        Unary::LeadingZeros => u64::from(mask(a, ty).leading_zeros() - (64 - bits)),
        Unary::Reverse => mask(a, ty).reverse_bits() >> (64 - bits),
        Unary::Root if ty.bytes == 4 => of_single(single(a).sqrt()),
        Unary::Root => of_double(double(a).sqrt()),
        Unary::Reciprocal if ty.bytes == 4 => of_single(1.0 / single(a)),
        Unary::Reciprocal => of_double(1.0 / double(a)),
    }
}

pub(crate) fn binary(op: Binary, ty: Type, a: u64, b: u64) -> u64 {
    if float(ty) {
        return if ty.bytes == 4 {
            let (x, y) = (single(a), single(b));
            of_single(match op {
                Binary::Add => x + y,
                Binary::Subtract => x - y,
                Binary::Multiply => x * y,
                Binary::Divide => x / y,
                Binary::Minimum => smaller(x, y),
                Binary::Maximum => -smaller(-x, -y),
                _ => return b,
            })
        } else {
            let (x, y) = (double(a), double(b));
            of_double(match op {
                Binary::Add => x + y,
                Binary::Subtract => x - y,
                Binary::Multiply => x * y,
                Binary::Divide => x / y,
                Binary::Minimum => smaller64(x, y),
                Binary::Maximum => -smaller64(-x, -y),
                _ => return b,
            })
        };
    }
    let bits = u32::from(ty.bytes) * 8;
    let (x, y) = (integer(a, ty), integer(b, ty));
    match op {
        Binary::Add => low(x + y),
        Binary::Subtract => low(x - y),
        Binary::Multiply | Binary::MultiplyWide => low(x.wrapping_mul(y)),
        // Of two unsigned 64-bit numbers the product may pass i128, but not its bits.
        Binary::MultiplyHigh => low(x.wrapping_mul(y) >> bits),
        // A device gives all ones.
        Binary::Divide => low(x.checked_div(y).unwrap_or(-1)),
        Binary::Remainder => low(x.checked_rem(y).unwrap_or(x)),
        Binary::Minimum => low(x.min(y)),
        Binary::Maximum => low(x.max(y)),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        // Shifts take 32 bits and stop at the width.
        Binary::ShiftLeft => {
            let by = b & 0xffff_ffff;
            if by >= u64::from(bits) {
                0
            } else {
                mask(a << by, ty)
            }
        }
        Binary::ShiftRight => low(x >> (b & 0xffff_ffff).min(u64::from(bits))),
        Binary::Exchange => b,
        Binary::Increment => low(if x >= y { 0 } else { x + 1 }),
    }
}

/// The smaller of two numbers: a NaN gives way, and -0 is less than 0.
fn smaller(x: f32, y: f32) -> f32 {
    match () {
        () if x.is_nan() => y,
        () if y.is_nan() => x,
        () if x == y => f32::from_bits(x.to_bits() | y.to_bits()),
        () => x.min(y),
    }
}

fn smaller64(x: f64, y: f64) -> f64 {
    match () {
        () if x.is_nan() => y,
        () if y.is_nan() => x,
        () if x == y => f64::from_bits(x.to_bits() | y.to_bits()),
        () => x.min(y),
    }
}

pub(crate) fn ternary(op: Ternary, ty: Type, a: u64, b: u64, c: u64) -> u64 {
    match op {
        Ternary::MultiplyAdd if float(ty) && ty.bytes == 4 => {
            of_single(single(a).mul_add(single(b), single(c)))
        }
        Ternary::MultiplyAdd if float(ty) => of_double(double(a).mul_add(double(b), double(c))),
        Ternary::MultiplyAdd => low(integer(a, ty).wrapping_mul(integer(b, ty)) + integer(c, ty)),
        Ternary::MultiplyAddWide => {
            let wide = Type {
                kind: ty.kind,
                bytes: ty.bytes * 2,
            };
            low(integer(a, ty) * integer(b, ty) + integer(c, wide))
        }
        Ternary::Select => mask(if c & 1 == 1 { a } else { b }, ty),
        Ternary::Extract => {
            let bits = u32::from(ty.bytes) * 8;
            let (from, length) = ((b & 0xff) as u32, (c & 0xff) as u32);
            let signed = ty.kind == Kind::Signed;
            let a = mask(a, ty);
            if length == 0 {
                return 0;
            }
            let top = (from + length - 1).min(bits - 1);
            let sign = signed && a >> top & 1 == 1;
            let mut out = 0;
            for i in 0..bits {
                let bit = if i < length && from + i < bits {
                    a >> (from + i) & 1
                } else {
                    u64::from(sign)
                };
                out |= bit << i;
            }
            out
        }
        Ternary::Permute => {
            let bytes = ((b & 0xffff_ffff) << 32 | a & 0xffff_ffff).to_le_bytes();
            (0..4).fold(0, |out, i| {
                let pick = c >> (4 * i) & 0xf;
                let byte = bytes[(pick & 7) as usize];
                let byte = if pick & 8 == 0 {
                    byte
                } else {
                    (byte.cast_signed() >> 7).cast_unsigned()
                };
                out | u64::from(byte) << (8 * i)
            })
        }
        Ternary::FunnelLeft | Ternary::FunnelRight => {
            let both = (b & 0xffff_ffff) << 32 | a & 0xffff_ffff;
            let by = c & 31;
            if op == Ternary::FunnelLeft {
                both << by >> 32
            } else {
                both >> by & 0xffff_ffff
            }
        }
    }
}

pub(crate) fn insert(ty: Type, [a, b, c, d]: [u64; 4]) -> u64 {
    let bits = u32::from(ty.bytes) * 8;
    let (from, length) = ((c & 0xff) as u32, (d & 0xff) as u32);
    (0..length)
        .take_while(|i| from + i < bits)
        .fold(mask(b, ty), |out, i| {
            out & !(1 << (from + i)) | (a >> i & 1) << (from + i)
        })
}

pub(crate) fn logic([a, b, c]: [u64; 3], table: u8) -> u64 {
    (0..32).fold(0, |out, i| {
        let row = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
        out | u64::from(table >> row & 1) << i
    })
}

pub(crate) fn compare(by: Compare, unordered: bool, ty: Type, a: u64, b: u64) -> bool {
    let order = if float(ty) {
        let (x, y) = if ty.bytes == 4 {
            (f64::from(single(a)), f64::from(single(b)))
        } else {
            (double(a), double(b))
        };
        match x.partial_cmp(&y) {
            Some(order) => order,
            None => return unordered,
        }
    } else {
        integer(a, ty).cmp(&integer(b, ty))
    };
    match by {
        Compare::Equal => order.is_eq(),
        Compare::NotEqual => order.is_ne(),
        Compare::Less => order.is_lt(),
        Compare::LessEqual => order.is_le(),
        Compare::Greater => order.is_gt(),
        Compare::GreaterEqual => order.is_ge(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "rounding is what is meant")]
pub(crate) fn convert(
    to: Type,
    from: Type,
    rounding: Option<Rounding>,
    saturate: bool,
    value: u64,
) -> u64 {
    match (float(from), float(to)) {
        (false, false) => {
            let value = integer(value, from);
            let (least, most) = range(to);
            low(if saturate {
                value.clamp(least, most)
            } else {
                integer(mask(low(value), to), to)
            })
        }
        (false, true) if to.bytes == 4 => of_single(integer(value, from) as f32),
        (false, true) => of_double(integer(value, from) as f64),
        (true, _) => {
            let wide = if from.bytes == 4 {
                f64::from(single(value))
            } else {
                double(value)
            };
            let whole = match rounding {
                Some(Rounding::Nearest) => wide.round_ties_even(),
                Some(Rounding::Zero) => wide.trunc(),
                Some(Rounding::Down) => wide.floor(),
                Some(Rounding::Up) => wide.ceil(),
                None => wide,
            };
            if float(to) {
                let whole = if saturate {
                    if whole.is_nan() {
                        0.0
                    } else {
                        whole.clamp(0.0, 1.0)
                    }
                } else {
                    whole
                };
                return if to.bytes == 4 {
                    of_single(whole as f32)
                } else {
                    of_double(whole)
                };
            }
            // Out of range stops at its ends; a NaN is 0.
            let (least, most) = range(to);
            low((whole as i128).clamp(least, most))
        }
    }
}

fn range(ty: Type) -> (i128, i128) {
    let bits = u32::from(ty.bytes) * 8;
    if ty.kind == Kind::Signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S32: Type = Type {
        kind: Kind::Signed,
        bytes: 4,
    };
    const U32: Type = Type {
        kind: Kind::Unsigned,
        bytes: 4,
    };
    const U64: Type = Type {
        kind: Kind::Unsigned,
        bytes: 8,
    };
    const B32: Type = Type {
        kind: Kind::Bits,
        bytes: 4,
    };
    const F32: Type = Type {
        kind: Kind::Float,
        bytes: 4,
    };

    fn f(x: f32) -> u64 {
        u64::from(x.to_bits())
    }

    #[test]
    fn integers_wrap_and_keep_their_signs() {
        assert_eq!(mask(binary(Binary::Add, U32, 0xffff_ffff, 1), U32), 0);
        assert_eq!(
            mask(binary(Binary::MultiplyHigh, U64, u64::MAX, u64::MAX), U64),
            u64::MAX - 1
        );
        assert_eq!(
            mask(binary(Binary::MultiplyHigh, S32, 0x8000_0000, 2), U32),
            0xffff_ffff
        );
        assert_eq!(
            mask(binary(Binary::ShiftRight, S32, 0x8000_0000, 40), U32),
            0xffff_ffff
        );
        assert_eq!(binary(Binary::ShiftLeft, B32, 1, 32), 0);
        assert_eq!(mask(binary(Binary::Divide, U32, 7, 0), U32), 0xffff_ffff);
        assert_eq!(
            mask(
                convert(
                    S32,
                    Type {
                        kind: Kind::Signed,
                        bytes: 1
                    },
                    None,
                    false,
                    0x80
                ),
                U32
            ),
            0xffff_ff80
        );
    }

    #[test]
    fn floats_round_once_and_make_one_nan() {
        // 1 + 2^-24 + 2^-48 fused: above the tie, so up; the product alone would round down to the tie's even side.
        let (a, b) = (1.0 + 2f32.powi(-12), 1.0 + 2f32.powi(-12));
        assert_eq!(
            ternary(Ternary::MultiplyAdd, F32, f(a), f(b), f(-1.0)),
            f(a.mul_add(b, -1.0))
        );
        assert_eq!(
            binary(Binary::Add, F32, f(f32::INFINITY), f(f32::NEG_INFINITY)),
            u64::from(NAN32)
        );
        assert_eq!(binary(Binary::Maximum, F32, f(f32::NAN), f(2.0)), f(2.0));
        assert_eq!(binary(Binary::Maximum, F32, f(-0.0), f(0.0)), f(0.0));
        assert_eq!(
            mask(
                convert(S32, F32, Some(Rounding::Nearest), false, f(-2.5)),
                U32
            ),
            0xffff_fffe
        );
        assert_eq!(
            convert(S32, F32, Some(Rounding::Zero), false, f(f32::NAN)),
            0
        );
        assert_eq!(
            convert(S32, F32, Some(Rounding::Zero), false, f(3e9)),
            0x7fff_ffff
        );
        assert!(!compare(Compare::Equal, false, F32, f(f32::NAN), f(1.0)));
        assert!(compare(Compare::NotEqual, true, F32, f(f32::NAN), f(1.0)));
        assert!(!compare(Compare::NotEqual, false, F32, f(f32::NAN), f(1.0)));
    }

    #[test]
    fn bits_are_moved_as_the_manual_says() {
        assert_eq!(
            ternary(Ternary::Permute, B32, 0x3322_1100, 0x7766_5544, 0x5410),
            0x5544_1100
        );
        assert_eq!(ternary(Ternary::FunnelLeft, B32, 0x8000_0000, 1, 1), 3);
        assert_eq!(ternary(Ternary::Extract, S32, 0x80, 4, 4), 0xffff_fff8);
        assert_eq!(insert(B32, [0b11, 0, 4, 2]), 0x30);
        assert_eq!(logic([0b1100, 0b1010, 0], 0xc0), 0b1000);
    }
}
