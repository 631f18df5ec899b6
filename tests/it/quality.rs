//! INT8 and behaviour: our numbers are those of torch and transformers, and what cannot be judged is said to be so.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sparse_inference::DEFAULT_PROMPTS;
use sparse_store::OpenOptions;

use crate::support::{
    assert_same, copy, example, python, root, run, run_fails, run_json, run_ok, stderr, text,
};

/// Runs the oracle, which must succeed, and returns the document it printed.
fn oracle(python: &str, arguments: &[&str]) -> Value {
    let output = Command::new(python)
        .arg(root().join("tests/oracles/quality.py"))
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn close(ours: &Value, theirs: &Value, relative: f64, absolute: f64, what: &str) {
    let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
    assert!(
        (ours - theirs).abs() <= relative * theirs.abs() + absolute,
        "{what}: ours {ours}, theirs {theirs}"
    );
}

#[test]
fn int8_numbers_and_weights_are_torchs() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    for granularity in ["tensor", "row", "group"] {
        let (delta, again) = (work.path().join("delta"), work.path().join("again"));
        let made = [
            "compress",
            &base,
            &tuned,
            "--mode",
            "int8",
            "--granularity",
            granularity,
            "-o",
            &text(&delta),
            "--overwrite",
        ];
        run_ok(work.path(), &made);
        let (delta, again) = (text(&delta), text(&again));
        run_ok(
            work.path(),
            &["reconstruct", &base, &delta, "-o", &again, "--overwrite"],
        );
        let theirs = oracle(&python, &["int8", &base, &tuned, granularity, &again]);
        let report = run_json(
            work.path(),
            &[
                "validate-int8",
                &base,
                &tuned,
                "--granularity",
                granularity,
                "--sample-layers",
                "all",
                "--layers-only",
            ],
        );
        assert_eq!(report["status"], "✅ Completed");
        assert_eq!(report["rust_acceleration"], true);
        let layers = report["layer_metrics"].as_array().unwrap();
        assert_eq!(layers.len(), theirs.as_object().unwrap().len());
        for layer in layers {
            let name = layer["name"].as_str().unwrap();
            for (field, theirs) in theirs[name].as_object().unwrap() {
                close(
                    &layer[field],
                    theirs,
                    1e-9,
                    1e-12,
                    &format!("{granularity} {name} {field}"),
                );
            }
        }
    }
}

/// The largest difference of our logits from transformers', which are in the file `theirs`.
async fn logits_differ(theirs: &Path, tokens: &Value, model: &str) -> f32 {
    let theirs: Vec<f32> = std::fs::read(theirs)
        .unwrap()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    let prompts = DEFAULT_PROMPTS.iter().map(ToString::to_string).collect();
    let ours = sparse_inference::logits(model, prompts, 128, &OpenOptions::default())
        .await
        .unwrap();
    let ids: Vec<&Vec<u32>> = ours.iter().map(|l| &l.tokens).collect();
    assert_eq!(serde_json::to_value(ids).unwrap(), *tokens, "{model}");
    let ours: Vec<f32> = ours.into_iter().flat_map(|l| l.values).collect();
    assert_eq!(ours.len(), theirs.len(), "{model}");
    ours.iter()
        .zip(&theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// `SPARSE_TEST_MODELS` may name a folder of more models.
#[tokio::test(flavor = "multi_thread")]
async fn logits_are_transformers() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let made = work.path().join("models");
    let out = text(&made);
    let names = oracle(&python, &["models", &out, &example("base")]);
    assert_eq!(names.as_array().unwrap().len(), 6);
    let mut folders = vec![root().join("examples/models"), made];
    folders.extend(std::env::var_os("SPARSE_TEST_MODELS").map(Into::into));
    let mut models: Vec<String> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists() && path.join("tokenizer.json").exists())
        .map(|path| text(&path))
        .collect();
    models.sort();
    let out = text(work.path());
    let mut arguments = vec!["logits", &out];
    arguments.extend(models.iter().map(String::as_str));
    arguments.push("--");
    arguments.extend(DEFAULT_PROMPTS);
    let tokens = oracle(&python, &arguments);
    let mut judged = BTreeMap::new();
    for (number, model) in models.iter().enumerate() {
        let theirs = work.path().join(number.to_string());
        let found = logits_differ(&theirs, &tokens[number], model).await;
        println!("{model}: {found:.2e}");
        judged.insert(model, found);
    }
    assert!(judged.len() >= 9, "{judged:?}");
    assert!(judged.values().all(|found| *found < 1e-4), "{judged:?}");
}

#[test]
fn behaviour_is_what_transformers_logits_say() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let (delta, again) = (
        text(&work.path().join("delta")),
        text(&work.path().join("again")),
    );
    run_ok(
        work.path(),
        &[
            "compress",
            &base,
            &tuned,
            "--mode",
            "int8",
            "--granularity",
            "tensor",
            "-o",
            &delta,
        ],
    );
    run_ok(work.path(), &["reconstruct", &base, &delta, "-o", &again]);
    let mut arguments = vec!["behaviour", &tuned, &again, "100"];
    arguments.extend(DEFAULT_PROMPTS);
    let of_int8 = oracle(&python, &arguments);
    arguments[2] = &base;
    let of_base = oracle(&python, &arguments);
    let limit = ["--max-length", "100"];
    let judge = |arguments: &[&str]| run_json(work.path(), &[arguments, &limit].concat());
    let on_the_fly = judge(&["validate-int8", &base, &tuned, "--granularity", "tensor"]);
    let of_artifact = judge(&["validate", &base, &tuned, "--delta", &delta]);
    let nothing = judge(&["validate", &base, &tuned]);
    // The same model, whether made of the fine-tune or of the artifact.
    assert_eq!(on_the_fly["behaviour"], of_artifact["behaviour"]);
    for (ours, theirs, tolerance) in [(&on_the_fly, &of_int8, 2e-3), (&nothing, &of_base, 1e-4)] {
        let ours = &ours["behaviour"];
        assert_eq!(ours["positions"], theirs["positions"]);
        for (group, fields) in theirs.as_object().unwrap() {
            let Some(fields) = fields.as_object() else {
                continue;
            };
            for (field, theirs) in fields {
                close(
                    &ours[group][field],
                    theirs,
                    tolerance,
                    2e-6,
                    &format!("{group} {field}"),
                );
            }
        }
    }
    assert!(
        nothing["behaviour"]["divergence"]["mean"].as_f64()
            > on_the_fly["behaviour"]["divergence"]["mean"].as_f64()
    );
}

#[test]
fn an_int8_delta_is_labelled_lossy_and_rebuilt_bit_for_bit() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let (delta, again) = (work.path().join("delta"), work.path().join("again"));
    let (delta_text, again_text) = (text(&delta), text(&again));
    let made = [
        "compress",
        base.as_str(),
        &tuned,
        "--mode",
        "int8",
        "-o",
        &delta_text,
    ];
    let report = run_json(work.path(), &made);
    assert_eq!(report["lossy"]["method"], "int8");
    assert_eq!(report["lossy"]["granularity"], "row");
    assert!(report["lossy"]["relative_error"].as_f64().unwrap() > 0.0);
    assert_eq!(run_json(work.path(), &made)["status"], "exists");
    // A lossless delta does not take its place, nor is it taken for one.
    run_fails(
        work.path(),
        &["compress", &base, &tuned, "-o", &delta_text],
        2,
        &["int8 by row", "effort default"],
    );
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(delta.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["delta_type"], "int8_delta");
    assert!(run_ok(work.path(), &["info", &delta_text]).contains("lossy"));
    let verified = run_ok(work.path(), &["verify", &delta_text, "--base", &base]);
    assert!(verified.contains("lossy: int8"), "{verified}");
    let said = run_ok(
        work.path(),
        &["reconstruct", &base, &delta_text, "-o", &again_text],
    );
    assert!(
        said.contains("approximate: sha256") && said.contains("lossy"),
        "{said}"
    );
    let weights = std::fs::read(again.join("model.safetensors")).unwrap();
    assert_ne!(
        weights,
        std::fs::read(Path::new(&tuned).join("model.safetensors")).unwrap()
    );
    // Everything but the weights is the fine-tune's.
    let (left, right) = (work.path().join("left"), work.path().join("right"));
    copy(&again, &left);
    copy(Path::new(&tuned), &right);
    std::fs::remove_file(left.join("model.safetensors")).unwrap();
    std::fs::remove_file(right.join("model.safetensors")).unwrap();
    assert_same(&left, &right);
    // On other threads the same bytes.
    let single = work.path().join("single");
    run_ok(
        work.path(),
        &[
            "reconstruct",
            &base,
            &delta_text,
            "-o",
            &text(&single),
            "--threads",
            "1",
        ],
    );
    assert_same(&again, &single);
}

#[test]
fn a_lossless_delta_behaves_as_the_fine_tune() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let delta = text(&work.path().join("delta"));
    run_ok(work.path(), &["compress", &base, &tuned, "-o", &delta]);
    let report = run_json(
        work.path(),
        &[
            "validate",
            &base,
            &tuned,
            "--delta",
            &delta,
            "--prompt",
            "The river rose in the night.",
        ],
    );
    assert_eq!(report["behaviour"]["divergence"]["max"], 0.0);
    assert_eq!(report["behaviour"]["same_top"]["value"], 1.0);
    assert_eq!(report["layer_metrics"].as_array().unwrap().len(), 0);
    assert_eq!(report["prompts"].as_array().unwrap().len(), 1);
    // A delta of another fine-tune is told from this one's.
    run_fails(
        work.path(),
        &["validate", &base, &tuned, "--delta", &delta, "--rank", "4"],
        2,
        &["no low-rank approximation"],
    );
}

#[test]
fn what_cannot_be_run_is_measured_and_said() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), work.path().join("tuned"));
    copy(Path::new(&example("sft")), &tuned);
    let model = text(&tuned);
    let judge = ["validate-int8", base.as_str(), &model];
    let config = tuned.join("config.json");
    let original = std::fs::read_to_string(&config).unwrap();

    // Another architecture: layers all the same, and why there is no more.
    std::fs::write(&config, original.replace("\"llama\"", "\"mamba\"")).unwrap();
    let report = run_json(work.path(), &judge);
    assert_eq!(report["layer_metrics"].as_array().unwrap().len(), 2);
    assert_eq!(report["behaviour"], Value::Null);
    assert!(report["notes"][0].as_str().unwrap().contains("mamba"));

    // Sizes that no model has, that do not fit, that are not numbers: errors before anything of that size is made.
    for (from, to, needles) in [
        (
            "\"hidden_size\": 128",
            "\"hidden_size\": 99999999999",
            &["config.json", "hidden_size"][..],
        ),
        (
            "\"vocab_size\": 1024",
            "\"vocab_size\": 60000000",
            &["embed_tokens", "60000000"],
        ),
        (
            "\"num_hidden_layers\": 4",
            "\"num_hidden_layers\": 4000",
            &["layers.4", "promises"],
        ),
        (
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 3",
            &["num_key_value_heads"],
        ),
        (
            "\"intermediate_size\": 352",
            "\"intermediate_size\": -1",
            &["intermediate_size"],
        ),
        (
            "\"rope_theta\": 10000.0",
            "\"rope_theta\": \"much\"",
            &["rope_theta"],
        ),
    ] {
        assert!(original.contains(from));
        std::fs::write(&config, original.replace(from, to)).unwrap();
        run_fails(work.path(), &judge, 5, needles);
    }
    std::fs::write(&config, "{").unwrap();
    run_fails(work.path(), &judge, 5, &["config.json", "JSON"]);
    std::fs::write(&config, &original).unwrap();

    // A tokenizer of another model, a damaged one, none.
    let tokenizer = tuned.join("tokenizer.json");
    let sound = std::fs::read_to_string(&tokenizer).unwrap();
    let mut other: Value = serde_json::from_str(&sound).unwrap();
    let vocabulary = other["model"]["vocab"].as_object_mut().unwrap();
    for (_, id) in vocabulary.iter_mut() {
        *id = Value::from(id.as_u64().unwrap() + 5000);
    }
    for added in other["added_tokens"].as_array_mut().unwrap() {
        added["id"] = Value::from(added["id"].as_u64().unwrap() + 5000);
    }
    std::fs::write(&tokenizer, other.to_string()).unwrap();
    run_fails(work.path(), &judge, 5, &["tokenizer.json", "another model"]);
    std::fs::write(&tokenizer, &sound[..sound.len() / 2]).unwrap();
    run_fails(
        work.path(),
        &judge,
        5,
        &["tokenizer.json", "cannot be read"],
    );
    std::fs::remove_file(&tokenizer).unwrap();
    // The base's serves as well.
    assert!(run_json(work.path(), &judge)["behaviour"].is_object());
    let bare = work.path().join("bare");
    copy(Path::new(&base), &bare);
    std::fs::remove_file(bare.join("tokenizer.json")).unwrap();
    let report = run_json(work.path(), &["validate-int8", &text(&bare), &model]);
    assert!(
        report["notes"][0]
            .as_str()
            .unwrap()
            .contains("tokenizer.json")
    );
    assert_eq!(report["layer_metrics"].as_array().unwrap().len(), 2);

    // Truncated weights.
    let weights = tuned.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1000]).unwrap();
    run_fails(work.path(), &judge, 5, &["model.safetensors"]);
}

#[test]
fn prompts_come_from_arguments_and_files() {
    let work = tempfile::tempdir().unwrap();
    let (base, tuned) = (example("base"), example("sft"));
    let file = work.path().join("prompts");
    std::fs::write(&file, "One line of text.\n\nAnother line of text.\n").unwrap();
    let path = text(&file);
    let judge = [
        "validate-int8",
        base.as_str(),
        &tuned,
        "--sample-layers",
        "0",
    ];
    fn with<'a>(judge: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
        [judge, more].concat()
    }
    let report = run_json(
        work.path(),
        &with(&judge, &["--prompt", "A first text.", "--prompts", &path]),
    );
    assert_eq!(report["prompts"].as_array().unwrap().len(), 3);
    assert_eq!(report["layer_metrics"].as_array().unwrap().len(), 0);
    let said = run_ok(work.path(), &with(&judge, &["--prompt", "A first text."]));
    assert!(
        said.contains("KL divergence, mean") && said.contains("same top token"),
        "{said}"
    );
    std::fs::write(&file, "\n").unwrap();
    run_fails(
        work.path(),
        &with(&judge, &["--prompts", &path]),
        2,
        &["no texts"],
    );
    run_fails(
        work.path(),
        &with(&judge, &["--prompts", "/nowhere"]),
        6,
        &["/nowhere"],
    );
    run_fails(
        work.path(),
        &with(&judge, &["--prompt", " "]),
        2,
        &["prompt 1 is empty"],
    );
    run_fails(
        work.path(),
        &with(&judge, &["--max-length", "1"]),
        2,
        &["max_length"],
    );
    let output = run(
        work.path(),
        &["validate-int8", &base, &tuned, "--granularity", "column"],
    );
    assert_eq!(output.status.code(), Some(2));
}
