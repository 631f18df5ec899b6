//! Devices through the binary: without a GPU, and with the stand-in for one (`gpu/standin`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{example, sparse, stderr};

/// The binary, whose loader finds no driver, or the stand-in.
fn on(work: &Path, standin: bool, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = work.join(if standin { "driver" } else { "none" });
    std::fs::create_dir_all(&folder).unwrap();
    // A file that is no library hides a real driver, so that the test means the same on every machine.
    let library = folder.join("libcuda.so");
    if !library.exists() {
        if standin {
            let built = std::env::current_exe().unwrap();
            std::fs::copy(built.with_file_name("libsparse_gpu_standin.so"), &library).unwrap();
            // The same library by another name: it stands in for cuBLAS too.
            for name in ["libcublas.so.12", "libcublas.so"] {
                std::os::unix::fs::symlink("libcuda.so", folder.join(name)).unwrap();
            }
        } else {
            std::fs::write(&library, "").unwrap();
            for version in ["libcuda.so.1", "libcuda.so.12", "libnvcuda.so"] {
                std::fs::write(folder.join(version), "").unwrap();
            }
        }
    }
    let mut command: Command = sparse(work);
    command
        .args(arguments)
        .env("LD_LIBRARY_PATH", &folder)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn features_show_the_device() {
    let work = tempfile::tempdir().unwrap();
    let none = stdout(&on(work.path(), false, &["features", "--json"], &[]));
    let none: serde_json::Value = serde_json::from_str(&none).unwrap();
    assert!(
        none["gpu"]
            .as_str()
            .unwrap()
            .starts_with("none: libcuda.so was not found")
    );
    let there = stdout(&on(work.path(), true, &["features", "--json"], &[]));
    let there: serde_json::Value = serde_json::from_str(&there).unwrap();
    assert!(
        there["gpu"]
            .as_str()
            .unwrap()
            .starts_with("Sparse stand-in")
    );
    assert_eq!(there["gpu_driver"], "CUDA 12.5");
    assert!(there["gpu_kernels"].as_str().unwrap().contains("stats (9)"));
    let sql = "SELECT value FROM sparse_features() WHERE name = 'gpu_driver'";
    let there = stdout(&on(work.path(), true, &["sql", "-c", sql], &[]));
    assert!(there.contains("CUDA 12.5"), "{there}");
}

#[test]
fn a_gpu_that_must_be_there_and_is_not_is_an_error() {
    let work = tempfile::tempdir().unwrap();
    let set = "SET sparse.device = 'cuda'; SELECT 1";
    for arguments in [
        vec!["features", "--device", "cuda"],
        vec!["diff", "--device", "cuda", "a", "b"],
        vec!["sql", "-c", set],
    ] {
        let output = on(work.path(), false, &arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let text = stderr(&output);
        assert!(
            text.contains("no GPU can be used: libcuda.so was not found")
                && text.contains("device auto or cpu"),
            "{text}"
        );
    }
    assert!(
        on(work.path(), true, &["sql", "-c", set], &[])
            .status
            .success()
    );
}

/// Names and bytes of a folder's files.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    files
        .map(|file| {
            let name = file.file_name().into_string().unwrap();
            (name, std::fs::read(file.path()).unwrap())
        })
        .collect()
}

#[test]
fn a_model_is_rebuilt_to_the_same_bytes_everywhere() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let path = |name: &str| work.path().join(name).display().to_string();
    let (delta, out) = (path("delta"), path("out"));
    let compress = [
        "compress", &base, &tuned, "-o", &delta, "--json", "--device", "cuda",
    ];
    let made: serde_json::Value =
        serde_json::from_str(&stdout(&on(work.path(), true, &compress, &[]))).unwrap();
    assert!(made["device_blocks"].as_u64() > Some(10), "{made}");
    let wanted = files(Path::new(&tuned));
    let rebuild = |standin: bool, device: &str, variables: &[(&str, &str)]| {
        let arguments = [
            "reconstruct",
            &base,
            &delta,
            "-o",
            &out,
            "--json",
            "--device",
            device,
            "--threads",
            "2",
            "--log",
            "warn",
        ];
        let output = on(work.path(), standin, &arguments, variables);
        if output.status.success() {
            assert!(files(Path::new(&out)) == wanted);
            std::fs::remove_dir_all(&out).unwrap();
        }
        assert!(!Path::new(&out).exists());
        output
    };
    let blocks = |output: &Output| -> u64 {
        let told: serde_json::Value = serde_json::from_str(&stdout(output)).unwrap();
        told["device_blocks"].as_u64().unwrap()
    };
    assert_eq!(blocks(&rebuild(false, "auto", &[])), 0);
    assert_eq!(blocks(&rebuild(true, "cpu", &[])), 0);
    let all = blocks(&rebuild(true, "cuda", &[]));
    assert!(all > 10, "{all}");
    let failing = [("SPARSE_STANDIN_FAIL", "launch:7")];
    let auto = rebuild(true, "auto", &failing);
    assert!((1..all).contains(&blocks(&auto)));
    let text = stderr(&auto);
    assert!(text.contains("going on on the CPU"), "{text}");
    let cuda = rebuild(true, "cuda", &failing);
    assert_eq!(cuda.status.code(), Some(1));
    let text = stderr(&cuda);
    assert!(text.contains("the GPU failed"), "{text}");
    // And through SQL.
    let sql = format!(
        "SET sparse.device = 'cuda'; SELECT status FROM sparse_reconstruct('{base}', '{delta}', '{out}')"
    );
    let failed = on(work.path(), true, &["sql", "-c", &sql], &failing);
    assert!(
        stderr(&failed).contains("the GPU failed"),
        "{}",
        stderr(&failed)
    );
    assert!(!Path::new(&out).exists());
    stdout(&on(work.path(), true, &["sql", "-c", &sql], &[]));
    assert!(files(Path::new(&out)) == wanted);
}

#[test]
fn int8_is_judged_the_same_everywhere() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let judge = |standin: bool, device: &str, variables: &[(&str, &str)]| {
        let arguments = [
            "validate-int8",
            &base,
            &tuned,
            "--json",
            "--prompt",
            "The cat sat on the mat.",
            "--device",
            device,
            "--log",
            "warn",
        ];
        on(work.path(), standin, &arguments, variables)
    };
    let told = |output: &Output| {
        let mut told: serde_json::Value = serde_json::from_str(&stdout(output)).unwrap();
        told.as_object_mut().unwrap().remove("seconds");
        told
    };
    let wanted = told(&judge(true, "cpu", &[]));
    assert!(wanted["behaviour"].is_object(), "{wanted}");
    assert_eq!(told(&judge(true, "cuda", &[])), wanted);
    // That a GPU computes is seen by what happens when its launches fail.
    let failing = [("SPARSE_STANDIN_FAIL", "launch:20")];
    let auto = judge(true, "auto", &failing);
    assert_eq!(told(&auto), wanted);
    let text = stderr(&auto);
    assert!(text.contains("going on on the CPU"), "{text}");
    let cuda = judge(true, "cuda", &failing);
    assert_eq!(cuda.status.code(), Some(1));
    let text = stderr(&cuda);
    assert!(text.contains("the GPU failed"), "{text}");
}

#[test]
fn a_diff_is_the_same_everywhere() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let diff = |standin: bool, device: &str, variables: &[(&str, &str)]| {
        let arguments = [
            "diff",
            &base,
            &tuned,
            "--json",
            "--device",
            device,
            "--threads",
            "2",
            "--log",
            "warn",
        ];
        on(work.path(), standin, &arguments, variables)
    };
    let wanted = stdout(&diff(false, "cpu", &[]));
    assert_eq!(stdout(&diff(false, "auto", &[])), wanted);
    // That a GPU computes is seen by what happens when its launches fail.
    assert_eq!(stdout(&diff(true, "cuda", &[])), wanted);
    let failing = [("SPARSE_STANDIN_FAIL", "launch:2")];
    let auto = diff(true, "auto", &failing);
    assert_eq!(stdout(&auto), wanted);
    assert!(
        stderr(&auto).contains("going on on the CPU"),
        "{}",
        stderr(&auto)
    );
    let cuda = diff(true, "cuda", &failing);
    assert_eq!(cuda.status.code(), Some(1));
    let text = stderr(&cuda);
    assert!(
        text.contains("the GPU failed") && text.contains("device cpu"),
        "{text}"
    );
    // A device without memory is a device that fails.
    let small = [("SPARSE_STANDIN_MEMORY", "1000")];
    assert_eq!(stdout(&diff(true, "auto", &small)), wanted);
    let text = stderr(&diff(true, "cuda", &small));
    assert!(text.contains("the GPU's memory is full"), "{text}");
}

#[test]
fn a_gpu_approximates_as_well_as_the_cpu() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let captured = |device: &str| {
        let arguments = [
            "svd-compress",
            &base,
            &tuned,
            "--rank",
            "4",
            "--dry-run",
            "--json",
            "--device",
            device,
        ];
        let told = stdout(&on(work.path(), true, &arguments, &[]));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let energy = told["manifest"]["quality"][0]["captured_energy"].as_f64();
        (energy.unwrap(), told["device_matrices"].as_u64().unwrap())
    };
    let ((cpu, none), (cuda, matrices)) = (captured("cpu"), captured("cuda"));
    assert!(none == 0 && matrices > 10, "{none} {matrices}");
    assert!((cuda / cpu - 1.0).abs() < 1e-4, "{cuda} {cpu}");

    let sql = format!(
        "SET sparse.device = 'cuda'; SELECT max(captured_energy) > 0.1 AS near \
         FROM sparse_svd_compress('{base}', '{tuned}', rank => 4, dry_run => true)"
    );
    let told = |variables: &[(&str, &str)]| on(work.path(), true, &["sql", "-c", &sql], variables);
    assert!(stdout(&told(&[])).contains("true"));
    // It was the device that did it: what it says of a failure comes back.
    let failed = told(&[("SPARSE_STANDIN_FAIL", "blas:20")]);
    assert!(!failed.status.success());
    assert!(
        stderr(&failed).contains("the GPU failed"),
        "{}",
        stderr(&failed)
    );
}

#[test]
fn without_cublas_one_line_says_so() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let there = stdout(&on(work.path(), true, &["features", "--json"], &[]));
    assert!(there.contains("cuBLAS"), "{there}");
    for version in ["", ".12", ".11", ".10", ".9"] {
        // What is no library hides a real one.
        let library = work.path().join(format!("driver/libcublas.so{version}"));
        if library.is_symlink() {
            std::fs::remove_file(&library).unwrap();
        }
        std::fs::write(&library, "").unwrap();
    }
    let features = on(work.path(), true, &["features"], &[]);
    assert!(
        stdout(&features).contains("no libcublas.so.12"),
        "{}",
        stderr(&features)
    );
    let approximate = |device: &str| {
        let arguments = [
            "svd-compress",
            &base,
            &tuned,
            "--dry-run",
            "--log",
            "warn",
            "--device",
            device,
        ];
        on(work.path(), true, &arguments, &[])
    };
    let auto = approximate("auto");
    stdout(&auto);
    let log = stderr(&auto);
    let says = "decomposing on the CPU: libcublas.so.12 was not found";
    assert_eq!(log.matches(says).count(), 1, "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    let cuda = approximate("cuda");
    assert_eq!(cuda.status.code(), Some(2));
    let log = stderr(&cuda);
    assert!(
        log.contains("need cuBLAS: libcublas.so.12 was not found"),
        "{log}"
    );
}
