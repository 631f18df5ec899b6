//! Times the decomposition against torch's on the same matrix in one run, both on one thread, in seconds of CPU time, which
//! other programs on the machine disturb least.
//!
//! `cargo run -p sparse-svd --example against_torch -- PYTHON [ROWS COLS POWER [exact]]`: `PYTHON` has torch; singular values are
//! `1 / i^POWER`. With `exact`, `torch.linalg.svd` runs too, which takes minutes. Errors are relative Frobenius norms; the excess is
//! over the optimum, which the known singular values give.
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark stops at the first surprise"
)]

use std::process::Command;

use sparse_svd::{Dense, Rank, Svd};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [python, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: against_torch PYTHON [ROWS COLS POWER [exact]]");
        return;
    };
    let or = |at: usize, default: &str| rest.get(at).cloned().unwrap_or(default.to_owned());
    let (rows, cols, power) = (or(0, "4096"), or(1, "11008"), or(2, "0.6"));
    let exact = if or(3, "") == "exact" { "1" } else { "0" };
    let folder = std::env::temp_dir().join(format!("against-torch-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/against_torch.py");
    let output = Command::new(python)
        .arg(script)
        .arg(&folder)
        .args([&rows, &cols, &power, exact])
        .env("OMP_NUM_THREADS", "1")
        .env("MKL_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let numbers = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let matrix: Vec<f32> = numbers("matrix.f32")
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    let sigmas: Vec<f64> = numbers("sigmas.f64")
        .chunks_exact(8)
        .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
        .collect();
    std::fs::remove_dir_all(&folder).unwrap();
    println!("{rows} x {cols}, singular values 1 / i^{power}, one thread");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let source = Dense::new(&matrix, cols.parse().unwrap());
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let energy: f64 = matrix.iter().map(|x| f64::from(*x).powi(2)).sum();
    for rank in [16, 32, 64, 128] {
        let mut seconds = f64::INFINITY;
        let mut svd = None;
        for _ in 0..3 {
            let start = cpu_seconds();
            svd = Some(pool.install(|| Svd::new(&source, Rank::Fixed(rank)).unwrap()));
            seconds = seconds.min(cpu_seconds() - start);
        }
        let error = residual(&matrix, &svd.unwrap());
        let relative = (error / energy).sqrt();
        let tail: f64 = sigmas.iter().skip(rank).map(|s| s * s).sum();
        let best = (tail / sigmas.iter().map(|s| s * s).sum::<f64>()).sqrt();
        println!(
            r#"{{"what": "sparse-svd", "rank": {rank}, "seconds": {seconds:.3}, "error": {relative:.7}, "optimum": {best:.7}, "excess_percent": {:.5}}}"#,
            (relative / best - 1.0) * 100.0
        );
    }
}

/// CPU time of this process so far, user and system, from Linux's own count in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    let ticks: Vec<f64> = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    (ticks[0] + ticks[1]) / 100.0
}

/// The squared norm of what the approximation leaves, by a plain product.
fn residual(matrix: &[f32], svd: &Svd) -> f64 {
    let factors = svd.factors();
    let (cols, rank) = (factors.cols, factors.rank);
    let mut sum = 0.0;
    for (row, left) in matrix
        .chunks_exact(cols)
        .zip(factors.left.chunks_exact(rank))
    {
        let mut rest: Vec<f32> = row.to_vec();
        for (a, right) in left.iter().zip(factors.right.chunks_exact(cols)) {
            for (x, b) in rest.iter_mut().zip(right) {
                *x -= a * b;
            }
        }
        sum += rest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    }
    sum
}
