//! The singular value decomposition of the difference of two models' matrices, and what becomes of the factors.
//!
//! A [`Source`] gives rows of `finetune - base` as often as they are asked for; the difference is never held whole. [`Svd`] finds
//! the leading singular triplets by a randomised block Krylov method, of a [`Rank`] that is given or found; smaller ranks are
//! its first triplets. An [`Engine`] does the same elsewhere, on a GPU say. [`Measured`] says how far the product of the factors, as stored, is from the difference.
//!
//! ```
//! use sparse_svd::{Difference, Rank, Svd};
//! let base = [0.0; 12];
//! let finetune = [1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 3.0, 6.0, 9.0, 4.0, 8.0, 12.0];
//! let svd = Svd::new(&Difference::new(&base, &finetune, 3)?, Rank::Fixed(1))?;
//! assert!((svd.sigmas()[0] - 420f64.sqrt()).abs() < 1e-4);
//! # Ok::<(), sparse_svd::SvdError>(())
//! ```

mod algebra;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod cpu;
mod decompose;
mod engine;
mod error;
mod krylov;
mod measure;
mod portable;
mod rank;
mod source;
mod stored;
mod tile;

pub use decompose::{Factors, Svd};
pub use engine::{Engine, Seen};
pub use error::SvdError;
pub use measure::{Measured, Product, Work};
pub use rank::{Noise, Rank, allocate};
pub use source::{Dense, Difference, Source};
pub use stored::{GROUP, Precision, Signs};
