//! Memory follows the block, not the model.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::support::{Random, sparse, text};

/// Tensors of a checkpoint of 20 GiB.
const TENSORS: u64 = 20;
const TENSOR: u64 = 1 << 30;
/// Bytes of each tensor that are not a hole of the file.
const WRITTEN: usize = 2 << 20;

/// A checkpoint whose file is mostly holes: 20 GiB that take 40 MiB of disk.
fn checkpoint(path: &Path, seed: u64, change: bool) {
    let mut random = Random::new(seed);
    let tensors: Vec<String> = (0..TENSORS)
        .map(|n| {
            format!(
                "\"layer.{n}.weight\":{{\"dtype\":\"BF16\",\"shape\":[16384,32768],\"data_offsets\":[{},{}]}}",
                n * TENSOR,
                (n + 1) * TENSOR
            )
        })
        .collect();
    let json = format!("{{{}}}", tensors.join(","));
    let file = File::create(path).unwrap();
    file.write_all_at(&(json.len() as u64).to_le_bytes(), 0)
        .unwrap();
    file.write_all_at(json.as_bytes(), 8).unwrap();
    let start = 8 + json.len() as u64;
    for n in 0..TENSORS {
        let mut region = random.bytes(WRITTEN);
        if change {
            for byte in region.iter_mut().step_by(4) {
                *byte = byte.wrapping_add(1);
            }
        }
        file.write_all_at(&region, start + n * TENSOR + TENSOR / 3)
            .unwrap();
    }
    file.set_len(start + TENSORS * TENSOR).unwrap();
}

/// Waits for a process, which must succeed; returns the most memory it ever had resident, in bytes.
fn peak(mut child: Child) -> u64 {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find(|line| line.starts_with("VmHWM"));
            let kilobytes =
                line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            peak = peak.max(kilobytes.unwrap_or(0) * 1024);
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_checkpoint_of_20_gib_takes_less_than_1_gib_of_memory() {
    let work = tempfile::tempdir().unwrap();
    let (base, finetune) = (
        work.path().join("base.safetensors"),
        work.path().join("ft.safetensors"),
    );
    checkpoint(&base, 31, false);
    checkpoint(&finetune, 31, true);
    let delta = text(&work.path().join("delta"));
    let compress = peak(
        sparse(work.path())
            .args([
                "compress",
                &text(&base),
                &text(&finetune),
                "-o",
                &delta,
                "--quiet",
            ])
            .spawn()
            .unwrap(),
    );
    // Rebuilds all of it and compares its SHA-256; only the writing is left out.
    let verify = peak(
        sparse(work.path())
            .args(["verify", &delta, "--base", &text(&base), "--quiet"])
            .spawn()
            .unwrap(),
    );
    println!(
        "peak: compress {} MB, verify {} MB",
        compress >> 20,
        verify >> 20
    );
    assert!(compress < 1 << 30, "compress took {compress} bytes");
    assert!(verify < 1 << 30, "verify took {verify} bytes");
}
