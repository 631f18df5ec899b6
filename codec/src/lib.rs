//! The lossless delta codec for model weights: pure functions over slices.
//!
//! A delta is a *prediction* of the fine-tuned weights from what the receiver has, plus the exact *residual*. Residuals are
//! ordered-integer differences, entropy-coded (rANS) with the size of the update in units of the last place as context: the
//! base weight's exponent and the scale of its row, both known to the decoder. The bits are specified in
//! `docs/format-codec.md`.
//!
//! ```
//! use sparse_codec::{DType, EncodeOptions, TensorView, decode_buffer, encode_buffer};
//! let (base, tuned) = ([0u8, 63, 128, 63], [1u8, 63, 127, 63]);
//! let shape = [2];
//! let view = |data| TensorView { dtype: Some(DType::BF16), shape: &shape, data };
//! let delta = encode_buffer(view(&tuned), Some(view(&base)), &EncodeOptions::default())?;
//! assert_eq!(decode_buffer(&delta, Some(view(&base)))?.data, tuned);
//! # Ok::<(), sparse_codec::CodecError>(())
//! ```

#[cfg(target_arch = "x86_64")]
mod analysis;
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bits;
mod block;
mod buffer;
mod cast;
mod coding;
mod context;
mod decoder;
mod dtype;
mod encoder;
mod error;
mod features;
mod geometry;
mod int8;
mod learned;
mod lowrank;
mod options;
mod passes;
mod patches;
mod predictor;
mod rans;
mod rc;
mod rows;
mod scales;
mod shift;
mod standalone;
mod stats;
mod strip;
mod tables;
mod token;
mod train;
mod trainer;
mod view;
mod word;

pub use analysis::Seen;
pub use block::{BlockInfo, Method};
pub use buffer::{DecodedTensor, decode_buffer, encode_buffer, encode_buffer_by};
pub use cast::{cast, to_f32, to_f64};
pub use coding::{
    BlockForm, Coding, CodingTables, Int8Coding, Moved, StripCode, StripForm, UNCHANGED_ROW,
};
pub use decoder::TensorDecoder;
pub use dtype::DType;
pub use encoder::TensorEncoder;
pub use error::CodecError;
pub use features::{Feature, features};
pub use int8::{Distortion, Granularity, Int8, Scales, int8_dequantize};
pub use lowrank::{
    Adapter, LowRank, MAX_MERGED_RANK, Matrices, Merge, MergeWork, Unmerged, unmerge,
};
pub use options::{Effort, EncodeOptions, Scratch};
pub use stats::{DeltaStats, TensorStats};
pub use tables::SharedTables;
pub use trainer::{TablesTrainer, TrainingPair};
pub use view::TensorView;

/// Version of the bits this crate writes. A decoder refuses a newer one.
pub const FORMAT_VERSION: u32 = 1;
