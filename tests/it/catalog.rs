//! Catalogs and the cache, on the command line.

use std::path::Path;

use crate::support::{
    assert_same, example, python, root, run, run_fails, run_json, run_ok, run_python, sparse, text,
};

#[test]
fn a_base_is_found_among_the_example_models() {
    let work = tempfile::tempdir().unwrap();
    let catalog = text(&root().join("examples/models"));
    let list = run_json(work.path(), &["catalog", "list", &catalog]);
    let sft = list
        .as_array()
        .unwrap()
        .iter()
        .find(|model| model["model"] == example("sft").as_str());
    assert_eq!(sft.unwrap()["base"], "base");
    assert_eq!(sft.unwrap()["params"], 869_504);
    assert!(run_ok(work.path(), &["catalog", "list", &catalog]).contains("4 models"));
    let found = run_json(
        work.path(),
        &[
            "catalog",
            "find-base",
            &example("lora-merged"),
            &catalog,
            "--candidates",
        ],
    );
    assert_eq!(found["base"], example("base").as_str());
    assert_eq!(found["candidates"].as_array().unwrap().len(), 3);
    assert!(found["bytes_read"].as_u64().unwrap() < 1 << 20);
    // Weights alone: copies that say nothing.
    let bare = work.path().join("bare");
    for (name, from) in [("a", "base"), ("b", "sft"), ("c", "lora-merged")] {
        std::fs::create_dir_all(bare.join(name)).unwrap();
        std::fs::copy(
            Path::new(&example(from)).join("model.safetensors"),
            bare.join(name).join("model.safetensors"),
        )
        .unwrap();
    }
    for model in ["b", "c"] {
        let found = run_json(
            work.path(),
            &[
                "catalog",
                "find-base",
                &text(&bare.join(model)),
                &text(&bare),
            ],
        );
        assert_eq!(
            (&found["base"], &found["outcome"]),
            (&text(&bare.join("a")).into(), &"found".into()),
            "{found}"
        );
    }
    // A table is a catalog, on the command line and in SQL.
    let table = text(&work.path().join("known.csv"));
    let rows = ["base", "sft"].map(|name| format!("{},note\n", example(name)));
    std::fs::write(&table, format!("model,note\n{}", rows.concat())).unwrap();
    let listed = run_json(work.path(), &["catalog", "list", &table]);
    assert_eq!(
        (&listed[0]["source"], &listed[1]["base"]),
        (&"table".into(), &"base".into()),
        "{listed}"
    );
    let sql = format!(
        "SELECT base FROM sparse_find_base('{}', '{table}')",
        example("lora-merged")
    );
    assert!(run_ok(work.path(), &["sql", "-c", &sql]).contains(&example("base")));
    let none = work.path().join("none");
    std::fs::create_dir(&none).unwrap();
    let output = run(
        work.path(),
        &["catalog", "find-base", &example("sft"), &text(&none)],
    );
    assert_eq!(output.status.code(), Some(3));
    run_fails(
        work.path(),
        &["catalog", "list", "./missing"],
        6,
        &["missing", "does not exist"],
    );
    run_fails(
        work.path(),
        &["catalog", "find-base", "./missing", &catalog],
        6,
        &["missing"],
    );
}

#[test]
fn the_cache_gives_paths_that_transformers_loads() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    run_ok(
        work.path(),
        &["compress", &example("base"), &example("sft"), "-o", &delta],
    );
    let path = run_ok(
        work.path(),
        &["cache", "get-or-reconstruct", &example("base"), &delta],
    );
    let path = Path::new(path.trim());
    assert!(path.starts_with(work.path().join("cache/reconstructed")));
    assert_same(example("sft").as_ref(), path);
    let again = run_json(
        work.path(),
        &["cache", "get-or-reconstruct", &example("base"), &delta],
    );
    assert_eq!(
        (&again["found"], &again["path"]),
        (&"hit".into(), &text(path).into())
    );
    let resolved = run_json(
        work.path(),
        &["cache", "resolve", &delta, "--delta-mode", "prefer_delta"],
    );
    assert_eq!(
        (&resolved["from"], &resolved["path"]),
        (&"delta".into(), &text(path).into())
    );
    run_fails(
        work.path(),
        &["cache", "resolve", &delta, "--delta-mode", "full_only"],
        2,
        &["is a delta"],
    );
    // A command that runs with the model, and its exit code.
    let script = "test -f \"$SPARSE_MODEL/model.safetensors\" && exit 7";
    let output = run(
        work.path(),
        &[
            "cache",
            "get-or-reconstruct",
            &example("base"),
            &delta,
            "--",
            "sh",
            "-c",
            script,
        ],
    );
    assert_eq!(output.status.code(), Some(7));
    let stats = run_json(work.path(), &["cache", "stats"]);
    assert_eq!(
        (
            &stats["cache_hits"],
            &stats["cache_misses"],
            &stats["entries"]
        ),
        (&3.into(), &1.into(), &1.into()),
        "{stats}"
    );
    assert!(run_ok(work.path(), &["cache", "pin", &delta]).starts_with("pinned"));
    assert_eq!(
        run_json(work.path(), &["cache", "gc", "--to-gb", "0"])["evicted"],
        serde_json::json!([])
    );
    run_ok(work.path(), &["cache", "unpin", &delta]);
    // Damage that only a full check sees.
    let weights = path.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let output = run(work.path(), &["cache", "verify"]);
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    run_ok(
        work.path(),
        &["cache", "prefetch", &example("base"), &delta],
    );
    assert_same(example("sft").as_ref(), path);
    assert_eq!(run_json(work.path(), &["cache", "verify"])["ok"], true);
    let Some(python) = python() else { return };
    let program = "
import sys, torch
from transformers import AutoModelForCausalLM
a, b = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in sys.argv[1:])
assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
print('loaded')
";
    assert_eq!(
        run_python(&python, program, &[&text(path), &example("sft")]).trim(),
        "loaded"
    );
}

#[test]
fn jobs_run_in_a_process_of_their_own_and_are_cancelled() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    run_ok(
        work.path(),
        &["compress", &example("base"), &example("sft"), "-o", &delta],
    );
    let jobs = run_json(
        work.path(),
        &[
            "cache",
            "prefetch",
            &example("base"),
            &delta,
            "--background",
        ],
    );
    let id = jobs[0]["id"].as_str().unwrap().to_owned();
    let mut state = String::new();
    for _ in 0..600 {
        state = run_json(work.path(), &["cache", "jobs", &id])[0]["state"]
            .as_str()
            .unwrap()
            .to_owned();
        if state == "done" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(state, "done");
    let output = run(
        work.path(),
        &["cache", "prefetch", &example("base"), "./missing"],
    );
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("failed"));
    run_fails(
        work.path(),
        &["cache", "jobs", "0123"],
        6,
        &["0123", "sparse cache jobs"],
    );
    run_fails(
        work.path(),
        &[
            "cache",
            "--max-size-gb",
            "0.000001",
            "get-or-reconstruct",
            &example("base"),
            &delta,
            "--cache-dir",
            &text(&work.path().join("other")),
        ],
        1,
        &["raise the limit"],
    );
    let mut command = sparse(work.path());
    let output = command
        .env("SPARSE_CACHE_SIZE_GB", "-1")
        .args(["cache", "stats"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_benchmark_measures() {
    let work = tempfile::tempdir().unwrap();
    let report = run_json(
        work.path(),
        &["bench", "--tensor-size", "100000", "--iterations", "1"],
    );
    let estimate = report["estimated_times"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["model"] == "7B_model")
        .unwrap();
    assert!(
        estimate["seconds"].as_f64().unwrap() > 0.0 && estimate["bound_by"].is_string(),
        "{report}"
    );
    assert!(report["ratio"].as_f64().unwrap() > 1.5, "{report}");
    // Nothing stays.
    let left: Vec<_> = std::fs::read_dir(work.path().join("cache"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().contains("bench")),
        "{left:?}"
    );
}
