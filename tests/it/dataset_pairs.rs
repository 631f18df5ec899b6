//! Pairs as people make them, by Python's `datasets` and pyarrow: what is rebuilt is what there was, by their own word, and the
//! delta is as small as what was done.

use std::fs;
use std::path::Path;

use crate::support::{assert_same, python, run_fails, run_json, run_ok, run_python, text};

/// A base and what `datasets` makes of it, as Parquet files; the same in shards, and as it saves them to disk.
const MAKE_PAIRS: &str = r#"
import os, sys, random
os.environ["HF_HUB_OFFLINE"] = "1"
from datasets import ClassLabel, Dataset, DatasetDict, Value, concatenate_datasets, disable_progress_bars
disable_progress_bars()
out = sys.argv[1]
rng = random.Random(5)
words = [f"{a}{b}" for a in "ba ke li mo nu pra ste vi xo zu".split() for b in "dan fel gor him jat kol mun pes rit sul".split()]
def rows(ids):
    return {
        "id": list(ids), "text": [" ".join(rng.choice(words) for _ in range(rng.randint(6, 24))) for _ in ids],
        "label": [rng.randint(0, 2) for _ in ids], "score": [round(rng.random(), 4) for _ in ids],
        "tags": [[rng.choice(words) for _ in range(rng.randint(0, 3))] for _ in ids],
        "source": [{"name": rng.choice(words), "line": rng.randint(1, 9999)} for _ in ids],
    }
base = Dataset.from_dict(rows(range(3000)))
other = Dataset.from_dict(rows(range(3000, 3120)), features=base.features)
split = base.train_test_split(test_size=0.2, seed=42)
edit = lambda row, i: {"text": row["text"] + " " + words[i % 100]} if i % 20 == 0 else row
made = {
    "same": base, "shuffled": base.shuffle(seed=42), "split-train": split["train"], "split-test": split["test"],
    "sliced": base.select(range(500, 2500)), "picked": base.select(range(0, 3000, 3)),
    "filtered": base.filter(lambda row: row["label"] != 1), "sorted": base.sort("score"),
    "edited": base.map(edit, with_indices=True), "upper": base.map(lambda row: {"text": row["text"].upper()}),
    "counted": base.map(lambda row: {"length": len(row["text"]), "words": len(row["text"].split())}),
    "renamed": base.rename_column("text", "prompt"), "narrower": base.remove_columns(["score", "tags"]),
    "labelled": base.cast_column("label", ClassLabel(names=["no", "maybe", "yes"])),
    "retyped": base.cast_column("label", Value("int8")).cast_column("score", Value("float32")),
    "twice": concatenate_datasets([base, base.select(range(100))]), "longer": concatenate_datasets([base, other]),
    "chained": base.filter(lambda row: row["label"] != 1).shuffle(seed=7).select(range(1000)).rename_column("label", "class"),
}
base.to_parquet(f"{out}/base.parquet")
for name, dataset in made.items():
    dataset.to_parquet(f"{out}/{name}.parquet")
for folder, dataset in [("shards-base", base), ("shards", made["shuffled"])]:
    for i in range(3):
        dataset.shard(3, i, contiguous=True).to_parquet(f"{out}/{folder}/data/train-{i:05d}-of-00003.parquet")
base.save_to_disk(f"{out}/saved-base")
DatasetDict(split).save_to_disk(f"{out}/saved", num_shards={"train": 2, "test": 1})
other.to_parquet(f"{out}/other.parquet")
"#;

/// Two files are one to pyarrow (schemas with metadata, the files' own metadata, rows) and to `datasets` (features, rows).
const SAME_PAIRS: &str = r#"
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets, pyarrow.parquet as pq
datasets.disable_progress_bars()
cache = sys.argv[1]
def own(path): return {k: v for k, v in (pq.read_metadata(path).metadata or {}).items() if k != b"ARROW:schema"}
for a, b in zip(sys.argv[2::2], sys.argv[3::2]):
    left, right = pq.read_table(a), pq.read_table(b)
    assert left.schema.equals(right.schema, check_metadata=True), f"{a}\n{left.schema}\n{right.schema}"
    assert left.equals(right, check_metadata=True) and own(a) == own(b), a
    load = lambda path: datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=cache)
    left, right = load(a), load(b)
    assert left.features == right.features, (a, left.features, right.features)
    assert left.data.table.equals(right.data.table) and left[:] == right[:] and len(left) > 0, a
print("same")
"#;

/// What each derivative may cost, manifest and schema included (the schema of a `datasets` file, where it is another than the
/// base's, is some 500 bytes, what makes the file again byte for byte 1,100), and how many of its rows are shared, edited, new and removed.
const COSTS: [(&str, u64, [u64; 4]); 18] = [
    ("same", 1600, [3000, 0, 0, 0]),
    ("shuffled", 2850, [3000, 0, 0, 0]),
    ("split-train", 2850, [2400, 0, 0, 600]),
    ("split-test", 2850, [600, 0, 0, 2400]),
    ("sliced", 2850, [2000, 0, 0, 1000]),
    ("picked", 2850, [1000, 0, 0, 2000]),
    // Which third of the rows is gone: 3000 bits times the entropy of a third.
    ("filtered", 3150, [1987, 0, 0, 1013]),
    ("sorted", 2850, [3000, 0, 0, 0]),
    // A word at the end of every twentieth text.
    ("edited", 3150, [2850, 150, 0, 0]),
    ("upper", 2950, [0, 3000, 0, 0]),
    ("counted", 3450, [3000, 0, 0, 0]),
    ("renamed", 3250, [3000, 0, 0, 0]),
    ("narrower", 3150, [3000, 0, 0, 0]),
    ("labelled", 3250, [3000, 0, 0, 0]),
    ("retyped", 3250, [3000, 0, 0, 0]),
    ("twice", 2850, [3100, 0, 0, 0]),
    // 120 rows of random words: seven bits a word, some 15 words a row, and the other columns.
    ("longer", 6050, [3000, 0, 120, 0]),
    // 1000 rows of a shuffled two thirds: ten bits a row at least.
    ("chained", 4950, [1000, 0, 0, 2000]),
];

#[test]
fn what_datasets_makes_of_a_base_comes_back_and_costs_what_was_done() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&work.path().join(name));
    run_python(&python, MAKE_PAIRS, &[&at("")]);
    let mut pairs = vec![at("datasets")];
    let mut wrong = Vec::new();
    for (name, most, rows) in COSTS {
        let (derivative, delta, again) = (
            at(&format!("{name}.parquet")),
            at(&format!("{name}-delta")),
            at(&format!("{name}-again.parquet")),
        );
        let base = at("base.parquet");
        run_ok(
            work.path(),
            &["dataset-compress", &base, &derivative, "-o", &delta],
        );
        run_ok(work.path(), &["dataset-reconstruct", &delta, "-o", &again]);
        pairs.extend([derivative, again]);
        let manifest = &run_json(work.path(), &["info", &delta])["manifest"];
        let split = &manifest["splits"][0];
        let counts = ["shared", "edited", "new", "removed"].map(|n| split[n].as_u64().unwrap());
        let bytes = manifest["size_stats"]["delta_size_bytes"].as_u64().unwrap();
        if bytes > most || counts != rows {
            wrong.push(format!("{name}: {bytes} bytes, {counts:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Where no more is stored than that it is the base, the file is written anew.
    for pair in pairs[3..].chunks(2) {
        assert!(
            fs::read(&pair[0]).unwrap() == fs::read(&pair[1]).unwrap(),
            "{pair:?}"
        );
    }
    let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
    assert_eq!(run_python(&python, SAME_PAIRS, &pairs).trim(), "same");
    folders_come_back(work.path(), &python);
}

/// Shards keep their names and rows; what was saved to disk can be loaded from disk again.
fn folders_come_back(work: &Path, python: &str) {
    const SAME_FOLDERS: &str = r#"
import os, sys, glob
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
datasets.disable_progress_bars()
cache, shards, shards_again, saved, saved_again = sys.argv[1:]
names = lambda path: sorted(os.path.relpath(p, path) for p in glob.glob(f"{path}/**/*", recursive=True) if os.path.isfile(p))
assert names(shards) == names(shards_again) and len(names(shards)) == 3
a, b = (datasets.load_dataset(path, cache_dir=cache)["train"] for path in (shards, shards_again))
assert a.features == b.features and a[:] == b[:] and len(a) == 3000
assert names(saved) == names(saved_again), (names(saved), names(saved_again))
a, b = datasets.load_from_disk(saved), datasets.load_from_disk(saved_again)
assert list(a) == list(b) == ["train", "test"]
for name in a:
    assert a[name].features == b[name].features and a[name][:] == b[name][:] and len(a[name]) > 500
print("same")
"#;
    let at = |name: &str| text(&work.join(name));
    for (base, derivative) in [("shards-base", "shards"), ("saved-base", "saved")] {
        let (delta, again) = (
            at(&format!("{derivative}-delta")),
            at(&format!("{derivative}-again")),
        );
        run_ok(
            work,
            &["dataset-compress", &at(base), &at(derivative), "-o", &delta],
        );
        run_ok(work, &["dataset-reconstruct", &delta, "-o", &again]);
    }
    assert_same(&work.join("shards"), &work.join("shards-again"));
    let said = run_python(
        python,
        SAME_FOLDERS,
        &[
            &at("datasets"),
            &at("shards"),
            &at("shards-again"),
            &at("saved"),
            &at("saved-again"),
        ],
    );
    assert_eq!(said.trim(), "same");
}

/// One table, with all that Parquet's pages differ by (levels of nested and null values, long and repeated texts, dictionaries
/// that grow too large), written in the ways that pyarrow has.
const WRITE_VARIANTS: &str = r#"
import sys, random
import pyarrow as pa, pyarrow.parquet as pq
out = sys.argv[1]
rng = random.Random(3)
words = [f"word{rng.randrange(10 ** 9)}" for _ in range(4000)]
def table(start):
    ids = range(start, 30000)
    text = lambda i: None if i % 11 == 0 else " ".join(words[(i * k) % 4000] for k in range(1, 4 + i % 9))
    columns = {
        "id": pa.array(ids, pa.int64()), "text": pa.array([text(i) for i in ids]), "kind": pa.array([words[i * i % 7] for i in ids]),
        "one": pa.array(["same"] * len(ids)), "none": pa.array([None] * len(ids), pa.int32()),
        "flag": pa.array([None if i % 5 == 0 else i % 3 == 0 for i in ids]), "real": pa.array([i / 7 for i in ids]),
        "small": pa.array([i % 200 - 100 for i in ids], pa.int8()), "at": pa.array([i * 1000003 for i in ids], pa.timestamp("us", "UTC")),
        "list": pa.array([None if i % 13 == 0 else [words[j] for j in range(i % 4)] for i in ids]),
        "deep": pa.array([[{"a": i, "b": [None, i % 3]}] * (i % 3) for i in ids]),
        "map": pa.array([[("k", i % 9)] * (i % 2) for i in ids], pa.map_(pa.string(), pa.int32())),
        "raw": pa.array([bytes([i % 256]) * (i % 6) for i in ids]), "fixed": pa.array([bytes([i % 251] * 4) for i in ids], pa.binary(4)),
        "label": pa.array([words[i % 5] for i in ids]).dictionary_encode(),
    }
    return pa.table(columns).replace_schema_metadata({"note": "made by hand"})
base, derivative = table(0), table(40)
pq.write_table(base, f"{out}/base.parquet")
for name, options in {
    "usual": {}, "plain": {"compression": "none"}, "zstd": {"compression": "zstd"}, "zstd9": {"compression": "zstd", "compression_level": 9},
    "groups": {"row_group_size": 5000}, "second": {"data_page_version": "2.0"}, "no-dictionary": {"use_dictionary": False},
    "small-pages": {"data_page_size": 4096}, "indexed": {"write_page_index": True}, "checked": {"write_page_checksum": True},
    "chunked": {"use_content_defined_chunking": True}, "old": {"version": "1.0", "store_schema": False},
    "gzip": {"compression": "gzip"}, "lz4": {"compression": "lz4"},
    "delta": {"use_dictionary": False, "column_encoding": {"id": "DELTA_BINARY_PACKED", "text": "DELTA_BYTE_ARRAY"}},
}.items():
    pq.write_table(derivative, f"{out}/{name}.parquet", **options)
"#;

#[test]
fn files_by_pyarrow_come_back_byte_for_byte_or_it_is_said_why_not() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&work.path().join(name));
    run_python(&python, WRITE_VARIANTS, &[&at("")]);
    let base = at("base.parquet");
    let compress = |name: &str, more: &[&str]| {
        let (derivative, delta) = (at(&format!("{name}.parquet")), at(&format!("{name}-delta")));
        let mut arguments = vec![
            "dataset-compress",
            &base,
            &derivative,
            "-o",
            &delta,
            "--overwrite",
        ];
        arguments.extend(more);
        run_json(work.path(), &arguments)["manifest"].clone()
    };
    let rebuild = |name: &str, more: &[&str]| {
        let (delta, again) = (
            at(&format!("{name}-delta")),
            at(&format!("{name}-again.parquet")),
        );
        let mut arguments = vec!["dataset-reconstruct", &delta, "-o", &again, "--overwrite"];
        arguments.extend(more);
        run_ok(work.path(), &arguments)
    };
    let is_same = |name: &str| {
        let read = |name: String| fs::read(work.path().join(name)).unwrap();
        read(format!("{name}.parquet")) == read(format!("{name}-again.parquet"))
    };
    let mut wrong = Vec::new();
    for name in [
        "usual",
        "plain",
        "zstd",
        "zstd9",
        "groups",
        "second",
        "no-dictionary",
        "small-pages",
        "indexed",
        "checked",
        "chunked",
        "old",
    ] {
        let split = compress(name, &["--restore", "bytes"])["splits"][0].clone();
        let cost = split["recipes"]["size"].as_u64().unwrap();
        let said = rebuild(name, &[]);
        if cost > 9000 || !is_same(name) || !said.contains("byte for byte") {
            wrong.push(format!("{name}: {cost} bytes, {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, why) in [
        ("gzip", "compressed by GZIP"),
        ("lz4", "compressed by LZ4"),
        ("delta", "encoded"),
    ] {
        let split = compress(name, &[])["splits"][0].clone();
        let said = split["why"].as_str().unwrap();
        assert!(said.contains(why) && split["restores"].is_null(), "{split}");
        let said = rebuild(name, &[]);
        assert!(said.contains("row for row") && said.contains(why), "{said}");
    }
    // Unasked where it costs little; left alone where the rows are wanted.
    assert!(compress("usual", &[])["splits"][0]["restores"]["bytes"].is_string());
    fs::remove_file(at("usual-again.parquet")).unwrap();
    rebuild("usual", &["--rows-only"]);
    assert!(!is_same("usual"));
    rebuild("usual", &[]);
    assert!(is_same("usual"));
    let diff = run_json(
        work.path(),
        &[
            "dataset-diff",
            &at("usual.parquet"),
            &at("usual-again.parquet"),
        ],
    );
    assert!(diff["rows"].as_array().unwrap().is_empty());
    run_ok(
        work.path(),
        &["verify", &at("usual-delta"), "--base", &base],
    );
    assert!(compress("usual", &["--restore", "rows"])["splits"][0]["restores"].is_null());
    let arguments = [
        "dataset-compress",
        &base,
        &at("gzip.parquet"),
        "-o",
        &at("x"),
        "--restore",
        "bytes",
    ];
    run_fails(work.path(), &arguments, 2, &["GZIP", "restore"]);
}
