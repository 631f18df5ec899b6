//! `cargo run -p sparse-gpu --release --example measure [ROWS]`: what the kernels reach on this machine's GPU, against copies, and
//! what a decomposition takes. The binary needs nothing but the driver, and cuBLAS for the last.

use sparse_gpu::Measurement;

/// A linear layer of a model of seven billion parameters, and a rank.
const MATRIX: [usize; 3] = [4096, 11008, 64];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows = match std::env::args().nth(1) {
        Some(text) => text.parse().map_err(|e| format!("ROWS '{text}': {e}"))?,
        None => 32768,
    };
    let device = sparse_gpu::Device::open()?;
    println!("{}", device.found());
    println!("{rows} x 4096 BF16");
    for measured in sparse_gpu::measure(&device, rows, 4096)? {
        show(&measured);
    }
    let [rows, cols, rank] = MATRIX;
    println!("{rows} x {cols} BF16, rank {rank}");
    match sparse_gpu::measure_svd(&device, rows, cols, rank) {
        Ok(measured) => show(&measured),
        Err(error) => println!("{error}"),
    }
    Ok(())
}

fn show(m: &Measurement) {
    println!(
        "{:<40} {:>10.3} ms {:>9.1} GB/s",
        m.name,
        m.seconds * 1e3,
        m.rate()
    );
}
