//! Damaged and hostile input: a clear error each, nothing left behind, what was there before untouched.

use std::fs;
use std::path::{Path, PathBuf};

use crate::models::{Tensor, safetensors};
use crate::support::{
    Random, assert_clear, assert_same, copy, files, names, run, run_ok, stderr, text,
};

/// Mutated inputs of each kind.
const INPUTS: usize = 200;

/// A small base, fine-tune and delta, and another state of the fine-tune.
struct Scene {
    work: tempfile::TempDir,
    base: PathBuf,
    finetune: PathBuf,
    delta: PathBuf,
    old: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let mut random = Random::new(7);
        let mut tensors: Vec<Tensor> = Vec::new();
        for (name, dtype, shape, bytes) in [
            ("embed", "BF16", vec![40, 32], 2560),
            ("layer.weight", "F32", vec![16, 16], 1024),
            ("layer.bias", "F16", vec![16], 32),
        ] {
            tensors.push((name.to_owned(), dtype, shape, random.bytes(bytes)));
        }
        let base = work.path().join("base");
        let finetune = work.path().join("finetune");
        fs::create_dir(&base).unwrap();
        fs::create_dir(&finetune).unwrap();
        fs::write(base.join("model.safetensors"), safetensors(&tensors, "", 0)).unwrap();
        for (_, _, _, data) in &mut tensors {
            for byte in data.iter_mut().step_by(6) {
                *byte ^= 1;
            }
        }
        let metadata = "{\"format\":\"pt\"}";
        fs::write(
            finetune.join("model.safetensors"),
            safetensors(&tensors, metadata, 2),
        )
        .unwrap();
        fs::write(finetune.join("config.json"), "{\"model_type\": \"none\"}").unwrap();
        let delta = work.path().join("delta");
        run_ok(
            work.path(),
            &[
                "compress",
                &text(&base),
                &text(&finetune),
                "-o",
                &text(&delta),
            ],
        );
        let old = work.path().join("old");
        copy(&base, &old);
        fs::write(old.join("config.json"), "{}").unwrap();
        Self {
            work,
            base,
            finetune,
            delta,
            old,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// Rebuilds from `delta`: the fine-tune, or a clear error and nothing.
    fn reconstruct(&self, delta: &Path, what: &str) -> bool {
        let out = self.path("out");
        let output = run(
            self.work.path(),
            &[
                "reconstruct",
                &text(&self.base),
                &text(delta),
                "-o",
                &text(&out),
            ],
        );
        let good = output.status.success();
        if good {
            assert_same(&self.finetune, &out);
            fs::remove_dir_all(&out).unwrap();
        } else {
            assert_refused(&output, what);
            assert!(!out.exists(), "{what}");
        }
        // Over another state of the model: that stays as it is, or is replaced as a whole.
        let kept = self.path("kept");
        let _ = fs::remove_dir_all(&kept);
        copy(&self.old, &kept);
        let output = run(
            self.work.path(),
            &[
                "reconstruct",
                &text(&self.base),
                &text(delta),
                "-o",
                &text(&kept),
                "--overwrite",
            ],
        );
        assert_eq!(output.status.success(), good, "{what}: {}", stderr(&output));
        assert_same(if good { &self.finetune } else { &self.old }, &kept);
        self.assert_clean(what);
        good
    }

    /// No temporary file is left beside anything, and nothing was written outside.
    fn assert_clean(&self, what: &str) {
        let left: Vec<String> = names(self.work.path())
            .into_iter()
            .filter(|name| {
                ![
                    "base", "finetune", "delta", "old", "kept", "cache", "bad", "hf",
                ]
                .contains(&name.as_str())
            })
            .collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

fn assert_refused(output: &std::process::Output, what: &str) {
    let message = stderr(output);
    let code = output.status.code();
    assert!(
        matches!(code, Some(1..=6)),
        "{what}: {:?}\n{message}",
        output.status
    );
    assert_clear(&message);
}

/// A bit flipped, a byte replaced, cut short, made longer, a run zeroed, a run doubled.
fn mutate(random: &mut Random, bytes: &[u8]) -> (Vec<u8>, String) {
    let mut out = bytes.to_vec();
    let at = random.below(out.len());
    let what = match random.below(6) {
        0 => {
            out[at] ^= 1 << random.below(8);
            "bit flipped"
        }
        1 => {
            out[at] = out[at].wrapping_add(1 + random.below(255).to_le_bytes()[0]);
            "byte replaced"
        }
        2 => {
            out.truncate(at);
            "cut"
        }
        3 => {
            out.extend(random.bytes(at % 100 + 1));
            "longer"
        }
        4 => {
            let end = out.len().min(at + 1 + random.below(64));
            out[at..end].fill(0);
            "zeroed"
        }
        _ => {
            let end = out.len().min(at + 1 + random.below(64));
            let run = out[at..end].to_vec();
            out.splice(at..at, run);
            "doubled"
        }
    };
    (out, format!("{what} at {at}"))
}

/// Every file of an artifact, mutated.
#[test]
fn damaged_artifacts_are_refused() {
    let scene = Scene::new();
    let bad = scene.path("bad");
    for file in ["manifest.json", "tensors.parquet", "payload-00000.bin"] {
        let mut random = Random::new(11);
        let sound = fs::read(scene.delta.join(file)).unwrap();
        let mut survived = 0;
        for _ in 0..INPUTS / 2 {
            let (bytes, what) = mutate(&mut random, &sound);
            let _ = fs::remove_dir_all(&bad);
            copy(&scene.delta, &bad);
            fs::write(bad.join(file), &bytes).unwrap();
            survived += usize::from(scene.reconstruct(&bad, &format!("{file} {what}")));
        }
        // Only what changes nothing may pass: a zeroed zero, padding between runs.
        assert!(survived <= INPUTS / 20, "{file}: {survived} passed");
        let _ = fs::remove_dir_all(&bad);
        copy(&scene.delta, &bad);
        fs::remove_file(bad.join(file)).unwrap();
        assert!(!scene.reconstruct(&bad, &format!("{file} absent")));
    }
}

/// Damage that the hashes of the manifest do not tell, because they were made to fit: what a hostile artifact looks like.
#[test]
fn damage_behind_fitting_hashes_is_refused() {
    let scene = Scene::new();
    let bad = scene.path("bad");
    for file in ["tensors.parquet", "payload-00000.bin"] {
        let mut random = Random::new(13);
        let sound = fs::read(scene.delta.join(file)).unwrap();
        for _ in 0..INPUTS / 2 {
            let (bytes, what) = mutate(&mut random, &sound);
            let _ = fs::remove_dir_all(&bad);
            copy(&scene.delta, &bad);
            fs::write(bad.join(file), &bytes).unwrap();
            edit_manifest(&bad, |manifest| {
                let entry = match file {
                    "tensors.parquet" => &mut manifest["index"],
                    _ => &mut manifest["payloads"][0],
                };
                entry["size"] = bytes.len().into();
                entry["blake3"] = blake3::hash(&bytes).to_hex().as_str().into();
            });
            scene.reconstruct(&bad, &format!("{file} {what}, hashes made to fit"));
        }
    }
}

/// Changes a manifest and seals it again, as whoever means harm would.
fn edit_manifest(delta: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = delta.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    let fields = manifest.as_object_mut().unwrap();
    fields.shift_remove("seal");
    let compact = serde_json::to_vec(&fields).unwrap();
    let seal = blake3::hash(&compact).to_hex()[..32].to_owned();
    fields.insert("seal".into(), seal.into());
    fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// Changes a manifest.
type Edit = Box<dyn FnOnce(&mut serde_json::Value)>;

/// Manifests that mean harm: paths that leave the folder, sizes that would fill memory, places outside of files.
#[test]
fn hostile_manifests_are_refused() {
    let scene = Scene::new();
    let bad = scene.path("bad");
    let outside = scene.path("evil");
    let mut edits: Vec<(String, Edit)> = Vec::new();
    for path in [
        "../evil",
        "a/../../evil",
        "",
        ".",
        "..",
        "/tmp/evil",
        "a\\b",
        "a//b",
        "nul\0l",
        "a/",
        "config.json",
    ] {
        let value = path.to_owned();
        edits.push((
            format!("file path {path:?}"),
            Box::new(move |m| m["files"][0]["path"] = value.into()),
        ));
        if path != "config.json" {
            let value = path.to_owned();
            edits.push((
                format!("carried path {path:?}"),
                Box::new(move |m| m["carried"][0]["path"] = value.into()),
            ));
            let value = path.to_owned();
            edits.push((
                format!("carried from {path:?}"),
                Box::new(move |m| {
                    let carried = m["carried"][0].as_object_mut().unwrap();
                    carried.shift_remove("blob");
                    carried.shift_remove("prefix");
                    carried.insert("same_as".into(), value.into());
                }),
            ));
        }
        let value = path.to_owned();
        edits.push((
            format!("payload {path:?}"),
            Box::new(move |m| m["payloads"][0]["file"] = value.into()),
        ));
        let value = path.to_owned();
        edits.push((
            format!("index {path:?}"),
            Box::new(move |m| m["index"]["file"] = value.into()),
        ));
    }
    for number in [
        0_u64,
        1,
        7,
        1 << 20,
        1 << 32,
        1 << 40,
        i64::MAX as u64,
        u64::MAX,
    ] {
        for pointer in [
            "/files/0/size",
            "/files/0/header",
            "/carried/0/size",
            "/carried/0/blob/raw",
            "/carried/0/blob/size",
            "/carried/0/blob/offset",
            "/headers/raw",
            "/headers/size",
            "/headers/offset",
            "/headers/payload",
            "/frames/0/raw",
            "/frames/0/size",
            "/frames/0/offset",
            "/payloads/0/size",
            "/index/size",
            "/index/rows",
            "/original_bytes",
            "/format_version",
            "/codec_version",
            "/num_layers",
        ] {
            edits.push((
                format!("{pointer} = {number}"),
                Box::new(move |m| {
                    if let Some(value) = m.pointer_mut(pointer) {
                        *value = number.into();
                    }
                }),
            ));
        }
    }
    for (pointer, text) in [
        ("/base/fingerprint", "00"),
        ("/base/quick_fingerprint", "00"),
        ("/files/0/sha256", "zz"),
        ("/key", "../../x"),
        ("/delta_type", "something_else"),
    ] {
        edits.push((
            format!("{pointer} = {text}"),
            Box::new(move |m| *m.pointer_mut(pointer).unwrap() = text.into()),
        ));
    }
    assert!(edits.len() >= INPUTS, "{}", edits.len());
    for (what, edit) in edits {
        let _ = fs::remove_dir_all(&bad);
        copy(&scene.delta, &bad);
        let before = files(&bad);
        edit_manifest(&bad, edit);
        let same = files(&bad).len() == before.len();
        scene.reconstruct(&bad, &what);
        assert!(same && !outside.exists(), "{what}");
    }
}

/// Models whose header is damaged or hostile, as base and as fine-tune.
#[test]
fn damaged_models_are_refused() {
    let scene = Scene::new();
    let bad = scene.path("bad");
    let sound = fs::read(scene.finetune.join("model.safetensors")).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(sound[..8].try_into().unwrap())).unwrap();
    let mut random = Random::new(17);
    let mut refused = 0;
    for _ in 0..INPUTS {
        let (mut bytes, what) = mutate(&mut random, &sound[..header]);
        bytes.extend_from_slice(&sound[header..]);
        refused += usize::from(try_model(&scene, &bad, &bytes, &what));
    }
    // A changed letter of a name, or a digit of the metadata, gives another sound model.
    assert!(refused > INPUTS / 2, "{refused}");
    for _ in 0..INPUTS / 4 {
        let mut bytes = sound.clone();
        bytes.truncate(random.below(sound.len()));
        assert!(try_model(&scene, &bad, &bytes, "cut"));
    }
}

/// Compresses against a model; it is refused clearly, or its delta gives it back. Returns whether it was refused.
fn try_model(scene: &Scene, bad: &Path, bytes: &[u8], what: &str) -> bool {
    let _ = fs::remove_dir_all(bad);
    fs::create_dir(bad).unwrap();
    fs::write(bad.join("model.safetensors"), bytes).unwrap();
    let made = scene.path("made");
    let output = run(
        scene.work.path(),
        &[
            "compress",
            &text(&scene.base),
            &text(bad),
            "-o",
            &text(&made),
        ],
    );
    let refused = !output.status.success();
    if refused {
        assert_refused(&output, what);
        assert!(!made.exists(), "{what}");
    } else {
        let again = scene.path("again");
        run_ok(
            scene.work.path(),
            &[
                "reconstruct",
                &text(&scene.base),
                &text(&made),
                "-o",
                &text(&again),
            ],
        );
        assert_same(bad, &again);
        fs::remove_dir_all(&made).unwrap();
        fs::remove_dir_all(&again).unwrap();
    }
    scene.assert_clean(what);
    refused
}

#[test]
fn hostile_headers_are_refused() {
    let scene = Scene::new();
    let bad = scene.path("bad");
    let with = |json: &str, data: usize| {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.extend(std::iter::repeat_n(0_u8, data));
        file
    };
    let one = |dtype: &str, shape: &str, offsets: &str| {
        with(
            &format!(
                "{{\"w\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}"
            ),
            16,
        )
    };
    let mut nested = "[".repeat(100_000);
    nested.push_str(&"]".repeat(100_000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty file", vec![]),
        ("seven bytes", vec![0; 7]),
        ("a header of u64::MAX", u64::MAX.to_le_bytes().to_vec()),
        ("a header of 1 TB", (1_u64 << 40).to_le_bytes().to_vec()),
        ("no JSON", with("not json", 0)),
        ("a list", with("[]", 0)),
        ("nested", with(&nested, 0)),
        ("not UTF-8", {
            let mut f = 2_u64.to_le_bytes().to_vec();
            f.extend([0xff, 0xfe]);
            f
        }),
        ("offsets past the end", one("U8", "[17]", "[0,17]")),
        ("offsets backwards", one("U8", "[4]", "[8,4]")),
        ("negative", one("U8", "[4]", "[-4,0]")),
        ("a hole at the end", one("U8", "[4]", "[0,4]")),
        ("a hole at the start", one("U8", "[8]", "[8,16]")),
        (
            "bytes that do not fit the shape",
            one("F32", "[3]", "[0,16]"),
        ),
        (
            "a shape that overflows",
            one("F32", "[4294967296,4294967296,4294967296]", "[0,16]"),
        ),
        (
            "a shape of huge dimensions and a zero",
            one(
                "F32",
                "[18446744073709551615,18446744073709551615,0]",
                "[0,16]",
            ),
        ),
        ("a float in the shape", one("F32", "[4.0]", "[0,16]")),
        (
            "a missing dtype",
            with("{\"w\":{\"shape\":[16],\"data_offsets\":[0,16]}}", 16),
        ),
        (
            "duplicate names",
            with(
                "{\"w\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},\"w\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,16]}}",
                16,
            ),
        ),
        (
            "overlap",
            with(
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[10],\"data_offsets\":[0,10]},\"b\":{\"dtype\":\"U8\",\"shape\":[10],\"data_offsets\":[6,16]}}",
                16,
            ),
        ),
        (
            "metadata that is no map",
            with(
                "{\"__metadata__\":3,\"w\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0,16]}}",
                16,
            ),
        ),
    ];
    for (what, bytes) in cases {
        assert!(try_model(&scene, &bad, &bytes, what), "{what} was taken");
    }
}

/// A file that may not be read is named, whoever runs the test.
#[test]
fn unreadable_files_are_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new();
    let weights = scene.finetune.join("model.safetensors");
    fs::set_permissions(&weights, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything, unless it gives that up.
    let mut command = std::process::Command::new("setpriv");
    command
        .args([
            "--bounding-set=-dac_override,-dac_read_search",
            env!("CARGO_BIN_EXE_sparse"),
        ])
        .args([
            "compress",
            &text(&scene.base),
            &text(&scene.finetune),
            "-o",
            &text(&scene.path("made")),
        ])
        .env("SPARSE_CACHE", scene.path("cache"));
    let output = match fs::File::open(&weights) {
        Ok(_) => command.output().unwrap(),
        Err(_) => run(
            scene.work.path(),
            &[
                "compress",
                &text(&scene.base),
                &text(&scene.finetune),
                "-o",
                &text(&scene.path("made")),
            ],
        ),
    };
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("model.safetensors") && message.contains("denied"),
        "{message}"
    );
    scene.assert_clean("unreadable");
}
