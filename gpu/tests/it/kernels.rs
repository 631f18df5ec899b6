//! The committed PTX is what the committed sources make.

use std::path::Path;

use sha2::{Digest, Sha256};

fn hash(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn files(folder: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    all.sort();
    all
}

#[test]
fn manifests_match_sources_and_ptx() {
    for folder in ["kernels", "tests/faults"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let manifest = std::fs::read_to_string(folder.join("manifest.txt")).unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let headers: String = files(&folder, "cuh").iter().map(|p| read(p)).collect();
        let sources = files(&folder, "cu");
        assert_eq!(manifest.lines().count(), sources.len() + 2, "{manifest}");
        for source in sources {
            let ptx = read(&source.with_extension("ptx"));
            let line = format!(
                "{} source {} ptx {}",
                source.file_name().unwrap().display(),
                hash(&(headers.clone() + &read(&source))),
                hash(&ptx)
            );
            assert!(
                manifest.lines().any(|l| l == line),
                "{} is stale: run `cargo xtask kernels`",
                source.display()
            );
            // What a driver of the 525 series and an Ampere GPU take.
            assert!(ptx.contains(".version 8.0\n.target sm_80\n"));
        }
    }
}

#[test]
fn kernels_have_names() {
    let names = sparse_gpu::kernels();
    for name in ["lowrank_bf16_twice", "stats_f32_bf16", "int8_apply_f16"] {
        assert!(names.contains(&name), "{names:?}");
    }
}
