//! Entropy coding: an arithmetic coder, and models that say how likely each bit is.

mod bits;
mod cells;
mod fixed;
mod known;
mod mix;
mod near;
mod range;
mod splice;
mod text;

pub(crate) use bits::{Bit, Int};
pub(crate) use cells::{CellModel, Room};
pub(crate) use range::{Coder, Decoder, Encoder, Learn};
