//! Adapters: found again in merged models, written so that PEFT merges them to the same weights, used as predictions.

use crate::support::{
    assert_same, example, files, python, run_fails, run_json, run_ok, run_python, text,
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
