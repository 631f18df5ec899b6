//! Files to files: compress and reconstruct as the library runs them, hashing, fsync and rename included.
//! `cargo bench -p sparse-benches --bench end_to_end -- BASE FINETUNE [--effort fast|default|max] [--runs N]`

use std::{error::Error, hint::black_box, time::Instant};

use sparse_benches::{
    clock::{best_of, rate},
    subject::Subject,
};
use sparse_delta::{Compress, Reconstruct};
use sparse_store::Model;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let subject = Subject::from_args()?;
    let finetune = Model::open_local(&subject.finetune)?;
    let bytes: usize = finetune.files().iter().map(|f| f.bytes().len()).sum();
    let source: Vec<u8> = finetune
        .files()
        .iter()
        .flat_map(|f| f.bytes())
        .copied()
        .collect();
    let mut out = vec![0u8; source.len()];
    let copy = rate(
        bytes,
        best_of(subject.runs * 2, || out.copy_from_slice(black_box(&source))),
    );
    println!(
        "{}: {:.1} MB, memcpy {copy:.2} GB/s, best of {} runs",
        subject.finetune.display(),
        bytes as f64 / 1e6,
        subject.runs
    );

    let runtime = tokio::runtime::Runtime::new()?;
    let work = tempfile::tempdir()?;
    let base = subject.base.to_string_lossy().into_owned();
    let tuned = subject.finetune.to_string_lossy().into_owned();
    let mut best = [f64::INFINITY; 2];
    let mut ratio = 0.0;
    for run in 0..subject.runs {
        let delta = work
            .path()
            .join(format!("delta{run}"))
            .to_string_lossy()
            .into_owned();
        let rebuilt = work
            .path()
            .join(format!("model{run}"))
            .to_string_lossy()
            .into_owned();
        let start = Instant::now();
        let (manifest, _) = runtime.block_on(
            Compress::new(&base, &tuned)
                .output(&delta)
                .effort(subject.effort)
                .run(),
        )?;
        best[0] = best[0].min(start.elapsed().as_secs_f64());
        ratio = manifest.compression_ratio;
        let start = Instant::now();
        runtime.block_on(Reconstruct::new(&base, &delta).output(&rebuilt).run())?;
        best[1] = best[1].min(start.elapsed().as_secs_f64());
        std::fs::remove_dir_all(&rebuilt)?;
    }
    for (what, seconds) in [("compress", best[0]), ("reconstruct", best[1])] {
        let speed = bytes as f64 / 1e9 / seconds;
        println!(
            "{what:<12} {speed:>7.3} GB/s, {:.3} of memcpy, ratio {ratio:.3}",
            speed / copy
        );
    }
    Ok(())
}
