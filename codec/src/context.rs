//! The context of a residual: the scale of its row in units of the last place of the base weight, four to the octave.

use crate::dtype::{DType, FloatLayout};

/// Contexts: mean updates from 2^-10 to 2^30 units of the last place.
pub(crate) const CONTEXTS: usize = 160;
/// The context of a mean update of one unit of the last place.
const UNIT: i32 = 40;

/// Maps base words and row scales to contexts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contexts {
    layout: Option<FloatLayout>,
    exponent_mask: u64,
    bias: i32,
}

impl Contexts {
    pub(crate) fn new(dtype: Option<DType>) -> Self {
        let layout = dtype.and_then(DType::layout);
        let (exponent_mask, bias) = layout.map_or((0, 0), |l| {
            ((1 << l.exponent) - 1, (1 << (l.exponent - 1)) - 1)
        });
        Self {
            layout,
            exponent_mask,
            bias,
        }
    }

    /// `scale`: four times log2 of the row's mean absolute update. `base`: the base word's bits.
    #[inline(always)]
    pub(crate) fn of(&self, scale: i32, base: u64) -> usize {
        let ulp = match self.layout {
            None => 0,
            Some(l) => {
                let exponent = i32::try_from(base >> l.mantissa & self.exponent_mask)
                    .unwrap_or(0)
                    .max(1);
                exponent - self.bias - i32::try_from(l.mantissa).unwrap_or(0)
            }
        };
        usize::try_from((scale - 4 * ulp + UNIT).clamp(0, 159)).unwrap_or(0)
    }
}
