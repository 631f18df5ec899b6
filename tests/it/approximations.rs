//! Low-rank approximations on the command line: made, told of, checked, rebuilt.

use crate::support::{
    Random, assert_clear, example, files, names, run, run_fails, run_json, run_ok, stderr, text,
};

#[test]
fn an_approximation_is_made_and_rebuilt() {
    let work = tempfile::tempdir().unwrap();
    let (base, sft) = (example("base"), example("sft"));
    let (svd, model) = (work.path().join("svd"), work.path().join("model"));
    let make = [
        "svd-compress",
        &base,
        &sft,
        "-o",
        &text(&svd),
        "--ranks",
        "4,16",
    ];
    let report = run_json(work.path(), &make);
    assert_eq!(report["status"], "created");
    let manifest = &report["manifest"];
    // The fields that other tools know.
    for (field, value) in [
        ("version", "1.0".into()),
        ("delta_type", "svd_delta".into()),
        ("base_model_id", base.as_str().into()),
        ("finetune_model_id", sft.as_str().into()),
        ("rank", serde_json::Value::from(16)),
    ] {
        assert_eq!(manifest[field], value, "{field}");
    }
    for field in [
        "created_at",
        "num_layers",
        "total_params",
        "original_size_bytes",
        "compressed_size_bytes",
        "compression_ratio",
        "avg_reconstruction_error",
        "max_reconstruction_error",
    ] {
        assert!(!manifest[field].is_null(), "{field}");
    }
    assert_eq!(
        names(&svd),
        [
            "adapter-r16",
            "adapter-r4",
            "manifest.json",
            "payload-00000.bin"
        ]
    );
    // Every byte is counted.
    let stored: u64 = files(&svd).values().map(|bytes| bytes.len() as u64).sum();
    let counted = manifest["compressed_size_bytes"].as_u64().unwrap()
        + report["adapter_bytes"].as_u64().unwrap();
    assert_eq!(stored, counted);
    assert_eq!(run_json(work.path(), &make)["status"], "exists");
    run_fails(
        work.path(),
        &[
            "svd-compress",
            &base,
            &sft,
            "-o",
            &text(&svd),
            "--rank",
            "8",
        ],
        2,
        &["holds the approximation", "rank 8"],
    );

    let shown = run_ok(work.path(), &["info", &text(&svd)]);
    assert!(
        shown.contains("svd_delta") && shown.contains("rank 4:"),
        "{shown}"
    );
    let said = run_ok(work.path(), &["verify", &text(&svd), "--base", &base]);
    assert!(
        said.contains("at rank 4") && said.contains("at rank 16"),
        "{said}"
    );

    let rebuild = ["svd-reconstruct", &base, &text(&svd), "-o", &text(&model)];
    let report = run_json(work.path(), &rebuild);
    assert_eq!(
        (&report["status"], &report["rank"]),
        (&"created".into(), &16.into())
    );
    assert_eq!(run_json(work.path(), &rebuild)["status"], "exists");
    let other = [&rebuild[..], &["--rank", "4"]].concat();
    run_fails(work.path(), &other, 2, &["rank 4", "overwritten"]);
    let other = [&other[..], &["--overwrite"]].concat();
    assert_eq!(run_json(work.path(), &other)["status"], "created");
    // Everything but approximated weights is the fine-tune's.
    let (mut a, mut b) = (files(&model), files(sft.as_ref()));
    assert_ne!(a.remove("model.safetensors"), b.remove("model.safetensors"));
    assert_eq!(a, b);
    run_fails(
        work.path(),
        &["svd-reconstruct", &example("lora-merged"), &text(&svd)],
        4,
        &["fingerprint"],
    );
    run_fails(
        work.path(),
        &["reconstruct", &base, &text(&svd)],
        2,
        &["svd-reconstruct"],
    );
}

#[test]
fn rules_and_profiles() {
    let work = tempfile::tempdir().unwrap();
    let (base, sft) = (example("base"), example("sft"));
    let out = text(&work.path().join("svd"));
    let make = |options: &[&str]| {
        let fixed = ["svd-compress", &base, &sft, "--dry-run"];
        run_json(work.path(), &[&fixed[..], options].concat())
    };
    assert_eq!(
        make(&["--rank", "auto"])["manifest"]["rule"],
        "auto, at most 256"
    );
    assert!(make(&["--bytes", "40e3"])["factor_bytes"].as_u64().unwrap() <= 40_000);
    let quality = &make(&["--energy", "0.5"])["manifest"]["quality"][0];
    assert!(
        quality["captured_energy"].as_f64().unwrap() > 0.49,
        "{quality}"
    );
    let plain = make(&["--rank", "4"]);
    let signs = make(&["--rank", "4", "--signs"]);
    let error = |report: &serde_json::Value| {
        report["manifest"]["quality"][0]["relative_error"]
            .as_f64()
            .unwrap()
    };
    assert!(error(&signs) < error(&plain));
    run_fails(
        work.path(),
        &[
            "svd-compress",
            &base,
            &sft,
            "--rank",
            "4",
            "--energy",
            "0.5",
        ],
        2,
        &["cannot be used with"],
    );
    run_fails(
        work.path(),
        &["svd-compress", &base, &sft, "--precision", "f8"],
        2,
        &["int4"],
    );
    let vllm = ["svd-compress", &base, &sft, "-o", &out, "--profile", "vllm"];
    let report = run_json(work.path(), &vllm);
    assert_eq!(report["manifest"]["adapters"][0]["profile"], "vllm");
    let config = work.path().join("svd/adapter/adapter_config.json");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    assert_eq!(config["r"], config["lora_alpha"]);
    assert_eq!(config["rank_pattern"], serde_json::json!({}));
    let none = [&vllm[..6], &["none", "--overwrite"]].concat();
    run_ok(work.path(), &none);
    assert_eq!(
        names(&work.path().join("svd")),
        ["manifest.json", "payload-00000.bin"]
    );
}

/// One byte changed anywhere: `verify` says so, and what is rebuilt is the same or nothing.
#[test]
fn damage_is_found_and_rebuilds_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let base = example("base");
    let svd = work.path().join("svd");
    let model = work.path().join("model");
    let make = [
        "svd-compress",
        &base,
        &example("sft"),
        "-o",
        &text(&svd),
        "--rank",
        "4",
    ];
    run_ok(work.path(), &make);
    let rebuild = ["svd-reconstruct", &base, &text(&svd), "-o", &text(&model)];
    run_ok(work.path(), &rebuild);
    let good = files(&model);
    let mut random = Random::new(5);
    for (file, bytes) in files(&svd) {
        for _ in 0..6 {
            let mut bad = bytes.clone();
            let at = random.below(bad.len());
            bad[at] ^= 1 << random.below(8);
            std::fs::write(svd.join(&file), &bad).unwrap();
            let checked = run(work.path(), &["verify", &text(&svd)]);
            let code = checked.status.code();
            assert!(
                matches!(code, Some(3 | 5)),
                "{file} {at}: {}",
                stderr(&checked)
            );
            std::fs::remove_dir_all(&model).unwrap();
            let output = run(work.path(), &rebuild);
            if output.status.success() {
                assert_eq!(files(&model), good, "{file} {at}");
            } else {
                assert!(!model.exists(), "{file} {at}");
                assert_clear(&stderr(&output));
                std::fs::create_dir(&model).unwrap();
            }
        }
        std::fs::write(svd.join(&file), &bytes).unwrap();
    }
    run_ok(work.path(), &["verify", &text(&svd), "--base", &base]);
}
