//! `cargo run -p sparse-gpu --release --example measure [ROWS]`: what the kernels reach on this machine's GPU, against copies.
//! The binary needs nothing but the driver.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows = match std::env::args().nth(1) {
        Some(text) => text.parse().map_err(|e| format!("ROWS '{text}': {e}"))?,
        None => 32768,
    };
    let device = sparse_gpu::Device::open()?;
    println!("{}", device.found());
    println!("{rows} x 4096 BF16");
    for m in sparse_gpu::measure(&device, rows, 4096)? {
        println!(
            "{:<40} {:>10.3} ms {:>9.1} GB/s",
            m.name,
            m.seconds * 1e3,
            m.rate()
        );
    }
    Ok(())
}
