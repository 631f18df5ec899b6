//! Rebuilding on a GPU: the library's builders in processes whose loader finds the stand-in for a driver (`gpu/standin`), against
//! the CPU, with errors in the midst of the work.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sparse_codec::Granularity;
use sparse_delta::{Compress, Device, Mode, Precision, Reconstruct, SvdCompress, SvdRank, Verify};
use sparse_store::OpenOptions;

/// What a process of this binary is asked to do, as JSON.
const ASKED: &str = "SPARSE_TEST_REBUILD";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/models")
        .join(name)
}

fn options(work: &Path) -> OpenOptions {
    OpenOptions {
        cache_dir: Some(work.join("cache")),
        ..OpenOptions::empty()
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Names and hashes of a folder's files.
fn hashes(folder: &Path) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let hash = |path: &Path| {
        let digest = Sha256::digest(std::fs::read(path).unwrap());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    files
        .map(|file| {
            let name = file.file_name().into_string().unwrap();
            (name, hash(&file.path()))
        })
        .collect()
}

/// The work of a process that is given the stand-in: one rebuild or verification, told on standard output.
#[tokio::test]
#[ignore = "run by others"]
async fn does_as_asked() {
    let asked: Value = serde_json::from_str(&std::env::var(ASKED).unwrap()).unwrap();
    let word = |name: &str| asked[name].as_str().unwrap();
    let work = Path::new(word("work"));
    let device: Device = word("device").parse().unwrap();
    let (base, delta) = (text(&example("base")), text(&work.join("delta")));
    let told = if asked["svd"] == true {
        // Matrices, and rows of zeros and ones: whatever there is.
        let compress = SvdCompress::new(base, text(&example(word("finetune"))))
            .rank(SvdRank::Auto)
            .precision(Precision::F32)
            .embeddings(true)
            .device(device);
        let compress = compress.threads(2).output(text(&work.join("out")));
        match compress.open_options(options(work)).run().await {
            Ok((manifest, metrics)) => {
                let all = manifest.tensors.iter();
                let told =
                    all.filter_map(|t| Some((&t.tensor, t.ranks.clone(), t.quality.first()?)));
                let told: Vec<Value> = told
                    .map(|(name, ranks, q)| json!([name, ranks, q.relative_error, q.sigma_k]))
                    .collect();
                json!({ "tensors": told, "device_matrices": metrics.device_matrices })
            }
            Err(error) => json!({ "error": error.to_string(), "code": error.exit_code() }),
        }
    } else if let Some(mode) = asked["compress"].as_str() {
        let finetune = example(word("finetune"));
        let compress = Compress::new(base, text(&finetune)).device(device);
        let granularity = (mode == "int8").then_some(Granularity::Row);
        let mode = Mode::parse(mode, granularity).unwrap();
        let compress = compress.mode(mode).threads(2);
        let compress = compress.output(text(&work.join("out")));
        match compress.open_options(options(work)).run().await {
            Ok((_, metrics)) => json!({
                "hashes": hashes(&work.join("out")),
                "device_blocks": metrics.device_blocks,
            }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    } else if asked["verify"] == true {
        let verify = Verify::new(delta).base(base).device(device);
        match verify.threads(2).open_options(options(work)).run().await {
            Ok(checks) => json!({ "ok": checks.iter().all(|check| check.ok) }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    } else {
        let reconstruct = Reconstruct::new(base, delta).device(device).threads(2);
        let reconstruct = reconstruct.output(text(&work.join("out")));
        match reconstruct.open_options(options(work)).run().await {
            Ok((_, metrics)) => json!({ "device_blocks": metrics.device_blocks }),
            Err(error) => json!({ "error": error.to_string(), "code": error.exit_code() }),
        }
    };
    println!("told: {told}");
}

struct Work {
    folder: tempfile::TempDir,
    driver: tempfile::TempDir,
    finetune: &'static str,
}

impl Work {
    /// A fine-tune's delta, and the stand-in that cargo built beside this binary under the driver's name.
    async fn new(finetune: &'static str) -> Self {
        let (folder, driver) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let built = std::env::current_exe().unwrap();
        let built = built.with_file_name("libsparse_gpu_standin.so");
        std::fs::copy(built, driver.path().join("libcuda.so")).unwrap();
        // The same library by another name: it stands in for cuBLAS too.
        for name in ["libcublas.so.12", "libcublas.so"] {
            std::os::unix::fs::symlink("libcuda.so", driver.path().join(name)).unwrap();
        }
        Compress::new(text(&example("base")), text(&example(finetune)))
            .output(text(&folder.path().join("delta")))
            .open_options(options(folder.path()))
            .run()
            .await
            .unwrap();
        Self {
            folder,
            driver,
            finetune,
        }
    }

    fn ask(&self, asked: Value, fails: &str) -> (Value, String) {
        let mut asked = asked;
        asked["work"] = json!(self.folder.path());
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["does_as_asked", "--ignored", "--exact", "--nocapture"])
            .env("LD_LIBRARY_PATH", self.driver.path())
            .env("SPARSE_STANDIN_FAIL", fails)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .env(ASKED, asked.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let told = said.lines().find_map(|line| line.split_once("told: "));
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let (_, told) = told.unwrap_or(("", "null"));
        (serde_json::from_str(told).expect(&log), log)
    }

    /// Rebuilds; what the process told. The output is the fine-tune, or nothing at all is there.
    fn rebuild(&self, device: &str, fails: &str) -> Value {
        let (told, log) = self.ask(json!({ "device": device }), fails);
        let out = self.folder.path().join("out");
        if told["error"].is_null() {
            let same = hashes(&out) == hashes(&example(self.finetune));
            assert!(same, "{device}, {fails}: {told} {log}");
            std::fs::remove_dir_all(&out).unwrap();
        }
        self.nothing_left(&log);
        told
    }

    /// Makes a delta: the hashes of its files, or an error and nothing.
    fn compress(&self, mode: &str, device: &str, fails: &str) -> Value {
        let asked = json!({ "device": device, "compress": mode, "finetune": self.finetune });
        let (told, log) = self.ask(asked, fails);
        if told["error"].is_null() {
            std::fs::remove_dir_all(self.folder.path().join("out")).unwrap();
        }
        self.nothing_left(&log);
        told
    }

    /// Approximates the fine-tune: how near each tensor came, or an error and nothing.
    fn approximate(&self, device: &str, fails: &str) -> (Value, String) {
        let asked = json!({ "device": device, "svd": true, "finetune": self.finetune });
        let (told, log) = self.ask(asked, fails);
        if told["error"].is_null() {
            std::fs::remove_dir_all(self.folder.path().join("out")).unwrap();
        }
        self.nothing_left(&log);
        (told, log)
    }

    fn nothing_left(&self, log: &str) {
        let left: Vec<String> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["cache", "delta"].contains(&name.as_str()))
            .collect();
        assert!(left.is_empty(), "{left:?} {log}");
    }
}

#[tokio::test]
async fn a_gpu_makes_the_same_files() {
    for finetune in ["sft", "lora-merged"] {
        let work = Work::new(finetune).await;
        let cuda = work.rebuild("cuda", "");
        assert!(cuda["device_blocks"].as_u64() > Some(10), "{cuda}");
        assert_eq!(work.rebuild("auto", ""), cuda);
        assert_eq!(work.rebuild("cpu", "lost:0")["device_blocks"], 0);
        let (verified, _) = work.ask(json!({ "device": "cuda", "verify": true }), "");
        assert_eq!(verified, json!({ "ok": true }));
    }
}

#[tokio::test]
async fn a_gpu_that_fails_midway_leaves_the_rest_to_the_cpu() {
    let work = Work::new("sft").await;
    let mut midway = 0;
    for fails in [
        "alloc:0", "alloc:6", "pinned:0", "pinned:3", "launch:0", "launch:7", "lost:9", "lost:300",
        "lost:900",
    ] {
        let told = work.rebuild("auto", fails);
        assert!(told["error"].is_null(), "{fails}: {told}");
        midway += u32::from(told["device_blocks"].as_u64() > Some(0));
    }
    assert!(midway >= 3, "{midway}");
}

#[tokio::test]
async fn a_gpu_that_must_be_there_fails_cleanly() {
    let work = Work::new("sft").await;
    for (fails, says) in [
        ("alloc:6", "the GPU's memory is full"),
        ("pinned:3", "the GPU's memory is full"),
        ("launch:7", "the GPU failed"),
        ("lost:300", "the GPU failed"),
    ] {
        let told = work.rebuild("cuda", fails);
        let error = told["error"].as_str().unwrap_or_default();
        assert!(error.contains(says) && told["code"] == 1, "{fails}: {told}");
        let (told, _) = work.ask(json!({ "device": "cuda", "verify": true }), fails);
        let error = told["error"].as_str().unwrap_or_default();
        assert!(error.contains(says), "{fails}: {told}");
    }
    // And it succeeds afterwards.
    assert!(work.rebuild("cuda", "")["error"].is_null());
}

#[tokio::test]
async fn deltas_are_the_same_everywhere() {
    for (finetune, mode) in [
        ("sft", "int8"),
        ("sft", "lossless"),
        ("lora-merged", "lossless"),
    ] {
        let work = Work::new(finetune).await;
        let cpu = work.compress(mode, "cpu", "lost:0");
        assert!(cpu["hashes"].is_object(), "{cpu}");
        assert_eq!(cpu["device_blocks"], 0);
        for (device, fails) in [
            ("cuda", ""),
            ("auto", ""),
            ("auto", "alloc:4"),
            ("auto", "launch:9"),
            ("auto", "lost:700"),
        ] {
            let told = work.compress(mode, device, fails);
            assert_eq!(told["hashes"], cpu["hashes"], "{mode} {device} {fails}");
            let checked = told["device_blocks"].as_u64().unwrap();
            assert!(
                mode == "int8" || !fails.is_empty() || checked > 10,
                "{told}"
            );
        }
        for fails in ["launch:9", "lost:700", "pinned:2"] {
            let told = work.compress(mode, "cuda", fails);
            assert!(told["error"].is_string(), "{fails}: {told}");
        }
    }
}

/// A GPU's factors are as near to the difference as the CPU's, tensor by tensor, of the same ranks.
fn are_as_near(found: &Value, wanted: &Value) {
    let tensors = |told: &Value| told["tensors"].as_array().unwrap().clone();
    let (found, wanted) = (tensors(found), tensors(wanted));
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!((&found[0], &found[1]), (&wanted[0], &wanted[1]));
        for number in [2, 3] {
            let [a, b] = [found, wanted].map(|told| told[number].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-4 * b, "{found} {wanted}");
        }
    }
}

#[tokio::test]
async fn approximations_are_as_near_everywhere() {
    let work = Work::new("sft").await;
    let (cpu, _) = work.approximate("cpu", "lost:0");
    assert_eq!(cpu["device_matrices"], 0);
    let (cuda, _) = work.approximate("cuda", "");
    are_as_near(&cuda, &cpu);
    let matrices = cuda["device_matrices"].as_u64().unwrap();
    assert!(matrices > 10, "{cuda}");
    let mut midway = 0;
    for fails in [
        "",
        "alloc:30",
        "pinned:2",
        "launch:50",
        "blas:9",
        "lost:400",
    ] {
        let (auto, log) = work.approximate("auto", fails);
        are_as_near(&auto, &cpu);
        let done = auto["device_matrices"].as_u64().unwrap();
        assert_eq!(done == matrices, fails.is_empty(), "{fails}: {auto} {log}");
        midway += u32::from(done > 0 && done < matrices);
    }
    assert!(midway > 1, "{midway}");
    for (fails, says) in [
        ("pinned:2", "the GPU's memory is full"),
        ("launch:50", "the GPU failed"),
        ("blas:9", "the GPU failed"),
        ("lost:400", "the GPU failed"),
    ] {
        let (told, _) = work.approximate("cuda", fails);
        let error = told["error"].as_str().unwrap_or_default();
        assert!(error.contains(says) && told["code"] == 1, "{fails}: {told}");
    }
    // What was decomposed before the failures is taken up.
    let (again, _) = work.approximate("cuda", "");
    are_as_near(&again, &cpu);
}

#[tokio::test]
async fn approximations_without_cublas_are_the_cpus() {
    let work = Work::new("sft").await;
    let names = ["", ".12", ".11", ".10", ".9"].map(|version| format!("libcublas.so{version}"));
    for name in names {
        // What is no library hides a real one.
        let path = work.driver.path().join(name);
        if path.is_symlink() {
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::write(path, "").unwrap();
    }
    let (auto, _) = work.approximate("auto", "");
    assert_eq!(auto["device_matrices"], 0, "{auto}");
    let (cuda, _) = work.approximate("cuda", "");
    let error = cuda["error"].as_str().unwrap_or_default();
    assert!(error.contains("libcublas.so.12 was not found"), "{cuda}");
    assert_eq!(cuda["code"], 2);
    // Nothing but decompositions needs it.
    assert!(work.rebuild("cuda", "")["error"].is_null());
}

/// Codes of INT8 and bases of another dtype are rebuilt on the device as well.
#[tokio::test]
async fn int8_is_rebuilt_on_the_device() {
    let work = Work::new("sft").await;
    let delta = work.folder.path().join("delta");
    std::fs::remove_dir_all(&delta).unwrap();
    Compress::new(text(&example("base")), text(&example("sft")))
        .mode(Mode::parse("int8", Some(Granularity::Group)).unwrap())
        .output(text(&delta))
        .open_options(options(work.folder.path()))
        .run()
        .await
        .unwrap();
    let told = |device: &str, fails: &str| {
        let (told, log) = work.ask(json!({ "device": device }), fails);
        let out = work.folder.path().join("out");
        let made = hashes(&out);
        std::fs::remove_dir_all(out).unwrap();
        work.nothing_left(&log);
        (told["device_blocks"].as_u64().unwrap(), made)
    };
    let (none, wanted) = told("cpu", "");
    assert_eq!(none, 0);
    let (all, made) = told("cuda", "");
    assert!(all > 10 && made == wanted, "{all}");
    let (some, made) = told("auto", "launch:4");
    assert!(some < all && made == wanted, "{some}");
}
