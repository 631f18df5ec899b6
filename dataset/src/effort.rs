//! How hard it is tried: what each effort may use.

use sparse_codec::Effort;

use crate::column::Limits;

/// The limits of an effort.
pub(crate) fn limits(effort: Effort) -> Limits {
    match effort {
        Effort::Fast => Limits {
            mixed: 256 << 10,
            learned: 0,
            remembered: 1 << 20,
            zstd: 3,
        },
        Effort::Default => Limits {
            mixed: 4 << 20,
            learned: 1 << 20,
            remembered: 32 << 20,
            zstd: 12,
        },
        Effort::Max => Limits {
            mixed: 64 << 20,
            learned: 64 << 20,
            remembered: 256 << 20,
            zstd: 19,
        },
    }
}
