//! A stand-in for the CUDA driver and cuBLAS: the entry points that `sparse-gpu` reaches through cudarc, over an interpreter of
//! PTX. For tests on machines without a GPU; a copy of the library named `libcuda.so` on the loader's path is all it takes, and
//! a link to that named `libcublas.so.12` for cuBLAS.
//!
//! It is stricter than a device. Work queued in streams runs in a random order among the legal ones; pageable memory is read
//! when a copy is queued, pinned memory when it runs. A kernel that reaches outside its memory, is misaligned, reads what
//! nobody wrote, or lets a barrier diverge ends in a sticky error, as on a device, and [`standin_fault`] says what it was.
//! What arithmetic a device does is done bit for bit.
//!
//! | variable | meaning |
//! |---|---|
//! | `SPARSE_STANDIN_SEED` | seed of the order of streams and threads |
//! | `SPARSE_STANDIN_FAIL` | `alloc:N`, `pinned:N`, `launch:N`, `blas:N`, `lost:N`: the Nth call of the kind (from 0) fails; `wrong:N`: the Nth product comes out as NaNs |
//! | `SPARSE_STANDIN_MEMORY` | bytes of device memory (default 256 MiB) |
//! | `SPARSE_STANDIN_DRIVER` | what `cuDriverGetVersion` says (default 12050) |
//! | `SPARSE_STANDIN_DEVICES` | devices (default 1) |
//! | `SPARSE_STANDIN_CAPABILITY` | compute capability, as 80 or 90 |
//!
//! [`standin_inject`] and [`standin_seed`] set the first two while a process runs.
#![expect(
    clippy::cast_possible_truncation,
    reason = "registers are cut to the widths that instructions name"
)]

mod blas;
mod driver;
mod execute;
mod memory;
mod module;
mod number;
mod parse;
mod streams;

pub use driver::{standin_fault, standin_inject, standin_seed};
