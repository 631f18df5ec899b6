//! The passes of a strip with AVX-512. Each gives what its twin in `avx2` and its portable one in `passes` and `rans` give,
//! bit for bit.
//!
//! Functions here are safe to call only on a CPU with the extensions that [`available`] tells; slices are checked, so that no
//! input makes them read or write outside.

mod context;
mod measure;
mod pack;
mod rans;
mod raw;
mod rebuild;
mod shift;
mod tokens;

use std::arch::x86_64::__m512i;
use std::sync::LazyLock;

pub(crate) use context::fill;
pub(crate) use measure::measure;
pub(crate) use pack::{pack, select};
pub(crate) use rans::{encode, groups};
pub(crate) use raw::{put_raw, values};
pub(crate) use rebuild::{ones, rebuild};
pub(crate) use shift::shift;
pub(crate) use tokens::tokens;

/// Whether this CPU has what the functions here need; asked once.
#[inline]
pub(crate) fn available() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512cd")
            && std::arch::is_x86_feature_detected!("avx512vbmi")
            && std::arch::is_x86_feature_detected!("avx512vbmi2")
            && std::arch::is_x86_feature_detected!("popcnt")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
    });
    #[cfg(test)]
    if HIDDEN.get() {
        return false;
    }
    *HAS
}

#[cfg(test)]
thread_local! {
    /// Tests see what a CPU without these extensions does.
    pub(crate) static HIDDEN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Bytes ahead of those at hand that are asked for: the base of a large model comes from memory.
const SOON: usize = 8192;

/// Holds a vector in a register. What expands a vector from memory takes many times as long as what expands a register, and the compiler
/// would make the one of a load and the other.
#[target_feature(enable = "avx512f")]
#[inline]
fn held(mut x: __m512i) -> __m512i {
    // SAFETY: nothing is done.
    unsafe {
        std::arch::asm!(
            "/* {0} */",
            inout(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    x
}
