//! What the benchmarks share: the models to measure, the clock, the floor (memcpy) and a simple peer.
//!
//! ```console
//! $ cargo bench -p sparse-benches --bench codec -- BASE FINETUNE [--effort max]
//! $ cargo bench -p sparse-benches --bench end_to_end -- BASE FINETUNE
//! ```
//! Every figure is the best of several runs, in GB/s of fine-tuned bytes, and beside it its share of memcpy's rate in the
//! same run: these machines are shared, so only the ratios travel.

pub mod clock;
pub mod peer;
pub mod subject;
