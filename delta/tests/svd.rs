//! Low-rank approximations through the public surface, on the example models.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use safetensors::SafeTensors;
use sparse_delta::{
    CancelToken, DeltaError, Kept, Precision, Profile, Status, SvdCompress, SvdDeltaManifest,
    SvdOutcome, SvdRank, SvdReconstruct, SvdReconstructOutcome, SvdTensor,
};

fn example(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
    root.join(name).to_str().unwrap().to_owned()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

struct Work {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Work {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: tokio::runtime::Builder::new_multi_thread().build().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> sparse_store::OpenOptions {
        sparse_store::OpenOptions {
            cache_dir: Some(self.path("cache")),
            ..sparse_store::OpenOptions::empty()
        }
    }

    fn compress(&self, wanted: SvdCompress) -> Result<SvdOutcome, DeltaError> {
        let wanted = wanted.open_options(self.options());
        self.runtime
            .block_on(async { wanted.stage().await?.commit().await })
    }

    fn rebuild(&self, wanted: SvdReconstruct) -> Result<SvdReconstructOutcome, DeltaError> {
        self.runtime
            .block_on(wanted.open_options(self.options()).run())
    }
}

fn sft(work: &Work, name: &str) -> SvdCompress {
    SvdCompress::new(example("base"), example("sft")).output(text(&work.path(name)))
}

fn values(path: &Path) -> Vec<(String, Vec<f64>)> {
    let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, Vec<f64>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let dtype = sparse_codec::DType::parse(&view.dtype().to_string()).unwrap();
            let mut out = Vec::new();
            sparse_codec::to_f64(dtype, view.data(), &mut out).unwrap();
            (name, out)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// What the manifest says is what the rebuilt model is.
#[test]
fn errors_are_those_of_the_rebuilt_model() {
    let work = Work::new();
    let outcome = work
        .compress(
            sft(&work, "a")
                .rank(SvdRank::Fixed(vec![8]))
                .precision(Precision::F32),
        )
        .unwrap();
    assert_eq!(outcome.status, Status::Created);
    let manifest = &outcome.manifest;
    let rebuilt = work.path("model");
    work.rebuild(
        SvdReconstruct::new(example("base"), text(&work.path("a"))).output(text(&rebuilt)),
    )
    .unwrap();
    let (base, tuned, again) = (
        values(example("base").as_ref()),
        values(example("sft").as_ref()),
        values(&rebuilt),
    );
    let (mut left, mut energy, mut noise) = (0.0, 0.0, 0.0);
    for (((name, base), (_, tuned)), (_, again)) in base.iter().zip(&tuned).zip(&again) {
        let tensor = manifest.tensors.iter().find(|t| t.tensor == *name).unwrap();
        if tensor.kept != Kept::LowRank {
            assert_eq!(tuned, again, "{name}");
            continue;
        }
        let error: f64 = tuned.iter().zip(again).map(|(a, b)| (a - b).powi(2)).sum();
        let whole: f64 = tuned.iter().zip(base).map(|(a, b)| (a - b).powi(2)).sum();
        // The rebuilt model is rounded to its dtype, which adds at most the noise of one rounding or so.
        let rounding = tensor.noise_share * whole;
        let said = tensor.quality[0].relative_error.powi(2) * whole;
        assert!(
            error < said + rounding + 1e-12 && error > said - rounding,
            "{name}: {error} {said} {rounding}"
        );
        left += said;
        energy += whole;
        noise += rounding;
    }
    let total = manifest.quality[0];
    assert!((total.relative_error - (left / energy).sqrt()).abs() < 1e-6);
    assert!(total.captured_energy > 0.3, "{total:?}");
    assert!((total.captured_energy + total.relative_error.powi(2) - 1.0).abs() < 1e-9);
    let largest = manifest
        .tensors
        .iter()
        .filter_map(|t| t.quality.last())
        .map(|q| q.max_abs_error)
        .fold(0.0, f64::max);
    assert_eq!(manifest.max_reconstruction_error, largest);
    assert!(manifest.avg_reconstruction_error < largest);
    // The totals are those of the approximated tensors: the share by energy, the largest, the mean.
    let tensors: Vec<&SvdTensor> = manifest
        .tensors
        .iter()
        .filter(|t| t.kept == Kept::LowRank)
        .collect();
    assert!(tensors.len() > 1);
    let largest = tensors.iter().map(|t| t.sigma_1).fold(0.0, f64::max);
    assert!(largest > 0.0);
    assert_eq!(manifest.sigma_1, largest);
    let ranks: f64 = tensors.iter().map(|t| t.effective_rank).sum();
    let mean = ranks / tensors.len() as f64;
    assert!((manifest.effective_rank - mean).abs() < 1e-9 * mean);
    let share = noise / energy;
    assert!(share > 0.0);
    assert!(
        (manifest.noise_share - share).abs() < 1e-4 * share,
        "{} {share}",
        manifest.noise_share
    );
}

/// The first bytes of one artifact are every smaller rank, as good as an artifact of that rank.
#[test]
fn one_artifact_holds_smaller_ranks() {
    let work = Work::new();
    let all = work
        .compress(sft(&work, "all").rank(SvdRank::Fixed(vec![12, 4, 8])))
        .unwrap();
    assert_eq!(all.manifest.ranks, [4, 8, 12]);
    let errors: Vec<f64> = all
        .manifest
        .quality
        .iter()
        .map(|q| q.relative_error)
        .collect();
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
    let four = work
        .compress(sft(&work, "four").rank(SvdRank::Fixed(vec![4])))
        .unwrap();
    assert!((four.manifest.quality[0].relative_error - errors[0]).abs() < 2e-3);
    for rank in [4, 8, 12] {
        let output = work.path(&format!("model-{rank}"));
        let outcome = work
            .rebuild(
                SvdReconstruct::new(example("base"), text(&work.path("all")))
                    .rank(rank)
                    .output(text(&output)),
            )
            .unwrap();
        assert_eq!((outcome.status, outcome.rank), (Status::Created, rank));
        assert!(
            work.path("all")
                .join(format!("adapter-r{rank}/adapter_config.json"))
                .is_file()
        );
    }
    let error = work
        .rebuild(
            SvdReconstruct::new(example("base"), text(&work.path("all")))
                .rank(5)
                .dry_run(true),
        )
        .unwrap_err();
    assert!(error.to_string().contains("4, 8, 12"), "{error}");
}

#[test]
fn rules_decide_ranks() {
    let work = Work::new();
    let compress = |name: &str, rank| work.compress(sft(&work, name).rank(rank)).unwrap().manifest;
    let energy = compress("energy", SvdRank::Energy(0.6));
    for tensor in energy.tensors.iter().filter(|t| t.kept == Kept::LowRank) {
        assert!(tensor.quality[0].captured_energy > 0.598, "{tensor:?}");
        assert!(!tensor.ranks.is_empty());
    }
    let factors = |manifest: &SvdDeltaManifest| -> u64 {
        let kept = manifest.tensors.iter().filter(|t| t.kept == Kept::LowRank);
        kept.map(|t| t.stored_bytes).sum()
    };
    let bytes = compress("bytes", SvdRank::Bytes(60_000));
    assert!(
        factors(&bytes) <= 60_000 && factors(&bytes) > 50_000,
        "{}",
        factors(&bytes)
    );
    // As many bytes spread evenly hold less.
    let even = compress("even", SvdRank::Fixed(vec![2]));
    let scale = factors(&even) as f64 / factors(&bytes) as f64;
    assert!(scale < 2.0, "{scale}");
    let auto = compress("auto", SvdRank::Auto);
    for tensor in auto.tensors.iter().filter(|t| t.kept == Kept::LowRank) {
        assert!(tensor.noise_share > 0.0 && tensor.noise_share <= 1.0);
    }
    let manifest = compress("int4", SvdRank::Auto);
    assert_eq!(manifest.rank, auto.rank);
}

#[test]
fn precisions_and_signs() {
    let work = Work::new();
    let mut last = f64::INFINITY;
    let mut sizes = Vec::new();
    for precision in [
        Precision::Int4,
        Precision::Int8,
        Precision::F16,
        Precision::F32,
    ] {
        let name = precision.name();
        let outcome = work
            .compress(sft(&work, name).precision(precision))
            .unwrap();
        let error = outcome.manifest.quality[0].relative_error;
        assert!(error < last * 1.0001, "{name}: {error} {last}");
        last = error;
        sizes.push(outcome.metrics.factor_bytes);
        let rebuilt = SvdReconstruct::new(example("base"), text(&work.path(name)))
            .output(text(&work.path(&format!("{name}-model"))));
        assert_eq!(work.rebuild(rebuilt).unwrap().status, Status::Created);
    }
    assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    let outcome = work.compress(sft(&work, "signs").signs(true)).unwrap();
    assert!(outcome.manifest.quality[0].relative_error < 0.8 * last);
    let rebuilt = SvdReconstruct::new(example("base"), text(&work.path("signs")))
        .output(text(&work.path("signs-model")));
    assert_eq!(work.rebuild(rebuilt).unwrap().status, Status::Created);
}

#[test]
fn outputs_are_idempotent_and_safe() {
    let work = Work::new();
    assert_eq!(
        work.compress(sft(&work, "a")).unwrap().status,
        Status::Created
    );
    let before = std::fs::read(work.path("a/manifest.json")).unwrap();
    assert_eq!(
        work.compress(sft(&work, "a")).unwrap().status,
        Status::Exists
    );
    assert_eq!(std::fs::read(work.path("a/manifest.json")).unwrap(), before);
    let other = || sft(&work, "a").rank(SvdRank::Fixed(vec![3]));
    assert!(matches!(
        work.compress(other()).unwrap_err(),
        DeltaError::Exists { .. }
    ));
    assert_eq!(
        work.compress(other().overwrite(true)).unwrap().status,
        Status::Created
    );
    let dry = work.compress(sft(&work, "dry").dry_run(true)).unwrap();
    assert_eq!(dry.status, Status::DryRun);
    assert!(!work.path("dry").exists());
    std::fs::create_dir(work.path("mine")).unwrap();
    std::fs::write(work.path("mine/notes.txt"), "mine").unwrap();
    let refused = work
        .compress(sft(&work, "mine").overwrite(true))
        .unwrap_err();
    assert!(matches!(refused, DeltaError::Refused { .. }), "{refused}");
    // The default output is found again by its key.
    let stored = || SvdCompress::new(example("base"), example("sft")).rank(SvdRank::Fixed(vec![2]));
    let first = work.compress(stored()).unwrap();
    assert_eq!(work.compress(stored()).unwrap().status, Status::Exists);
    let key = first.manifest.key;
    let model = || SvdReconstruct::new(example("base"), key.clone());
    assert_eq!(work.rebuild(model()).unwrap().status, Status::Created);
    assert_eq!(work.rebuild(model()).unwrap().status, Status::Exists);
    // Nothing is left of finished decompositions.
    assert!(
        !work.path("cache/svd").exists()
            || std::fs::read_dir(work.path("cache/svd"))
                .unwrap()
                .next()
                .is_none()
    );
}

/// What is cut short leaves finished decompositions, which the next run takes up, to the same artifact.
#[test]
fn a_stopped_run_is_taken_up() {
    let work = Work::new();
    work.compress(sft(&work, "whole")).unwrap();
    let cancel = CancelToken::default();
    let from_progress = cancel.clone();
    let stopped = work.compress(sft(&work, "a").threads(1).cancel(cancel).progress(Arc::new(
        move |message: &str, share| {
            if message.contains("decomposing") && share > 0.5 {
                from_progress.cancel();
            }
        },
    )));
    assert!(matches!(stopped, Err(DeltaError::Cancelled)));
    assert!(!work.path("a").exists());
    let kept = || {
        let runs = std::fs::read_dir(work.path("cache/svd")).ok()?;
        let run = runs.flatten().next()?.path();
        Some(
            std::fs::read_dir(run)
                .ok()?
                .flatten()
                .map(|e| e.path())
                .collect::<Vec<_>>(),
        )
    };
    let finished = kept().unwrap();
    assert!(finished.len() > 5, "{finished:?}");
    // One that was damaged is made again.
    std::fs::write(&finished[0], b"damaged").unwrap();
    work.compress(sft(&work, "a")).unwrap();
    assert!(kept().is_none());
    let payload = |name: &str| std::fs::read(work.path(name).join("payload-00000.bin")).unwrap();
    assert_eq!(payload("a"), payload("whole"));
}

#[test]
fn one_rule_is_chosen() {
    assert_eq!(
        SvdRank::choose(None, None, None, None).unwrap(),
        SvdRank::Fixed(vec![16])
    );
    assert_eq!(
        SvdRank::choose(Some("auto"), None, None, None).unwrap(),
        SvdRank::Auto
    );
    assert_eq!(
        SvdRank::choose(None, Some(vec![8, 4]), None, None).unwrap(),
        SvdRank::Fixed(vec![8, 4])
    );
    assert_eq!(
        SvdRank::choose(None, None, None, Some(50e6)).unwrap(),
        SvdRank::Bytes(50_000_000)
    );
    for bad in [
        SvdRank::choose(Some("8"), None, Some(0.5), None),
        SvdRank::choose(Some("-8"), None, None, None),
        SvdRank::choose(None, None, None, Some(-1.0)),
        SvdRank::choose(None, None, None, Some(f64::NAN)),
    ] {
        assert!(matches!(bad, Err(DeltaError::Usage { .. })));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let work = Work::new();
    for wanted in [
        sft(&work, "x").rank(SvdRank::Fixed(vec![])),
        sft(&work, "x").rank(SvdRank::Fixed(vec![0])),
        sft(&work, "x").rank(SvdRank::Fixed(vec![16, (1 << 20) + 1])),
        sft(&work, "x").rank(SvdRank::Fixed((1..=1 << 20).collect())),
        sft(&work, "x").rank(SvdRank::Energy(1.5)),
        sft(&work, "x").rank(SvdRank::Energy(f64::NAN)),
        sft(&work, "x").rank(SvdRank::Bytes(0)),
        sft(&work, "x").signs(true).rank(SvdRank::Fixed(vec![1, 2])),
        sft(&work, "x").max_rank(0),
    ] {
        assert!(matches!(
            work.compress(wanted).unwrap_err(),
            DeltaError::Usage { .. }
        ));
    }
    assert!(!work.path("x").exists());
    work.compress(sft(&work, "a")).unwrap();
    let wrong = SvdReconstruct::new(example("lora-merged"), text(&work.path("a"))).dry_run(true);
    assert!(matches!(
        work.rebuild(wrong).unwrap_err(),
        DeltaError::WrongBase { .. }
    ));
}

/// A manifest with a seal of its own, and ranks that are none or would fill the memory.
#[test]
fn hostile_ranks_are_refused() {
    let work = Work::new();
    let manifest = work.compress(sft(&work, "a")).unwrap().manifest;
    let others = manifest.payloads.iter().map(|p| p.size).sum();
    let hostile: [Vec<u64>; 4] = [
        vec![],
        vec![16, 16],
        vec![16, u64::MAX],
        (0..1 << 19).collect(),
    ];
    for ranks in hostile {
        let mut changed = manifest.clone();
        changed.ranks = ranks;
        let bytes = sparse_delta::support::seal::settle(&mut changed, others).unwrap();
        std::fs::write(work.path("a/manifest.json"), bytes).unwrap();
        let error = work
            .rebuild(SvdReconstruct::new(example("base"), text(&work.path("a"))).dry_run(true))
            .unwrap_err();
        assert!(
            matches!(error, DeltaError::Corrupt { .. }) && error.to_string().contains("the ranks"),
            "{error}"
        );
    }
}

/// Whatever byte of an artifact is damaged: an error, or the same model.
#[test]
fn damage_is_found() {
    let work = Work::new();
    work.compress(sft(&work, "a")).unwrap();
    let model = || SvdReconstruct::new(example("base"), text(&work.path("a"))).dry_run(true);
    work.rebuild(model()).unwrap();
    for file in ["manifest.json", "payload-00000.bin"] {
        let path = work.path("a").join(file);
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(good.len() / 23 + 1) {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            std::fs::write(&path, bad).unwrap();
            if let Err(error) = work.rebuild(model()) {
                assert!(
                    matches!(
                        error,
                        DeltaError::Corrupt { .. }
                            | DeltaError::Usage { .. }
                            | DeltaError::Version { .. }
                    ),
                    "{file} {at}: {error}"
                );
            } else {
                // A byte that pads.
                assert_eq!(file, "payload-00000.bin", "{at}");
            }
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(work.rebuild(model()).is_err());
        std::fs::write(&path, good).unwrap();
    }
    work.rebuild(model()).unwrap();
}

/// The Python that has the oracles. None where there is none, which is an error where they are required (CI).
fn python() -> Option<String> {
    let python = std::env::var("SPARSE_TEST_PYTHON").ok();
    assert!(
        python.is_some() || std::env::var_os("SPARSE_REQUIRE_ORACLES").is_none(),
        "SPARSE_TEST_PYTHON is not set; tests/run.sh sets it"
    );
    if python.is_none() {
        eprintln!("skipped: SPARSE_TEST_PYTHON is not set; tests/run.sh sets it");
    }
    python
}

/// Loads base and adapter as PEFT does, merges, and compares with what we rebuilt and with torch's own decomposition.
const PEFT: &str = r#"
import json, sys, warnings
import torch, peft, transformers
from safetensors.torch import load_file
transformers.utils.logging.set_verbosity_error()
base_path, tuned_path, artifact, rebuilt_path, vllm = sys.argv[1:6]
base = transformers.AutoModelForCausalLM.from_pretrained(base_path)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = peft.PeftModel.from_pretrained(base, artifact + "/adapter")
assert not [w for w in caught if "missing" in str(w.message).lower() or "unexpected" in str(w.message).lower()], [str(w.message) for w in caught]
mine = load_file(artifact + "/adapter/adapter_model.safetensors")
theirs = peft.get_peft_model_state_dict(model)
assert sorted(mine) == sorted(theirs), set(mine) ^ set(theirs)
merged = model.merge_and_unload().state_dict()
manifest = json.load(open(artifact + "/manifest.json"))
rebuilt = load_file(rebuilt_path + "/model.safetensors")
before, tuned = load_file(base_path + "/model.safetensors"), load_file(tuned_path + "/model.safetensors")
same = total = 0
for t in manifest["tensors"]:
    if t["kept"] != "low_rank":
        continue
    name = t["tensor"]
    equal = merged[name].to(rebuilt[name].dtype) == rebuilt[name]
    same += int(equal.sum()); total += equal.numel()
    delta = tuned[name].double() - before[name].double()
    s = torch.linalg.svdvals(delta)
    k = t["ranks"][0]
    best = float((s[k:] ** 2).sum() ** 0.5 / (s ** 2).sum() ** 0.5)
    got = t["quality"][0]["relative_error"]
    assert best * 0.9999 < got < best * 1.0005 + 1e-6, (name, got, best)
    assert abs(t["sigma_1"] / float(s[0]) - 1) < 1e-3, (name, t["sigma_1"], float(s[0]))
    assert abs(t["quality"][0]["sigma_k"] / float(s[k - 1]) - 1) < 1e-2, (name, k)
config = json.load(open(vllm + "/adapter/adapter_config.json"))
factors = load_file(vllm + "/adapter/adapter_model.safetensors")
ranks = {v.shape[0] for k, v in factors.items() if k.endswith("lora_A.weight")}
assert ranks == {config["r"]} and config["lora_alpha"] == config["r"] and not config["rank_pattern"]
assert all(k.endswith((".lora_A.weight", ".lora_B.weight")) for k in factors)
assert config["modules_to_save"] is None
print(same / total)
"#;

#[test]
fn peft_loads_the_adapter_and_torch_agrees() {
    let Some(python) = python() else { return };
    let work = Work::new();
    work.compress(sft(&work, "a").precision(Precision::F32))
        .unwrap();
    work.rebuild(
        SvdReconstruct::new(example("base"), text(&work.path("a")))
            .output(text(&work.path("model"))),
    )
    .unwrap();
    work.compress(
        sft(&work, "vllm")
            .rank(SvdRank::Energy(0.7))
            .adapter(Some(Profile::Vllm)),
    )
    .unwrap();
    let paths = [work.path("a"), work.path("model"), work.path("vllm")].map(|p| text(&p));
    let output = Command::new(python)
        .args(["-c", PEFT, &example("base"), &example("sft")])
        .args(&paths)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let same: f64 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    // Merged by PEFT's default rule, the adapter gives the model that we rebuild, bit for bit.
    assert_eq!(same, 1.0);
}

/// Experts in one tensor, a reshaped tensor, an added one, tied ones, and one that is no number.
#[test]
fn odd_tensors_are_kept() {
    use safetensors::tensor::{Dtype, TensorView};
    let work = Work::new();
    let numbers = |n: usize, seed: u32, unit: f32| -> Vec<u8> {
        let mut state = seed;
        (0..n)
            .flat_map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (unit * (f32::from(u16::try_from(state >> 16).unwrap()) / 32768.0 - 1.0))
                    .to_le_bytes()
            })
            .collect()
    };
    let low_rank = |rows: usize, cols: usize, seed: u32| -> Vec<u8> {
        let floats = |bytes: Vec<u8>| -> Vec<f32> {
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        let (base, u, v) = (
            floats(numbers(rows * cols, 1, 1.0)),
            floats(numbers(rows, seed, 0.1)),
            floats(numbers(cols, seed + 1, 0.1)),
        );
        (0..rows * cols)
            .flat_map(|at| (base[at] + u[at / cols] * v[at % cols]).to_le_bytes())
            .collect()
    };
    let save = |name: &str, tensors: &[(&str, Vec<usize>, Vec<u8>)]| {
        let dir = work.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, shape, data)| {
                (
                    *name,
                    TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
                )
            })
            .collect();
        std::fs::write(
            dir.join("model.safetensors"),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
    };
    let experts = |seed: u32| -> Vec<u8> {
        (0..3)
            .flat_map(|e| low_rank(40, 30, seed + 10 * e))
            .collect()
    };
    let mut broken = low_rank(40, 30, 70);
    broken[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let base_expert = numbers(40 * 30, 1, 1.0);
    save(
        "base",
        &[
            (
                "experts.weight",
                vec![3, 40, 30],
                [&base_expert[..]; 3].concat(),
            ),
            ("a.weight", vec![40, 30], base_expert.clone()),
            ("nan.weight", vec![40, 30], base_expert.clone()),
            ("embed_tokens.weight", vec![40, 30], base_expert.clone()),
            ("grown.weight", vec![40, 30], base_expert.clone()),
            ("norm.weight", vec![30], numbers(30, 5, 1.0)),
        ],
    );
    save(
        "tuned",
        &[
            ("experts.weight", vec![3, 40, 30], experts(20)),
            ("a.weight", vec![40, 30], low_rank(40, 30, 60)),
            ("b.weight", vec![40, 30], low_rank(40, 30, 60)),
            ("nan.weight", vec![40, 30], broken),
            ("embed_tokens.weight", vec![40, 30], low_rank(40, 30, 80)),
            ("grown.weight", vec![41, 30], numbers(41 * 30, 6, 1.0)),
            ("norm.weight", vec![30], numbers(30, 7, 1.0)),
            ("empty.weight", vec![0, 4], Vec::new()),
        ],
    );
    let (base, tuned) = (text(&work.path("base")), text(&work.path("tuned")));
    let wanted = || {
        SvdCompress::new(&base, &tuned)
            .rank(SvdRank::Fixed(vec![2]))
            .precision(Precision::F32)
    };
    let manifest = work
        .compress(wanted().output(text(&work.path("d"))))
        .unwrap()
        .manifest;
    let kept = |name: &str| {
        let tensor = manifest.tensors.iter().find(|t| t.tensor == name).unwrap();
        (tensor.kept, tensor.why.clone())
    };
    assert_eq!(kept("experts.weight").0, Kept::LowRank);
    assert!([kept("a.weight").0, kept("b.weight").0].contains(&Kept::Twin));
    assert!(kept("nan.weight").1.contains("NaN"));
    assert!(kept("embed_tokens.weight").1.contains("embedding"));
    assert!(kept("grown.weight").1.contains("shape"));
    assert_eq!(kept("norm.weight").0, Kept::Exact);
    work.rebuild(SvdReconstruct::new(&base, text(&work.path("d"))).output(text(&work.path("m"))))
        .unwrap();
    for ((name, tuned), (_, again)) in values(&work.path("tuned"))
        .iter()
        .zip(&values(&work.path("m")))
    {
        if kept(name).0 == Kept::Exact {
            assert!(
                tuned
                    .iter()
                    .zip(again)
                    .all(|(a, b)| a.to_bits() == b.to_bits()),
                "{name}"
            );
        }
        // Updates of rank one come back but for rounding.
        let far = tuned.iter().zip(again).any(|(a, b)| (a - b).abs() > 1e-5);
        assert!(!far, "{name}");
    }
    let with = work
        .compress(wanted().embeddings(true).dry_run(true))
        .unwrap();
    let embedding = with
        .manifest
        .tensors
        .iter()
        .find(|t| t.tensor == "embed_tokens.weight");
    assert_eq!(embedding.unwrap().kept, Kept::LowRank);
}
