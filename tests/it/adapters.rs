//! Adapters: found again in merged models, written so that PEFT merges them to the same weights, used as predictions.

use std::path::Path;

use crate::support::{
    Random, assert_clear, assert_same, copy, example, files, names, python, root, run, run_fails,
    run_json, run_ok, run_python, stderr, text,
};

/// PEFT loads the adapter onto the base without a word about keys, merges it, and as many weights are exact as we said.
const MERGE: &str = r#"
import json, sys, torch, transformers, warnings
from peft import PeftModel
from safetensors.torch import load_file
transformers.utils.logging.set_verbosity_error()
warnings.filterwarnings("error", message=".*(missing|unexpected).*")
base, merged, adapter = sys.argv[1:4]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
state, original = model.state_dict(), load_file(merged + "/model.safetensors")
print(sum((state[n] == t).sum().item() for n, t in original.items()), sum(t.numel() for t in original.values()))
"#;

#[test]
fn a_merged_adapter_comes_back_and_peft_merges_it() {
    let work = tempfile::tempdir().unwrap();
    let (base, merged) = (example("base"), example("lora-merged"));
    let adapter = text(&work.path().join("adapter"));
    let arguments = ["unmerge", &base, &merged, "-o", &adapter];
    let report = run_json(work.path(), &arguments);
    assert_eq!(report["status"], "created");
    let (exact, params) = (
        report["exact"].as_u64().unwrap(),
        report["params"].as_u64().unwrap(),
    );
    assert!(exact * 100 > params * 99, "{exact} of {params}");
    let before = files(work.path());
    assert_eq!(run_json(work.path(), &arguments)["status"], "exists");
    assert_eq!(files(work.path()), before);
    if let Some(python) = python() {
        let said = run_python(&python, MERGE, &[&base, &merged, &adapter]);
        assert_eq!(said.trim(), format!("{exact} {params}"));
    }

    // Given as a prediction, it costs little more than itself, and the merged model comes back.
    let (delta, again) = (text(&work.path().join("delta")), work.path().join("again"));
    let report = run_json(
        work.path(),
        &[
            "compress",
            &base,
            &merged,
            "--adapter",
            &adapter,
            "-o",
            &delta,
        ],
    );
    let by_adapter = report["tensors"].as_array().unwrap().iter();
    let by_adapter = by_adapter.filter(|t| t["predictor"] == "adapter").count();
    assert!(by_adapter >= 20, "{by_adapter}");
    run_ok(
        work.path(),
        &["reconstruct", &base, &delta, "-o", &text(&again)],
    );
    assert_same(merged.as_ref(), &again);
}

#[test]
fn a_merged_adapter_is_found_without_being_given() {
    let work = tempfile::tempdir().unwrap();
    let (base, merged) = (example("base"), example("lora-merged"));
    let (delta, again) = (text(&work.path().join("delta")), work.path().join("again"));
    let report = run_json(work.path(), &["compress", &base, &merged, "-o", &delta]);
    let tensors = report["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|t| t["predictor"] == "low_rank"));
    assert!(
        report["ratio"].as_f64().unwrap() > 6.0,
        "{}",
        report["ratio"]
    );
    run_ok(
        work.path(),
        &["reconstruct", &base, &delta, "-o", &text(&again)],
    );
    assert_same(merged.as_ref(), &again);
    run_ok(work.path(), &["verify", &delta, "--base", &base]);
}

#[test]
fn what_is_no_adapter_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let (base, sft) = (example("base"), example("sft"));
    let out = text(&work.path().join("out"));
    run_fails(
        work.path(),
        &["unmerge", &base, &sft, "-o", &out],
        2,
        &["no adapter was merged", "sparse compress"],
    );
    run_fails(
        work.path(),
        &["compress", &base, &sft, "--adapter", &base, "-o", &out],
        2,
        &["adapter_config.json", "PEFT"],
    );
    run_fails(
        work.path(),
        &["unmerge", &base, &example("lora-merged"), "-o", &base],
        2,
        &["base"],
    );
    // Factors of another model, or fewer than the configuration says.
    let adapter = work.path().join("adapter");
    run_ok(
        work.path(),
        &[
            "unmerge",
            &base,
            &example("lora-merged"),
            "-o",
            &text(&adapter),
        ],
    );
    let config = adapter.join("adapter_config.json");
    let good = std::fs::read_to_string(&config).unwrap();
    for (bad, needle) in [
        (good.replace("\"r\": ", "\"r\": 1"), "rank"),
        (good.replace("LORA", "IA3"), "IA3"),
        (good.replace('{', "["), "cannot be read"),
    ] {
        std::fs::write(&config, bad).unwrap();
        let adapter = text(&adapter);
        run_fails(
            work.path(),
            &["compress", &base, &sft, "--adapter", &adapter, "-o", &out],
            2,
            &[needle],
        );
    }
    std::fs::write(&config, good).unwrap();
    std::fs::write(adapter.join("notes.txt"), "mine").unwrap();
    run_fails(
        work.path(),
        &[
            "unmerge",
            &base,
            &example("lora-merged"),
            "-o",
            &text(&adapter),
            "--overwrite",
        ],
        2,
        &["something other than an adapter"],
    );
    assert!(!work.path().join("out").exists());
}

/// The weights of a model, beside its other files.
const WEIGHTS: &str = "model.safetensors";

/// The bytes of all tensors in a safetensors file, without the header.
fn tensors(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes[8 + usize::try_from(header).unwrap()..].to_vec()
}

#[test]
fn a_packed_adapter_comes_back_or_is_merged() {
    let work = tempfile::tempdir().unwrap();
    let (base, lora) = (example("base"), example("lora"));
    let packed = text(&work.path().join("packed"));
    let pack = ["compress-adapter", &base, &lora, "-o", &packed];
    let report = run_json(work.path(), &pack);
    assert_eq!(report["status"], "created");
    assert!(report["ratio"].as_f64().unwrap() > 1.0);
    assert_eq!(run_json(work.path(), &pack)["status"], "exists");
    let info = run_json(work.path(), &["info", &packed]);
    assert_eq!(info["manifest"]["delta_type"], "adapter");
    assert_eq!(info["manifest"]["version"], "1.0");
    run_ok(work.path(), &["verify", &packed, "--base", &base]);

    let again = work.path().join("again");
    run_ok(
        work.path(),
        &["reconstruct", &base, &packed, "-o", &text(&again)],
    );
    assert_same(lora.as_ref(), &again);

    // Merged, it is what PEFT made of it, tensor for tensor; the other files are the base's.
    let merged = work.path().join("merged");
    let merge = [
        "reconstruct",
        &base,
        &packed,
        "-o",
        &text(&merged),
        "--merge",
    ];
    assert_eq!(run_json(work.path(), &merge)["status"], "created");
    let expected = Path::new(&example("lora-merged")).join(WEIGHTS);
    assert!(tensors(&merged.join(WEIGHTS)) == tensors(&expected));
    let (mut found, mut wanted) = (files(&merged), files(base.as_ref()));
    found.remove(WEIGHTS);
    wanted.remove(WEIGHTS);
    let tokenizer = files(lora.as_ref()).into_iter();
    wanted.extend(tokenizer.filter(|(name, _)| name.starts_with("tokenizer")));
    assert_eq!(found, wanted);
    assert_eq!(run_json(work.path(), &merge)["status"], "exists");
    let safe = [&merge[..], &["safe"]].concat();
    run_fails(work.path(), &safe, 2, &["it differs from the merge of"]);
    let safe = [&safe[..], &["--overwrite"]].concat();
    assert_eq!(run_json(work.path(), &safe)["status"], "created");
    assert!(tensors(&merged.join(WEIGHTS)) != tensors(&expected));
    let dry = run_json(
        work.path(),
        &[
            "reconstruct",
            &base,
            &packed,
            "--merge",
            "default",
            "--dry-run",
        ],
    );
    assert_eq!(dry["status"], "dry_run");
    // Nothing is left of the adapter that was rebuilt on the way.
    let scratch = work.path().join("cache/adapters");
    assert!(
        !scratch.exists() || names(&scratch).is_empty(),
        "{:?}",
        names(&scratch)
    );
    run_fails(
        work.path(),
        &["reconstruct", &example("sft"), &packed, "--merge"],
        4,
        &["fingerprint"],
    );
}

/// PEFT's own merges of many kinds of adapters, and ours, bit for bit.
#[test]
fn merges_are_those_of_peft() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let script = std::fs::read_to_string(root().join("tests/oracles/merge_adapters.py")).unwrap();
    let cases = work.path().join("cases");
    let made = run_python(&python, &script, &["make", &text(&cases)]);
    let mut refused = Vec::new();
    let mut merged = Vec::new();
    for case in made.lines() {
        let folder = cases.join(case);
        let (base, adapter) = (text(&folder.join("base")), text(&folder.join("adapter")));
        let packed = text(&folder.join("packed"));
        run_ok(
            work.path(),
            &["compress-adapter", &base, &adapter, "-o", &packed],
        );
        let again = folder.join("again");
        run_ok(
            work.path(),
            &["reconstruct", &base, &packed, "-o", &text(&again)],
        );
        assert_same(adapter.as_ref(), &again);
        for rule in ["default", "safe"] {
            let out = folder.join(format!("merged-{rule}"));
            let merge = [
                "reconstruct",
                &base,
                &packed,
                "-o",
                &text(&out),
                "--merge",
                rule,
            ];
            let output = run(work.path(), &merge);
            if !output.status.success() {
                let message = stderr(&output);
                assert_clear(&message);
                assert!(message.contains("merge it with PEFT"), "{case}: {message}");
                assert!(!out.exists());
                refused.push(case);
                continue;
            }
            let expected = folder.join(format!("{rule}.safetensors"));
            merged.extend([text(&expected), text(&out.join(WEIGHTS))]);
        }
    }
    refused.dedup();
    // What is no low-rank update, and ranks whose sums are taken in an order that nothing promises.
    assert_eq!(refused, ["dora", "rank-256"]);
    assert!(merged.len() >= 2 * 36, "{merged:?}");
    let mut arguments = vec!["compare"];
    arguments.extend(merged.iter().map(String::as_str));
    run_python(&python, &script, &arguments);
}

#[test]
fn adapters_of_other_models_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let base = example("base");
    let out = text(&work.path().join("out"));
    let adapter = work.path().join("adapter");
    let config = adapter.join("adapter_config.json");
    let weights = adapter.join("adapter_model.safetensors");
    copy(example("lora").as_ref(), &adapter);
    let (good_config, good_weights) = (
        std::fs::read_to_string(&config).unwrap(),
        std::fs::read(&weights).unwrap(),
    );
    let adapter = text(&adapter);
    let pack = ["compress-adapter", &base, &adapter, "-o", &out];
    let renamed = |from: &str, to: &str| {
        let at = good_weights
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        let mut bytes = good_weights.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, needle) in [
        // A module that the base does not have, a factor without the other, a key of another kind.
        (
            renamed(
                "layers.0.mlp.down_proj.lora_A",
                "layers.0.mlp.gown_proj.lora_A",
            ),
            "counterpart",
        ),
        (
            renamed("base_model.model.", "case_model.model."),
            "does not begin with",
        ),
        (
            good_weights[..good_weights.len() - 4].to_vec(),
            "adapter_model",
        ),
    ] {
        std::fs::write(&weights, bytes).unwrap();
        let output = run(work.path(), &pack);
        assert!(!output.status.success(), "{needle}");
        assert!(
            stderr(&output).contains(needle),
            "{needle}: {}",
            stderr(&output)
        );
        assert_clear(&stderr(&output));
    }
    std::fs::write(&weights, &good_weights).unwrap();
    for (bad, needle) in [
        (
            good_config.replace("\"r\": ", "\"r\": 1"),
            "adapter_config.json says",
        ),
        (good_config.replace("LORA", "LOHA"), "LOHA"),
        ("{".to_owned(), "cannot be read"),
    ] {
        std::fs::write(&config, bad).unwrap();
        run_fails(work.path(), &pack, 2, &[needle]);
    }
    // A base whose weights have other shapes.
    std::fs::write(&config, &good_config).unwrap();
    let other = work.path().join("other");
    copy(base.as_ref(), &other);
    let model = std::fs::read(other.join(WEIGHTS)).unwrap();
    let length = usize::try_from(u64::from_le_bytes(model[..8].try_into().unwrap())).unwrap();
    let mut header: serde_json::Value = serde_json::from_slice(&model[8..8 + length]).unwrap();
    for (name, entry) in header.as_object_mut().unwrap() {
        if name.contains("down_proj") {
            let shape = entry["shape"].as_array().unwrap();
            let [rows, cols] = [0, 1].map(|at| shape[at].as_u64().unwrap());
            entry["shape"] = serde_json::json!([rows * 2, cols / 2]);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(&header);
    changed.extend(&model[8 + length..]);
    std::fs::write(other.join(WEIGHTS), changed).unwrap();
    run_fails(
        work.path(),
        &["compress-adapter", &text(&other), &adapter, "-o", &out],
        2,
        &["down_proj", "adapter of another model"],
    );
    assert!(!work.path().join("out").exists());
}

/// An adapter's artifact with one byte changed: the merge is refused, or is the same.
#[test]
fn damaged_adapters_merge_to_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let (base, packed) = (example("base"), work.path().join("packed"));
    let name = text(&packed);
    run_ok(
        work.path(),
        &["compress-adapter", &base, &example("lora"), "-o", &name],
    );
    let merged = work.path().join("merged");
    let merge = ["reconstruct", &base, &name, "-o", &text(&merged), "--merge"];
    run_ok(work.path(), &merge);
    let good = files(&merged);
    let mut random = Random::new(11);
    for (file, bytes) in files(&packed) {
        for _ in 0..8 {
            let mut bad = bytes.clone();
            let at = random.below(bad.len());
            bad[at] ^= 1 << random.below(8);
            std::fs::write(packed.join(&file), &bad).unwrap();
            std::fs::remove_dir_all(&merged).unwrap();
            let output = run(work.path(), &merge);
            if output.status.success() {
                assert_eq!(files(&merged), good, "{file} {at}");
            } else {
                assert!(!merged.exists(), "{file} {at}");
                assert_clear(&stderr(&output));
                std::fs::create_dir(&merged).unwrap();
            }
        }
        std::fs::write(packed.join(&file), &bytes).unwrap();
    }
    assert_eq!(names(work.path()), ["cache", "merged", "packed"]);
}
