//! Dataset deltas through the binary: what is rebuilt is what there was, by the word of pyarrow and `datasets`; what is wrong
//! is refused, and nothing is left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::{
    Random, assert_clear, copy, example, files, names, python, root, run, run_fails, run_json,
    run_ok, run_python, stderr, text,
};

/// One of the example datasets.
pub(crate) fn words(name: &str) -> String {
    text(&root().join("examples/datasets/wordnet").join(name))
}

fn delta_of_words(work: &Path) -> PathBuf {
    let delta = work.join("delta");
    run_ok(
        work,
        &[
            "dataset-compress",
            &words("base"),
            &words("derivative"),
            "-o",
            &text(&delta),
        ],
    );
    delta
}

/// Tables that hold what Arrow and Parquet can hold, oddities first: a base, and a derivative with rows removed, added,
/// repeated, moved and edited, columns added, dropped and retyped. As Parquet and as Arrow IPC.
const MAKE_ODD: &str = r#"
import sys, struct, random, decimal, datetime
import pyarrow as pa, pyarrow.parquet as pq, pyarrow.ipc as ipc
out = sys.argv[1]
rng = random.Random(11)
def nan(bits): return struct.unpack("<d", struct.pack("<Q", bits))[0]
floats = [0.0, -0.0, nan(0x7ff8000000000000), nan(0x7ff8000000000123), nan(0xfff8000000000001), float("inf"), 1e-310, None]
texts = ["", None, "a", "\u00e9\u4e2d\U0001f600", "x" * 300, "null", " a", "a ", "\x00\n"]
def rows(n):
    for i in range(n):
        yield {
            "t": rng.choice(texts) if i % 3 else f"row {i} of many",
            "lt": rng.choice(texts), "f": rng.choice(floats), "f4": rng.choice([0.5, -0.0, None, 1e30]),
            "b": rng.choice([b"", None, b"\x00\xff", bytes([i % 256]) * 5]), "fb": bytes([i % 256]) * 4,
            "d": None if i % 7 == 0 else decimal.Decimal(i * 37 - 500).scaleb(-3),
            "ts": datetime.datetime(2020, 1, 1) + datetime.timedelta(microseconds=i * 7919), "day": datetime.date(1960, 1, 1) + datetime.timedelta(days=i),
            "du": datetime.timedelta(seconds=i), "ok": rng.choice([True, False, None]),
            "l": None if i % 5 == 0 else [] if i % 5 == 1 else [{"x": i, "y": rng.choice(texts)}, None, {"x": None, "y": ""}],
            "s": None if i % 6 == 0 else {"a": rng.choice(floats), "b": [i, None]},
            "m": None if i % 4 == 0 else [(f"k{j}", None if j else float(i)) for j in range(i % 4)],
            "fl": None if i % 9 == 0 else [i, None, -i], "c": rng.choice(["red", "green", None]), "n": None, "i": i % 100,
        }
def schema(other):
    item = pa.struct([pa.field("x", pa.int64() if other else pa.int32()), pa.field("y", pa.string())])
    fields = [
        pa.field("t", pa.string()), pa.field("lt", pa.large_string()), pa.field("f", pa.float64()), pa.field("f4", pa.float32()),
        pa.field("b", pa.binary()), pa.field("fb", pa.binary(4), nullable=False, metadata={"note": "four"}),
        pa.field("d", pa.decimal128(12, 3)), pa.field("ts", pa.timestamp("us", "Europe/Vienna" if other else None)), pa.field("day", pa.date32()),
        pa.field("du", pa.duration("ms")), pa.field("ok", pa.bool_()), pa.field("l", pa.list_(item)),
        pa.field("s", pa.struct([pa.field("a", pa.float64()), pa.field("b", pa.list_(pa.int16()))])),
        pa.field("m", pa.map_(pa.string(), pa.float64())), pa.field("fl", pa.list_(pa.int8() if not other else pa.int16(), 3)),
        pa.field("c", pa.dictionary(pa.int8(), pa.string())), pa.field("n", pa.null()), pa.field("i", pa.string() if other else pa.int32()),
    ]
    return pa.schema(fields, metadata={"made": "by hand", "other": str(other)})
base = list(rows(400))
new = list(rows(30))
kept = [dict(r) for i, r in enumerate(base) if i % 11]
for r in kept[::9]:
    r["t"] = (r["t"] or "") + "!"
    r["f"] = rng.choice(floats)
kept += [dict(r) for r in kept[5:9]] + [dict(kept[3])] * 3
rng.shuffle(kept)
derivative = kept[:150] + new + kept[150:]
for r in base + derivative:
    for k in ("fl",):
        r[k] = None if r[k] is None else [None if v is None else max(-128, min(127, v)) for v in r[k]]
for r in derivative:
    r["i"] = str(r["i"])
def write(name, rows, other):
    table = pa.Table.from_pylist(rows, schema=schema(other))
    if other:
        table = table.append_column(pa.field("extra", pa.int64()), pa.array([len(r["t"] or "") for r in rows], pa.int64()))
        table = table.append_column(pa.field("view", pa.string_view()), pa.array([r["lt"] for r in rows], pa.string_view()))
        table = table.drop_columns(["du"])
        order = ["extra"] + [n for n in table.column_names if n != "extra"]
        table = table.select(order)
    pq.write_table(table, f"{out}/{name}.parquet")
    with ipc.new_file(f"{out}/{name}.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=97)
write("base", base, False)
write("derivative", derivative, True)
"#;

/// Two tables hold the same: schema with metadata, order, every bit of every float.
const SAME_TABLES: &str = r#"
import sys, struct
import pyarrow as pa, pyarrow.parquet as pq, pyarrow.ipc as ipc
def read(path):
    if path.endswith(".parquet"): return pq.read_table(path)
    try: return ipc.open_file(path).read_all()
    except pa.ArrowInvalid: return ipc.open_stream(path).read_all()
def bits(value):
    if isinstance(value, float): return ("float", struct.pack("<d", value))
    if isinstance(value, dict): return {k: bits(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)): return [bits(v) for v in value]
    return value
for a, b in zip(sys.argv[1::2], sys.argv[2::2]):
    a, b = read(a), read(b)
    assert a.schema.equals(b.schema, check_metadata=True), f"{a.schema}\n{b.schema}"
    assert a.num_rows == b.num_rows > 0
    for name in a.column_names:
        left, right = bits(a[name].to_pylist()), bits(b[name].to_pylist())
        assert left == right, (name, [(i, l, r) for i, (l, r) in enumerate(zip(left, right)) if l != r][:3])
print("same")
"#;

#[test]
fn pyarrow_finds_no_difference_in_odd_tables() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&work.path().join(name));
    run_python(&python, MAKE_ODD, &[&at("")]);
    for ending in ["parquet", "arrow"] {
        let (base, derivative) = (
            at(&format!("base.{ending}")),
            at(&format!("derivative.{ending}")),
        );
        for effort in ["fast", "default", "max"] {
            let delta = at(&format!("{ending}-{effort}"));
            let again = at(&format!("{effort}-again.{ending}"));
            run_ok(
                work.path(),
                &[
                    "dataset-compress",
                    &base,
                    &derivative,
                    "-o",
                    &delta,
                    "--effort",
                    effort,
                ],
            );
            run_ok(work.path(), &["dataset-reconstruct", &delta, "-o", &again]);
            let said = run_python(&python, SAME_TABLES, &[&derivative, &again]);
            assert_eq!(said.trim(), "same");
            let same = run_json(work.path(), &["dataset-diff", &derivative, &again]);
            assert!(same["rows"].as_array().unwrap().is_empty(), "{same}");
        }
    }
}

const SAME_DATASETS: &str = r#"
import sys, os
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
datasets.disable_progress_bars()
def load(path, cache):
    files = {name: os.path.join(path, f"{name}.parquet") for name in ("train", "test")}
    return datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
a, b = load(sys.argv[1], sys.argv[3]), load(sys.argv[2], sys.argv[3])
assert list(a) == list(b) == ["train", "test"]
for split in a:
    assert a[split].features == b[split].features
    assert a[split].to_list() == b[split].to_list() and len(a[split]) > 500
print("same")
"#;

#[test]
fn rebuilt_datasets_load_in_python() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let delta = delta_of_words(work.path());
    let again = text(&work.path().join("again"));
    run_ok(
        work.path(),
        &["dataset-reconstruct", &text(&delta), "-o", &again],
    );
    let cache = text(&work.path().join("datasets"));
    let said = run_python(
        &python,
        SAME_DATASETS,
        &[&words("derivative"), &again, &cache],
    );
    assert_eq!(said.trim(), "same");
    let file = |folder: &str, name: &str| format!("{folder}/{name}.parquet");
    let said = run_python(
        &python,
        SAME_TABLES,
        &[
            &file(&words("derivative"), "train"),
            &file(&again, "train"),
            &file(&words("derivative"), "test"),
            &file(&again, "test"),
        ],
    );
    assert_eq!(said.trim(), "same");
}

#[test]
fn text_files_come_back() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let csv = |rows: &[(u32, &str)]| {
        let lines: String = rows.iter().map(|(id, s)| format!("{id},{s}\n")).collect();
        format!("id,s\n{lines}")
    };
    fs::write(at("base.csv"), csv(&[(1, "a"), (2, ""), (3, "\"x,y\"")])).unwrap();
    fs::write(
        at("derivative.csv"),
        csv(&[(3, "\"x,y\""), (1, "b"), (4, "new")]),
    )
    .unwrap();
    fs::write(
        at("base.jsonl"),
        "{\"a\":1,\"b\":[1,2]}\n{\"a\":2,\"b\":[]}\n",
    )
    .unwrap();
    fs::write(
        at("derivative.jsonl"),
        "{\"a\":2,\"b\":[]}\n{\"a\":9,\"b\":[3]}\n",
    )
    .unwrap();
    for ending in ["csv", "jsonl"] {
        let delta = text(&at(&format!("{ending}-delta")));
        let (base, derivative) = (
            text(&at(&format!("base.{ending}"))),
            text(&at(&format!("derivative.{ending}"))),
        );
        run_ok(
            work.path(),
            &["dataset-compress", &base, &derivative, "-o", &delta],
        );
        let again = text(&at(&format!("again.{ending}")));
        run_ok(work.path(), &["dataset-reconstruct", &delta, "-o", &again]);
        assert_eq!(
            fs::read_to_string(&again).unwrap(),
            fs::read_to_string(&derivative).unwrap()
        );
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&delta_of_words(work.path()));
    let out = text(&work.path().join("out"));
    let fails = |arguments: &[&str], code: i32, needles: &[&str]| {
        run_fails(work.path(), arguments, code, needles);
        assert!(!Path::new(&out).exists(), "{arguments:?}");
    };
    let other = words("derivative");
    fails(
        &["dataset-reconstruct", &delta, "--base", &other, "-o", &out],
        4,
        &["not the base this delta was made against", "train"],
    );
    fails(
        &["dataset-compress", "./nothing", &other, "-o", &out],
        6,
        &["nothing"],
    );
    fails(
        &[
            "dataset-compress",
            &other,
            &words("base"),
            "--splits",
            "dev",
            "-o",
            &out,
        ],
        2,
        &["dev", "train, test"],
    );
    fails(
        &["dataset-reconstruct", "./nothing", "-o", &out],
        6,
        &["nothing"],
    );
    fails(
        &["reconstruct", &example("base"), &delta, "-o", &out],
        2,
        &["dataset-reconstruct"],
    );
    fails(
        &["dataset-diff", &words("base"), &other, "--key", "nope"],
        2,
        &["nope", "id"],
    );
    fails(
        &["dataset-diff", &words("base"), &other, "--report", "x.pdf"],
        2,
        &["x.pdf", ".html"],
    );
    // An output that is an input, or holds something else.
    fails(
        &[
            "dataset-compress",
            &words("base"),
            &other,
            "-o",
            &words("base"),
            "--overwrite",
        ],
        2,
        &["base"],
    );
    let taken = work.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("kept"), "x").unwrap();
    for command in [
        vec!["dataset-compress", &words("base"), &other, "-o"],
        vec!["dataset-reconstruct", &delta, "-o"],
    ] {
        let mut command = command;
        let taken = text(&taken);
        command.extend([taken.as_str(), "--overwrite"]);
        let output = run(work.path(), &command);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_clear(&stderr(&output));
    }
    assert_eq!(names(&taken), ["kept"]);
}

#[test]
fn a_folder_without_permission_is_an_error() {
    let work = tempfile::tempdir().unwrap();
    let locked = work.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere.
    if fs::write(locked.join("probe"), "x").is_ok() {
        eprintln!("skipped: this user may write anywhere");
        return;
    }
    let out = text(&locked.join("delta"));
    run_fails(
        work.path(),
        &[
            "dataset-compress",
            &words("base"),
            &words("derivative"),
            "-o",
            &out,
        ],
        1,
        &["locked"],
    );
}

/// Bytes of an artifact changed, cut or put in at random: an error of the right kind, or a dataset that is right.
#[test]
fn hostile_artifacts_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let (base, derivative) = (
        format!("{}/test.parquet", words("base")),
        format!("{}/test.parquet", words("derivative")),
    );
    let delta = work.path().join("delta");
    run_ok(
        work.path(),
        &["dataset-compress", &base, &derivative, "-o", &text(&delta)],
    );
    let whole = files(&delta);
    let mut random = Random::new(41);
    let out = work.path().join("out.parquet");
    for round in 0..60 {
        let bad = work.path().join("bad");
        copy(&delta, &bad);
        let names: Vec<&String> = whole.keys().collect();
        let name = names[random.below(names.len())];
        let mut bytes = whole[name].clone();
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 => {
                let more = random.bytes(9);
                bytes.splice(at..at, more);
            }
            _ => {
                let end = (at + 40).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
        }
        let is_same = bytes == whole[name];
        fs::write(bad.join(name), bytes).unwrap();
        let arguments = ["dataset-reconstruct", &text(&bad), "-o", &text(&out)];
        let output = run(work.path(), &arguments);
        let code = output.status.code();
        if !is_same {
            assert!(
                matches!(code, Some(2 | 5)),
                "round {round}, {name}: {code:?} {}",
                stderr(&output)
            );
            assert_clear(&stderr(&output));
            assert!(!out.exists());
            let output = run(work.path(), &["verify", &text(&bad)]);
            assert!(
                matches!(output.status.code(), Some(2 | 3 | 5)),
                "{}",
                stderr(&output)
            );
        }
        fs::remove_dir_all(&bad).unwrap();
        let _ = fs::remove_file(&out);
    }
}

/// Damage that no hash tells, because they were made to fit: what a hostile artifact looks like.
#[test]
fn damage_behind_fitting_hashes_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let (base, derivative) = (
        format!("{}/test.parquet", words("base")),
        format!("{}/test.parquet", words("derivative")),
    );
    let delta = work.path().join("delta");
    run_ok(
        work.path(),
        &[
            "dataset-compress",
            &base,
            &derivative,
            "-o",
            &text(&delta),
            "--effort",
            "fast",
        ],
    );
    let whole = fs::read(delta.join("payload.bin")).unwrap();
    let mut random = Random::new(43);
    let out = work.path().join("out.parquet");
    for round in 0..40 {
        let bad = work.path().join("bad");
        copy(&delta, &bad);
        let mut bytes = whole.clone();
        // The plans come first; what is in them is the more dangerous.
        let reach = if round % 2 == 0 { 600 } else { bytes.len() };
        for _ in 0..=random.below(3) {
            let at = random.below(reach);
            bytes[at] ^= 1 << random.below(8);
        }
        fs::write(bad.join("payload.bin"), &bytes).unwrap();
        edit_manifest(&bad, |manifest| {
            manifest["payload"] = blake3::hash(&bytes).to_hex().as_str().into();
        });
        let output = run(
            work.path(),
            &["dataset-reconstruct", &text(&bad), "-o", &text(&out)],
        );
        assert!(
            matches!(output.status.code(), Some(4 | 5)),
            "round {round}: {:?} {}",
            output.status.code(),
            stderr(&output)
        );
        assert_clear(&stderr(&output));
        assert!(!out.exists());
        fs::remove_dir_all(&bad).unwrap();
    }
}

/// Changes the manifest of an artifact and seals it again.
fn edit_manifest(delta: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let path = delta.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    let object = manifest.as_object_mut().unwrap();
    object.shift_remove("seal");
    let seal = blake3::hash(&serde_json::to_vec(&object).unwrap()).to_hex();
    object.insert("seal".to_owned(), seal[..32].into());
    fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// A sealed manifest that names paths outside its dataset.
#[test]
fn paths_do_not_leave_the_output() {
    let work = tempfile::tempdir().unwrap();
    let delta = delta_of_words(work.path());
    for evil in [
        "../evil.parquet",
        "/tmp/evil.parquet",
        "a/../../evil.parquet",
        "",
    ] {
        let bad = work.path().join("bad");
        copy(&delta, &bad);
        edit_manifest(&bad, |manifest| {
            manifest["splits"][0]["files"][0][0] = evil.into();
        });
        let out = text(&work.path().join("out/again"));
        run_fails(
            work.path(),
            &["dataset-reconstruct", &text(&bad), "-o", &out],
            5,
            &["manifest.json"],
        );
        assert!(!work.path().join("out").exists());
    }
}

#[test]
fn diff_tells_values_apart_and_can_fail_a_pipeline() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&work.path().join(name));
    let write = |name: &str, rows: &str| fs::write(at(name), rows).unwrap();
    write(
        "a.jsonl",
        "{\"id\":1,\"s\":\"\",\"x\":\"same\"}\n{\"id\":2,\"s\":\"<b>&'\\\"\",\"x\":\"same\"}\n{\"id\":3,\"s\":\"gone\",\"x\":\"y\"}\n",
    );
    write(
        "b.jsonl",
        "{\"id\":2,\"s\":\"<i>\",\"x\":\"same\"}\n{\"id\":1,\"s\":null,\"x\":\"same\"}\n{\"id\":4,\"s\":\"new\",\"x\":\"z\"}\n",
    );
    let (a, b) = (at("a.jsonl"), at("b.jsonl"));
    let diff = run_json(work.path(), &["dataset-diff", &a, &b, "--key", "id"]);
    let found: Vec<(String, String, String)> = diff["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
            (text("op"), text("before"), text("after"))
        })
        .collect();
    let expected = [
        ("changed", "\"<b>&'\\\"\"", "\"<i>\""),
        ("changed", "\"\"", "null"),
        ("added", "-", "{\"id\": 4, \"s\": \"new\", \"x\": \"z\"}"),
        ("removed", "{\"id\": 3, \"s\": \"gone\", \"x\": \"y\"}", "-"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(op, before, after)| ((*op).to_owned(), (*before).to_owned(), (*after).to_owned()))
        .collect();
    assert_eq!(found, expected);
    let split = &diff["summary"]["splits"][0];
    assert_eq!(
        (
            &split["changed"],
            &split["added"],
            &split["removed"],
            &split["moved"]
        ),
        (&2.into(), &1.into(), &1.into(), &1.into())
    );
    let column = &split["columns"][1];
    assert_eq!(
        (&column["changed"], &column["to_null"]),
        (&2.into(), &1.into())
    );
    let code = |derivative: &str, on: &str| {
        let arguments = [
            "dataset-diff",
            &a,
            derivative,
            "--key",
            "id",
            "--fail-on",
            on,
        ];
        run(work.path(), &arguments).status.code()
    };
    for on in ["changed", "added", "removed", "schema,added"] {
        assert_eq!(code(&b, on), Some(3), "{on}");
    }
    assert_eq!(code(&b, "schema"), Some(0));
    assert_eq!(code(&a, "changed,added,removed,schema"), Some(0));
    // Reports: everything in one file, nothing of a value taken for markup.
    for name in ["report.html", "report.json"] {
        run_ok(
            work.path(),
            &["dataset-diff", &a, &b, "--key", "id", "--report", &at(name)],
        );
    }
    let html = fs::read_to_string(at("report.html")).unwrap();
    assert!(
        html.contains("&lt;b&gt;&amp;&#39;") && !html.contains("<b>&"),
        "{html}"
    );
    assert!(!html.contains("http") && html.ends_with("</html>\n"));
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(at("report.json")).unwrap()).unwrap();
    assert_eq!(json, diff);
    // A report that cannot be finished leaves the old one.
    run_fails(
        work.path(),
        &[
            "dataset-diff",
            &a,
            "./nothing.jsonl",
            "--report",
            &at("report.json"),
        ],
        6,
        &["nothing"],
    );
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&fs::read(at("report.json")).unwrap()).unwrap(),
        diff
    );
}

#[test]
fn info_and_verify_know_datasets() {
    let work = tempfile::tempdir().unwrap();
    let delta = delta_of_words(work.path());
    let info = run_json(work.path(), &["info", &text(&delta)]);
    assert_eq!(info["manifest"]["splits"][0]["new"], 292);
    let shown = run_ok(work.path(), &["info", &text(&delta)]);
    assert!(
        shown.contains("294") && shown.contains("test, byte for byte"),
        "{shown}"
    );
    let checks = run_json(
        work.path(),
        &["verify", &text(&delta), "--base", &words("base")],
    );
    assert_eq!(
        (&checks["ok"], checks["checks"].as_array().unwrap().len()),
        (&true.into(), 6)
    );
    run_fails(
        work.path(),
        &["verify", &text(&delta), "--base", &words("derivative")],
        4,
        &["not the base"],
    );
    let payload = delta.join("payload.bin");
    let mut bytes = fs::read(&payload).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&payload, bytes).unwrap();
    let output = run(work.path(), &["verify", &text(&delta), "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}
