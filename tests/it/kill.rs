//! Killed at any moment: the old state or the new, never between.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::datasets::words;
use crate::support::{Random, assert_same, example, names, run_json, run_ok, sparse, text};

/// Kills of each operation.
const KILLS: usize = 25;

/// Runs a command over and over with one of two inputs and kills it at random moments. After each, `is_whole` must say which
/// of the two is there.
fn kill_at_random(work: &Path, commands: &[Vec<String>; 2], is_whole: &dyn Fn() -> Option<usize>) {
    let spawn = |which: usize| {
        sparse(work)
            .args(&commands[which])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut longest = Duration::ZERO;
    for which in [1, 0] {
        let start = Instant::now();
        assert!(spawn(which).wait().unwrap().success());
        longest = longest.max(start.elapsed());
    }
    let mut random = Random::new(23);
    let mut there = 0;
    let mut cut_short = 0;
    for kill in 0..KILLS {
        let which = (there + 1) % 2;
        let mut child = spawn(which);
        let wait = longest.mul_f64(random.below(1100) as f64 / 1000.0);
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        let now =
            is_whole().unwrap_or_else(|| panic!("kill {kill} after {wait:?} left neither state"));
        cut_short += usize::from(now != which);
        there = now;
    }
    assert!(cut_short > 0, "every run was over before it was killed");
    // The next run removes what killed ones left.
    for which in [1, 0] {
        assert!(spawn(which).wait().unwrap().success());
    }
    let left: Vec<String> = names(work)
        .into_iter()
        .filter(|name| name.contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Which of the two deltas is there, whole.
fn whole_delta(work: &Path, delta: &str) -> Option<usize> {
    let info = run_ok(work, &["info", delta]);
    run_ok(work, &["verify", delta, "--base", &example("base")]);
    ["sft", "lora-merged"]
        .iter()
        .position(|name| info.contains(&example(name)))
}

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments
        .iter()
        .map(|argument| (*argument).to_owned())
        .collect()
}

#[test]
fn compress_is_all_or_nothing() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    let command = |finetune: &str| {
        strings(&[
            "compress",
            &example("base"),
            &example(finetune),
            "-o",
            &delta,
            "--overwrite",
        ])
    };
    let which = || whole_delta(work.path(), &delta);
    kill_at_random(
        work.path(),
        &[command("sft"), command("lora-merged")],
        &which,
    );
}

#[test]
fn svd_compress_is_all_or_nothing() {
    let work = tempfile::tempdir().unwrap();
    let svd = text(&work.path().join("svd"));
    let command = |rank: &str| {
        let (base, sft) = (example("base"), example("sft"));
        strings(&[
            "svd-compress",
            &base,
            &sft,
            "-o",
            &svd,
            "--rank",
            rank,
            "--overwrite",
        ])
    };
    let which = || {
        run_ok(work.path(), &["verify", &svd, "--base", &example("base")]);
        let info = run_ok(work.path(), &["info", &svd]);
        ["rank 4:", "rank 16:"]
            .iter()
            .position(|rank| info.contains(rank))
    };
    kill_at_random(work.path(), &[command("4"), command("16")], &which);
}

#[test]
fn a_merge_is_all_or_nothing() {
    let work = tempfile::tempdir().unwrap();
    let (packed, merged) = (work.path().join("packed"), work.path().join("merged"));
    let base = example("base");
    run_ok(
        work.path(),
        &[
            "compress-adapter",
            &base,
            &example("lora"),
            "-o",
            &text(&packed),
        ],
    );
    let command = |rule: &str| {
        strings(&[
            "reconstruct",
            &base,
            &text(&packed),
            "-o",
            &text(&merged),
            "--merge",
            rule,
            "--overwrite",
        ])
    };
    let weights = |rule: &str| {
        let mut arguments = command(rule);
        arguments[4] = text(&work.path().join(rule));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run_ok(work.path(), &arguments);
        std::fs::read(work.path().join(rule).join("model.safetensors")).unwrap()
    };
    let rules = [weights("default"), weights("safe")];
    let which = || {
        let found = std::fs::read(merged.join("model.safetensors")).ok()?;
        rules.iter().position(|weights| *weights == found)
    };
    kill_at_random(work.path(), &[command("default"), command("safe")], &which);
}

#[test]
fn dataset_compress_is_all_or_nothing() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    let (base, derivative) = (words("base"), words("derivative"));
    let command = |base: &str, derivative: &str| {
        strings(&[
            "dataset-compress",
            base,
            derivative,
            "-o",
            &delta,
            "--overwrite",
        ])
    };
    let which = || {
        let info = run_json(work.path(), &["info", &delta]);
        let made_of = info["manifest"]["base_dataset_id"].as_str()?.to_owned();
        run_ok(work.path(), &["verify", &delta, "--base", &made_of]);
        [&base, &derivative]
            .iter()
            .position(|path| **path == made_of)
    };
    kill_at_random(
        work.path(),
        &[command(&base, &derivative), command(&derivative, &base)],
        &which,
    );
}

#[test]
fn a_killed_statement_is_all_or_nothing() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    let command = |finetune: &str| {
        let (base, finetune) = (example("base"), example(finetune));
        let sql = format!(
            "SELECT count(*) FROM sparse_compress('{base}', '{finetune}', '{delta}', overwrite => true)"
        );
        strings(&["sql", "-c", &sql])
    };
    let which = || whole_delta(work.path(), &delta);
    kill_at_random(
        work.path(),
        &[command("sft"), command("lora-merged")],
        &which,
    );
}

#[test]
fn reconstruct_is_all_or_nothing() {
    let work = tempfile::tempdir().unwrap();
    let model = work.path().join("model");
    let command = |finetune: &str| {
        let delta = text(&work.path().join(format!("{finetune}-delta")));
        run_ok(
            work.path(),
            &[
                "compress",
                &example("base"),
                &example(finetune),
                "-o",
                &delta,
            ],
        );
        strings(&[
            "reconstruct",
            &example("base"),
            &delta,
            "-o",
            &text(&model),
            "--overwrite",
        ])
    };
    let which = || {
        let weights = std::fs::read(model.join("model.safetensors")).ok()?;
        let found = ["sft", "lora-merged"].iter().position(|name| {
            std::fs::read(format!("{}/model.safetensors", example(name))).unwrap() == weights
        })?;
        assert_same(example(["sft", "lora-merged"][found]).as_ref(), &model);
        Some(found)
    };
    kill_at_random(
        work.path(),
        &[command("sft"), command("lora-merged")],
        &which,
    );
}
