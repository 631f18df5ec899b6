//! How hard it is tried: what each effort may use.

use sparse_codec::Effort;

use crate::column::Limits;

/// The limits of an effort.
pub(crate) fn limits(effort: Effort) -> Limits {
    match effort {
        Effort::Fast => Limits {
            mixed: 256 << 10,
            deep: 0,
            quick: 0,
            learned: 0,
            learned_in_all: 0,
            remembered: 1 << 20,
            zstd: 3,
        },
        Effort::Default => Limits {
            mixed: 4 << 20,
            deep: 1 << 20,
            quick: 1 << 18,
            learned: 256 << 10,
            learned_in_all: 768 << 10,
            remembered: 16 << 20,
            zstd: 19,
        },
        Effort::Max => Limits {
            mixed: 64 << 20,
            deep: 64 << 20,
            quick: usize::MAX,
            learned: 64 << 20,
            learned_in_all: 256 << 20,
            remembered: 256 << 20,
            zstd: 19,
        },
    }
}
