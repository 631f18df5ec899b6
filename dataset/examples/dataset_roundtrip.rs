//! Compresses a derivative dataset against its base, rebuilds it, and says how large and how fast.
//!
//! `cargo run -p sparse-dataset --example dataset_roundtrip -- BASE DERIVATIVE [SPLIT|all] [fast|default|max]`

use sparse_dataset::{Compress, Reconstruct};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(base), Some(derivative)) = (arguments.next(), arguments.next()) else {
        return Err(
            "usage: dataset_roundtrip BASE DERIVATIVE [SPLIT|all] [fast|default|max]".into(),
        );
    };
    let splits = match arguments.next() {
        Some(split) if split != "all" => vec![split],
        _ => Vec::new(),
    };
    let effort = arguments
        .next()
        .map(|text| text.parse())
        .transpose()?
        .unwrap_or_default();
    let dir = tempfile::tempdir()?;
    let (delta, rebuilt) = (dir.path().join("delta"), dir.path().join("rebuilt"));
    let made = Compress::new(base.as_str(), derivative.as_str())
        .output(delta.to_string_lossy())
        .splits(splits)
        .effort(effort)
        .run()
        .await?;
    let sizes = made.manifest.size_stats;
    println!("{derivative}");
    println!(
        "  {} bytes of {} (saves {} %), in {:.2?}",
        sizes.delta_size_bytes, sizes.derivative_size_bytes, sizes.savings_pct, made.elapsed
    );
    for split in &made.manifest.splits {
        println!(
            "  {}: {} rows, {} shared, {} edited, {} new, {} removed",
            split.name, split.rows, split.shared, split.edited, split.new, split.removed
        );
    }
    let back = Reconstruct::new(delta.to_string_lossy())
        .base(base.as_str())
        .output(rebuilt.to_string_lossy())
        .run()
        .await?;
    println!("  rebuilt in {:.2?}", back.elapsed);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        for line in status.lines().filter(|line| line.starts_with("VmHWM")) {
            println!("  {line}");
        }
    }
    Ok(())
}
