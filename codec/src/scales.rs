//! Row scales: four times log2 of a row's mean absolute update, coded as differences from row to row.

use crate::{
    bits::{put_varint, take_bytes, take_size},
    error::{CodecError, corrupt},
    rc::{Bit, Coder, Decoder, Encoder, Number},
};

/// The scale of a row in which nothing changed.
pub(crate) const UNCHANGED: i16 = i16::MIN;
/// Scales are within this of zero.
const LIMIT: i32 = 16_000;

/// The model of scales as it stands after some rows.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    unchanged: [Bit; 2],
    was_unchanged: bool,
    moved: [Bit; 2],
    had_moved: bool,
    down: [Bit; 3],
    went: usize,
    step: Number,
    last: i32,
    first: bool,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            unchanged: [Bit::mostly_zero(); 2],
            was_unchanged: false,
            moved: [Bit::mostly_zero(), Bit::default()],
            had_moved: false,
            down: [Bit::default(); 3],
            went: 0,
            step: Number::default(),
            last: 0,
            first: true,
        }
    }

    /// The scale of the last changed row.
    pub(crate) fn last(&self) -> Option<i32> {
        (!self.first).then_some(self.last)
    }

    /// Bits that `scale` would take next.
    pub(crate) fn cost(&self, scale: i32) -> f32 {
        if self.first {
            return 0.0;
        }
        let step = scale - self.last;
        let moved = self.moved[usize::from(self.had_moved)];
        if step == 0 {
            return moved.cost(false);
        }
        moved.cost(true)
            + self.down[self.went].cost(step < 0)
            + self.step.cost(step.unsigned_abs() - 1)
    }

    /// Codes one scale.
    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C, scale: i16) -> Result<i16, CodecError> {
        let unchanged = coder.bit(
            &mut self.unchanged[usize::from(self.was_unchanged)],
            scale == UNCHANGED,
        )?;
        self.was_unchanged = unchanged;
        if unchanged {
            return Ok(UNCHANGED);
        }
        let step = i32::from(scale).wrapping_sub(self.last);
        let moved = coder.bit(&mut self.moved[usize::from(self.had_moved)], step != 0)?;
        if moved {
            let down = coder.bit(&mut self.down[self.went], step < 0)?;
            let size = self
                .step
                .code(coder, step.unsigned_abs().wrapping_sub(1))?
                .saturating_add(1);
            let size = i32::try_from(size).unwrap_or(i32::MAX);
            self.last = if down {
                self.last.saturating_sub(size)
            } else {
                self.last.saturating_add(size)
            };
            if !(-LIMIT..=LIMIT).contains(&self.last) {
                return Err(corrupt("a row scale is out of range"));
            }
            self.went = 1 + usize::from(down);
        } else {
            self.went = 0;
        }
        // The first scale is far from zero by nature; what follows it learns from nothing.
        self.had_moved = moved && !self.first;
        self.first = false;
        i16::try_from(self.last).map_err(|_| corrupt("a row scale is out of range"))
    }
}

/// Appends the scales.
pub(crate) fn put(scales: &[i16], out: &mut Vec<u8>) {
    let mut coder = Encoder::new();
    let mut model = Model::new();
    for scale in scales {
        let _infallible = model.code(&mut coder, *scale);
    }
    let coded = coder.finish();
    put_varint(out, coded.len() as u64);
    out.extend_from_slice(&coded);
}

/// Takes `rows` scales off the front of `data`.
pub(crate) fn take(data: &mut &[u8], rows: usize) -> Result<Vec<i16>, CodecError> {
    let length = take_size(data, data.len())?;
    let mut coder = Decoder::new(take_bytes(data, length)?);
    let mut model = Model::new();
    // Grown as the coder gives them: a hostile row count without data to back it ends in an error first.
    let mut scales = Vec::with_capacity(rows.min(1 << 12));
    for _ in 0..rows {
        scales.push(model.code(&mut coder, 0)?);
    }
    Ok(scales)
}

/// The scale of a mean absolute update in ulps of exponent 0: four times its binary logarithm, rounded. Found by comparing, so
/// that it is the same on every machine.
pub(crate) fn quantise(mean: f64) -> i16 {
    /// Where one quarter of an octave is nearer than the one below it: 2 to the power of 1/8, 3/8, 5/8 and 7/8.
    const QUARTERS: [f64; 4] = [
        1.090_507_732_665_257_7,
        1.296_839_554_651_009_6,
        1.542_210_825_407_940_7,
        1.834_008_086_409_342_4,
    ];
    const FRACTION: u32 = f64::MANTISSA_DIGITS - 1;
    if !(mean >= f64::MIN_POSITIVE && mean.is_finite()) {
        return 0;
    }
    let bits = mean.to_bits();
    let octave = i16::try_from(bits >> FRACTION).unwrap_or(0) - 1023;
    let one = f64::from_bits(bits & ((1 << FRACTION) - 1) | 1f64.to_bits());
    QUARTERS.iter().fold(4 * octave, |scale, quarter| {
        scale + i16::from(one >= *quarter)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_quarters_of_octaves() {
        let mut mean = 1e-300;
        while mean < 1e300 {
            let exact = 4.0 * f64::log2(mean);
            assert!(
                (f64::from(quantise(mean)) - exact).abs() <= 0.5 + 1e-9,
                "{mean}"
            );
            mean *= 1.013;
        }
        assert_eq!([0.0, -1.0, f64::NAN, f64::INFINITY].map(quantise), [0; 4]);
    }
}
