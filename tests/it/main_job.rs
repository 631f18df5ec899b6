//! The main job on the example models: models in, delta out, the same bytes back.

use std::fs;

use crate::support::{
    assert_same, copy, example, files, names, root, run, run_fails, run_json, run_ok, stderr, text,
};

#[test]
fn the_same_bytes_come_back() {
    let work = tempfile::tempdir().unwrap();
    for finetune in ["sft", "lora-merged", "base"] {
        let (delta, again) = (
            text(&work.path().join(format!("{finetune}-delta"))),
            work.path().join(finetune),
        );
        let made = run_json(
            work.path(),
            &[
                "compress",
                &example("base"),
                &example(finetune),
                "-o",
                &delta,
            ],
        );
        assert_eq!(made["status"], "created");
        // The ratio that is told is that of the bytes on disk.
        let stored: usize = files(delta.as_ref()).values().map(Vec::len).sum();
        let original: usize = files(example(finetune).as_ref())
            .values()
            .map(Vec::len)
            .sum();
        assert_eq!(made["artifact_bytes"], stored);
        assert_eq!(made["original_bytes"], original);
        let ratio = original as f64 / stored as f64;
        assert!((made["ratio"].as_f64().unwrap() - ratio).abs() < 1e-3);
        let printed = run_ok(
            work.path(),
            &["reconstruct", &example("base"), &delta, "-o", &text(&again)],
        );
        assert_same(example(finetune).as_ref(), &again);
        for (name, bytes) in files(&again) {
            let line = format!("identical: sha256 {}  {name}", sha256(&bytes));
            assert!(printed.contains(&line), "{line}\n{printed}");
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn every_effort_comes_back() {
    let work = tempfile::tempdir().unwrap();
    let mut sizes = Vec::new();
    for effort in ["fast", "default", "max"] {
        let (delta, again) = (
            text(&work.path().join(format!("{effort}-delta"))),
            work.path().join(effort),
        );
        let arguments = [
            "compress",
            &example("base"),
            &example("sft"),
            "-o",
            &delta,
            "--effort",
            effort,
        ];
        let made = run_json(work.path(), &arguments);
        sizes.push(made["artifact_bytes"].as_u64().unwrap());
        run_ok(
            work.path(),
            &["reconstruct", &example("base"), &delta, "-o", &text(&again)],
        );
        assert_same(example("sft").as_ref(), &again);
    }
    assert!(sizes[1] <= sizes[0] && sizes[2] <= sizes[1], "{sizes:?}");
}

/// The same call again, another call to the same place, and the flags that change that.
#[test]
fn outputs_are_whole_and_kept() {
    let work = tempfile::tempdir().unwrap();
    let delta = work.path().join("delta");
    let compress = |finetune: &str, more: &[&str]| {
        let (base, finetune, output) = (example("base"), example(finetune), text(&delta));
        let mut arguments = vec!["compress", &base, &finetune, "-o", &output];
        arguments.extend_from_slice(more);
        run_json(work.path(), &arguments)
    };
    let first = compress("sft", &[]);
    let before = files(&delta);
    let again = compress("sft", &[]);
    assert_eq!(again["status"], "exists");
    assert_eq!(again["key"], first["key"]);
    assert!(files(&delta) == before);
    run_fails(
        work.path(),
        &[
            "compress",
            &example("base"),
            &example("lora-merged"),
            "-o",
            &text(&delta),
        ],
        2,
        &["exists already", "sft", "lora-merged", "overwritten"],
    );
    assert!(files(&delta) == before);
    assert_eq!(
        compress("lora-merged", &["--dry-run", "--overwrite"])["status"],
        "dry_run"
    );
    assert!(files(&delta) == before);
    assert_eq!(
        compress("lora-merged", &["--overwrite"])["status"],
        "created"
    );
    assert!(files(&delta) != before);
    // A damaged artifact of the same key is made again.
    let payload = delta.join("payload-00000.bin");
    let mut bytes = fs::read(&payload).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&payload, bytes).unwrap();
    assert_eq!(compress("lora-merged", &[])["status"], "created");
    assert_eq!(
        names(work.path())
            .iter()
            .filter(|name| name.contains("tmp"))
            .count(),
        0
    );
}

/// A folder with anything else in it is never replaced, nor is a model by its own delta.
#[test]
fn nothing_else_is_replaced() {
    let work = tempfile::tempdir().unwrap();
    let precious = work.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("thesis.tex"), "years of work").unwrap();
    let base = work.path().join("base");
    copy(example("base").as_ref(), &base);
    let delta = text(&work.path().join("delta"));
    run_ok(
        work.path(),
        &["compress", &text(&base), &example("sft"), "-o", &delta],
    );
    for output in [&precious, &base] {
        for arguments in [
            [
                "compress",
                &text(&base),
                &example("sft"),
                "-o",
                &text(output),
                "--overwrite",
            ],
            [
                "reconstruct",
                &text(&base),
                &delta,
                "-o",
                &text(output),
                "--overwrite",
            ],
        ] {
            run_fails(work.path(), &arguments, 2, &[&text(output)]);
        }
    }
    assert_eq!(names(&precious), ["thesis.tex"]);
    assert_same(example("base").as_ref(), &base);
}

#[test]
fn a_wrong_base_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    let made = run_json(
        work.path(),
        &["compress", &example("base"), &example("sft"), "-o", &delta],
    );
    assert_eq!(made["status"], "created");
    let info = run_json(work.path(), &["info", &delta]);
    let expected = info["manifest"]["base"]["fingerprint"].as_str().unwrap();
    let output = work.path().join("again");
    run_fails(
        work.path(),
        &[
            "reconstruct",
            &example("lora-merged"),
            &delta,
            "-o",
            &text(&output),
        ],
        4,
        &[expected, "lora-merged"],
    );
    // One bit is enough.
    let other = work.path().join("other");
    copy(example("base").as_ref(), &other);
    let weights = other.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 5000;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    run_fails(
        work.path(),
        &["reconstruct", &text(&other), &delta, "-o", &text(&output)],
        4,
        &[expected],
    );
    assert!(!output.exists());
}

#[test]
fn the_manifest_has_the_fields_others_know() {
    let work = tempfile::tempdir().unwrap();
    let delta = work.path().join("delta");
    run_ok(
        work.path(),
        &[
            "compress",
            &example("base"),
            &example("sft"),
            "-o",
            &text(&delta),
        ],
    );
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(delta.join("manifest.json")).unwrap()).unwrap();
    let fields: Vec<&String> = manifest.as_object().unwrap().keys().take(9).collect();
    assert_eq!(
        fields,
        [
            "version",
            "delta_type",
            "base_model_id",
            "finetune_model_id",
            "created_at",
            "num_layers",
            "total_params",
            "changed_params",
            "compression_ratio"
        ]
    );
    assert_eq!(manifest["version"], "1.0");
    assert_eq!(manifest["delta_type"], "model_delta");
    let tensors = run_json(
        work.path(),
        &["diff", &example("base"), &example("sft"), "--all"],
    );
    let tensors = tensors["tensors"].as_array().unwrap().clone();
    let sum = |field: &str| -> u64 { tensors.iter().map(|t| t[field].as_u64().unwrap()).sum() };
    assert_eq!(manifest["num_layers"], tensors.len());
    assert_eq!(manifest["total_params"], sum("params"));
    assert_eq!(manifest["changed_params"], sum("changed"));
    let mut kinds: Vec<String> = names(&delta);
    kinds.sort();
    assert_eq!(
        kinds,
        ["manifest.json", "payload-00000.bin", "tensors.parquet"]
    );
}

/// Without an output, the delta is kept in the delta store, and found again by its key.
#[test]
fn the_delta_store_keeps_what_has_no_output() {
    let work = tempfile::tempdir().unwrap();
    let made = run_json(
        work.path(),
        &["compress", &example("base"), &example("sft")],
    );
    let key = made["key"].as_str().unwrap();
    let path = made["path"].as_str().unwrap();
    assert!(
        path.starts_with(&text(&work.path().join("cache"))),
        "{path}"
    );
    assert!(path.contains(key), "{path}");
    let again = work.path().join("again");
    run_ok(
        work.path(),
        &["reconstruct", &example("base"), key, "-o", &text(&again)],
    );
    assert_same(example("sft").as_ref(), &again);
    assert_eq!(
        run_json(
            work.path(),
            &["compress", &example("base"), &example("sft")]
        )["status"],
        "exists"
    );
}

/// `SOURCE_DATE_EPOCH` and the same input: the same artifact, byte for byte, whatever the number of threads.
#[test]
fn artifacts_are_reproducible() {
    let work = tempfile::tempdir().unwrap();
    let make = |name: &str, threads: &str| {
        let output = crate::support::sparse(work.path())
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .args([
                "compress",
                "examples/models/base",
                "examples/models/sft",
                "--threads",
                threads,
                "-o",
            ])
            .arg(work.path().join(name))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    };
    make("one", "1");
    make("two", "2");
    assert_same(&work.path().join("one"), &work.path().join("two"));
}

#[test]
fn what_is_not_there_is_named() {
    let work = tempfile::tempdir().unwrap();
    let output = text(&work.path().join("out"));
    run_fails(
        work.path(),
        &["compress", "./no-base", &example("sft"), "-o", &output],
        6,
        &["no-base"],
    );
    run_fails(
        work.path(),
        &["compress", &example("base"), "./no-ft", "-o", &output],
        6,
        &["no-ft"],
    );
    run_fails(
        work.path(),
        &["reconstruct", &example("base"), "./no-delta", "-o", &output],
        6,
        &["no-delta"],
    );
    run_fails(
        work.path(),
        &["info", &example("base")],
        6,
        &["manifest.json"],
    );
    run_fails(
        work.path(),
        &[
            "compress",
            &example("base"),
            &text(&root().join("docs")),
            "-o",
            &output,
        ],
        6,
        &["docs"],
    );
    // An unreachable Hub id, offline.
    run_fails(
        work.path(),
        &["compress", "org/base", &example("sft"), "-o", &output],
        6,
        &["org/base"],
    );
    assert!(!work.path().join("out").exists());
    let failed = run(work.path(), &["verify", "./no-delta", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&stderr(&failed)).unwrap();
    assert_eq!(error["error"]["kind"], "not_found");
    assert_eq!(error["error"]["exit_code"], 6);
}
