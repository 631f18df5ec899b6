//! A disk that fills up, in a mount namespace of its own.

use std::process::Command;

use crate::datasets::words;
use crate::support::{example, root, run_ok, stderr, text};

#[test]
fn a_full_disk_leaves_nothing() {
    let may_mount = Command::new("unshare")
        .args(["--mount", "--map-root-user", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !may_mount {
        eprintln!("skipped: this machine lets nobody mount in a namespace");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let small = work.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let delta = text(&work.path().join("delta"));
    run_ok(
        work.path(),
        &["compress", &example("base"), &example("sft"), "-o", &delta],
    );
    let words_delta = text(&work.path().join("words-delta"));
    let (base, derivative) = (words("base"), words("derivative"));
    run_ok(
        work.path(),
        &["dataset-compress", &base, &derivative, "-o", &words_delta],
    );
    // The delta is some 500 kB, the model 1.8 MB, the dataset 600 kB and its delta 60 kB.
    for (size, arguments) in [
        (
            "256k",
            [
                "dataset-reconstruct",
                &words_delta,
                "--overwrite",
                "-o",
                &text(&small.join("words")),
            ],
        ),
        (
            "24k",
            [
                "dataset-compress",
                &base,
                &derivative,
                "-o",
                &text(&small.join("words-delta")),
            ],
        ),
        (
            "256k",
            [
                "compress",
                &example("base"),
                &example("sft"),
                "-o",
                &text(&small.join("delta")),
            ],
        ),
        (
            "256k",
            [
                "reconstruct",
                &example("base"),
                &delta,
                "-o",
                &text(&small.join("model")),
            ],
        ),
    ] {
        let script = format!(
            "mount -t tmpfs -o size={size} none {0} && echo before > {0}/kept && \"$0\" \"$@\"; code=$?; ls -A {0}; cat {0}/kept; exit $code",
            text(&small)
        );
        let output = Command::new("unshare")
            .args([
                "--mount",
                "--map-root-user",
                "sh",
                "-c",
                &script,
                env!("CARGO_BIN_EXE_sparse"),
            ])
            .args(arguments)
            .env("SPARSE_CACHE", work.path().join("cache"))
            .current_dir(root())
            .output()
            .unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.contains("error: ") && message.contains("space"),
            "{message}"
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout), "kept\nbefore\n");
    }
}
