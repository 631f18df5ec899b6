//! Timing: the best wall time of several runs.

use std::time::{Duration, Instant};

/// Runs `work` until `runs` results are in and returns the shortest wall time, which is the one least disturbed by
/// whatever else the machine does.
pub fn best_of(runs: usize, mut work: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
    }
    best
}

/// Gigabytes (1e9) a second.
pub fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e9 / time.as_secs_f64().max(1e-12)
}
