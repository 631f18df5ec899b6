//! Made models: every dtype safetensors can name, and the odd cases. Each pair comes back byte for byte.

use std::fmt::Write as _;
use std::path::Path;

use crate::support::{Random, assert_same, run_fails, run_json, run_ok, text};

/// A tensor: name, dtype, shape, bytes.
pub(crate) type Tensor = (String, &'static str, Vec<u64>, Vec<u8>);

/// The bytes of a safetensors file, written by hand: the order of tensors, spaces and metadata are the caller's.
pub(crate) fn safetensors(tensors: &[Tensor], metadata: &str, padding: usize) -> Vec<u8> {
    let mut json = String::from("{");
    if !metadata.is_empty() {
        let _ = write!(json, "\"__metadata__\":{metadata},");
    }
    let mut at = 0;
    for (number, (name, dtype, shape, data)) in tensors.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(
            json,
            "{comma}{name:?}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{at},{}]}}",
            at + data.len()
        );
        at += data.len();
    }
    json.push('}');
    json.push_str(&" ".repeat(padding));
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    for (_, _, _, data) in tensors {
        file.extend_from_slice(data);
    }
    file
}

fn tensor(name: &str, dtype: &'static str, shape: &[u64], data: Vec<u8>) -> Tensor {
    (name.to_owned(), dtype, shape.to_vec(), data)
}

/// Bits of one element.
const DTYPES: &[(&str, usize)] = &[
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// Bytes near those of another tensor: some equal, most a little off, a few anything (NaN, infinities among them).
fn near(random: &mut Random, base: &[u8], width: usize) -> Vec<u8> {
    let mut out = base.to_vec();
    for word in out.chunks_mut(width) {
        match random.below(16) {
            0..6 => {}
            15 => word.copy_from_slice(&random.bytes(word.len())),
            step => word[0] = word[0].wrapping_add(u8::try_from(step % 3).unwrap() + 1),
        }
    }
    out
}

fn round_trip(work: &Path, base: &Path, finetune: &Path) -> serde_json::Value {
    let _ = std::fs::remove_dir_all(work.join("delta"));
    let _ = std::fs::remove_dir_all(work.join("again"));
    let (delta, again) = (work.join("delta"), work.join("again"));
    let made = run_json(
        work,
        &[
            "compress",
            &text(base),
            &text(finetune),
            "-o",
            &text(&delta),
        ],
    );
    run_ok(
        work,
        &[
            "reconstruct",
            &text(base),
            &text(&delta),
            "-o",
            &text(&again),
        ],
    );
    assert_same(finetune, &again);
    run_ok(work, &["verify", &text(&delta), "--base", &text(base)]);
    made
}

fn write_model(folder: &Path, tensors: &[Tensor], metadata: &str, padding: usize) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(
        folder.join("model.safetensors"),
        safetensors(tensors, metadata, padding),
    )
    .unwrap();
}

/// Every dtype, near its base, in one model; odd lengths, so that nothing is aligned by luck.
#[test]
fn every_dtype_comes_back() {
    let work = tempfile::tempdir().unwrap();
    let mut random = Random::new(1);
    for rows in [1_u64, 3, 130] {
        let (mut base, mut finetune) = (Vec::new(), Vec::new());
        for (dtype, bits) in DTYPES {
            // Divisible by 4, for the packed dtypes.
            let shape = [rows, 100];
            let bytes = usize::try_from(rows).unwrap() * 100 * bits / 8;
            let data = random.bytes(bytes);
            finetune.push(tensor(
                &format!("t.{dtype}"),
                dtype,
                &shape,
                near(&mut random, &data, bits.div_ceil(8)),
            ));
            base.push(tensor(&format!("t.{dtype}"), dtype, &shape, data));
        }
        let (b, f) = (work.path().join("base"), work.path().join("finetune"));
        write_model(&b, &base, "", 0);
        write_model(&f, &finetune, "{\"format\":\"pt\"}", 5);
        let made = round_trip(work.path(), &b, &f);
        assert_eq!(made["tensors"].as_array().unwrap().len(), DTYPES.len());
    }
}

/// The cases a codec must know, each in a model of its own.
#[test]
fn odd_models_come_back() {
    let work = tempfile::tempdir().unwrap();
    let mut random = Random::new(2);
    let data = random.bytes(64 * 32 * 2);
    let small = near(&mut random, &data, 2);
    let more = random.bytes(32 * 2 * 7);
    let wide: Vec<u8> = data
        .chunks(2)
        .flat_map(|half| [0, 0, half[0], half[1]])
        .collect();
    let w = |name: &str, data: &[u8]| tensor(name, "BF16", &[64, 32], data.to_vec());
    let grown: Vec<u8> = small.iter().chain(&more).copied().collect();
    let specials: Vec<u8> = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        0.0,
        f32::MIN_POSITIVE / 2.0,
        f32::from_bits(0x7fa0_0001),
    ]
    .iter()
    .flat_map(|value| value.to_le_bytes())
    .collect();
    let zeros = vec![0_u8; specials.len()];
    let cases: Vec<(&str, Vec<Tensor>, Vec<Tensor>)> = vec![
        ("nothing at all", vec![], vec![]),
        ("a base without tensors", vec![], vec![w("w", &data)]),
        ("a fine-tune without tensors", vec![w("w", &data)], vec![]),
        ("identical", vec![w("w", &data)], vec![w("w", &data)]),
        (
            "added rows",
            vec![w("w", &data)],
            vec![tensor("w", "BF16", &[71, 32], grown)],
        ),
        (
            "removed rows",
            vec![w("w", &data)],
            vec![tensor("w", "BF16", &[60, 32], small[..60 * 64].to_vec())],
        ),
        (
            "another dtype",
            vec![w("w", &data)],
            vec![tensor("w", "F32", &[64, 32], wide.clone())],
        ),
        (
            "a narrower dtype",
            vec![tensor("w", "F32", &[64, 32], wide)],
            vec![w("w", &small)],
        ),
        (
            "an unknown dtype",
            vec![tensor("w", "Q7", &[64], data[..64].to_vec())],
            vec![tensor("w", "Q7", &[64], small[..64].to_vec())],
        ),
        ("renamed", vec![w("w", &data)], vec![w("model.w", &data)]),
        (
            "tied",
            vec![w("w", &data)],
            vec![w("w", &small), w("head", &small)],
        ),
        (
            "transposed shape",
            vec![w("w", &data)],
            vec![tensor("w", "BF16", &[32, 64], small.clone())],
        ),
        (
            "zero-sized, scalar and five dimensions",
            vec![tensor("s", "F32", &[], vec![1, 2, 3, 4])],
            vec![
                tensor("e", "F16", &[0, 7], vec![]),
                tensor("s", "F32", &[], vec![1, 2, 3, 5]),
                tensor("five", "I16", &[2, 1, 3, 2, 2], random.bytes(48)),
            ],
        ),
        (
            "special values",
            vec![
                tensor("x", "F32", &[8], zeros.clone()),
                tensor("y", "F32", &[8], specials.clone()),
            ],
            vec![
                tensor("x", "F32", &[8], specials),
                tensor("y", "F32", &[8], zeros),
            ],
        ),
        (
            "names that need escapes",
            vec![tensor("a\"b\\c/../é", "U8", &[4], vec![1, 2, 3, 4])],
            vec![tensor("a\"b\\c/../é", "U8", &[4], vec![1, 2, 3, 5])],
        ),
    ];
    for (what, base, finetune) in cases {
        let (b, f) = (work.path().join("base"), work.path().join("finetune"));
        let _ = std::fs::remove_dir_all(&b);
        let _ = std::fs::remove_dir_all(&f);
        write_model(&b, &base, "", 0);
        write_model(&f, &finetune, "", 3);
        println!("{what}");
        let made = round_trip(work.path(), &b, &f);
        let methods: Vec<&str> = made["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tensor| tensor["method"].as_str().unwrap())
            .collect();
        match what {
            "identical" | "renamed" => assert_eq!(methods, ["same"]),
            "tied" => assert_eq!(methods[1], "twin"),
            _ => {}
        }
    }
}

/// Files of any kind travel with the model: folders, empty files, files the base has, and links out of it do not.
#[test]
fn other_files_come_back() {
    let work = tempfile::tempdir().unwrap();
    let mut random = Random::new(3);
    let data = random.bytes(2048);
    let (b, f) = (work.path().join("base"), work.path().join("finetune"));
    write_model(&b, &[tensor("w", "U8", &[2048], data.clone())], "", 0);
    write_model(
        &f,
        &[tensor("w", "U8", &[2048], near(&mut random, &data, 1))],
        "",
        0,
    );
    let big = random.bytes(300_000);
    std::fs::write(b.join("tokenizer.json"), &big).unwrap();
    std::fs::write(f.join("tokenizer.json"), &big).unwrap();
    let mut edited = big.clone();
    edited[1000..1010].copy_from_slice(b"0123456789");
    std::fs::write(f.join("merges.txt"), &edited).unwrap();
    std::fs::write(b.join("merges.txt"), &big).unwrap();
    std::fs::write(f.join("empty"), b"").unwrap();
    std::fs::create_dir_all(f.join("onnx/deep")).unwrap();
    std::fs::write(f.join("onnx/deep/a file with spaces.bin"), random.bytes(77)).unwrap();
    std::fs::write(f.join("optimizer.bin"), random.bytes(5000)).unwrap();
    let made = round_trip(work.path(), &b, &f);
    // Equal files cost nothing, edited ones their edits, the rest itself.
    let artifact = made["artifact_bytes"].as_u64().unwrap();
    assert!(artifact < 20_000, "{artifact}");
}

/// A single file stays a single file.
#[test]
fn a_single_file_comes_back() {
    let work = tempfile::tempdir().unwrap();
    let mut random = Random::new(4);
    let data = random.bytes(4096);
    let (b, f) = (
        work.path().join("b.safetensors"),
        work.path().join("f.safetensors"),
    );
    let base = [tensor("w", "F16", &[2048], data.clone())];
    let finetune = [tensor("w", "F16", &[2048], near(&mut random, &data, 2))];
    std::fs::write(&b, safetensors(&base, "", 0)).unwrap();
    std::fs::write(&f, safetensors(&finetune, "", 1)).unwrap();
    let delta = text(&work.path().join("delta"));
    run_ok(
        work.path(),
        &["compress", &text(&b), &text(&f), "-o", &delta],
    );
    let again = work.path().join("again.safetensors");
    run_ok(
        work.path(),
        &["reconstruct", &text(&b), &delta, "-o", &text(&again)],
    );
    assert_eq!(std::fs::read(&f).unwrap(), std::fs::read(&again).unwrap());
    let folder = work.path().join("folder");
    run_ok(
        work.path(),
        &["reconstruct", &text(&b), &delta, "-o", &text(&folder)],
    );
    assert_eq!(
        std::fs::read(&f).unwrap(),
        std::fs::read(folder.join("f.safetensors")).unwrap()
    );
}

/// A sharded checkpoint against a single file, and one with a shard missing.
#[test]
fn shards_come_back() {
    let work = tempfile::tempdir().unwrap();
    let mut random = Random::new(5);
    let (one, two) = (random.bytes(6000), random.bytes(4000));
    let (b, f) = (work.path().join("base"), work.path().join("finetune"));
    write_model(
        &b,
        &[
            tensor("one", "F16", &[3000], one.clone()),
            tensor("two", "BF16", &[2000], two.clone()),
        ],
        "",
        0,
    );
    std::fs::create_dir_all(&f).unwrap();
    let shard = |name: &str, tensors: &[Tensor]| {
        std::fs::write(f.join(name), safetensors(tensors, "", 0)).unwrap();
    };
    shard(
        "model-00001-of-00002.safetensors",
        &[tensor("one", "F16", &[3000], near(&mut random, &one, 2))],
    );
    shard(
        "model-00002-of-00002.safetensors",
        &[tensor("two", "BF16", &[2000], near(&mut random, &two, 2))],
    );
    std::fs::write(
        f.join("model.safetensors.index.json"),
        r#"{"metadata":{"total_size":10000},"weight_map":{"one":"model-00001-of-00002.safetensors","two":"model-00002-of-00002.safetensors"}}"#,
    )
    .unwrap();
    round_trip(work.path(), &b, &f);
    std::fs::remove_file(f.join("model-00002-of-00002.safetensors")).unwrap();
    let output = text(&work.path().join("other"));
    run_fails(
        work.path(),
        &["compress", &text(&b), &text(&f), "-o", &output],
        5,
        &["model-00002-of-00002.safetensors"],
    );
}
