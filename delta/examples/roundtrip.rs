//! Compresses a fine-tune against its base, rebuilds it, and says how large and how fast.
//!
//! `cargo run --release -p sparse-delta --example roundtrip -- BASE FINETUNE [fast|default|max] [THREADS]`

use std::time::Duration;

use sparse_delta::{Compress, Reconstruct};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(base), Some(finetune)) = (arguments.next(), arguments.next()) else {
        return Err("usage: roundtrip BASE FINETUNE [fast|default|max] [THREADS]".into());
    };
    let effort = arguments
        .next()
        .map(|text| text.parse())
        .transpose()?
        .unwrap_or_default();
    let threads = arguments
        .next()
        .map(|text| text.parse())
        .transpose()?
        .unwrap_or(0);
    let dir = tempfile::tempdir()?;
    let (delta, rebuilt) = (dir.path().join("delta"), dir.path().join("rebuilt"));
    let (manifest, made) = Compress::new(&base, &finetune)
        .output(delta.to_string_lossy())
        .effort(effort)
        .threads(threads)
        .run()
        .await?;
    let (outcome, back) = Reconstruct::new(&base, delta.to_string_lossy())
        .output(rebuilt.to_string_lossy())
        .threads(threads)
        .run()
        .await?;
    println!("{finetune}");
    println!(
        "  ratio {:.3} ({} of {} bytes)",
        manifest.compression_ratio, manifest.artifact_bytes, manifest.original_bytes
    );
    let other = made.artifact_bytes - made.block_bytes - made.header_bytes;
    println!(
        "  blocks {} + tensor headers {} + other {other}",
        made.block_bytes, made.header_bytes
    );
    let manifest_bytes = std::fs::metadata(delta.join("manifest.json"))?.len();
    println!(
        "  other: manifest {manifest_bytes}, index {}, file headers and carried files {}",
        made.index_bytes, made.carried_bytes
    );
    let rate = |bytes: u64, time: Duration| bytes as f64 / time.as_secs_f64() / 1e6;
    println!(
        "  compress {:?} ({:.0} MB/s)",
        made.elapsed,
        rate(made.original_bytes, made.elapsed)
    );
    println!(
        "  reconstruct {:?} ({:.0} MB/s; {:?} before the commit's fsync)",
        back.elapsed,
        rate(back.bytes, back.elapsed),
        back.decode
    );
    println!(
        "  identical: {} files, sha256 {}",
        outcome.files.len(),
        outcome.files[0].sha256
    );
    Ok(())
}
