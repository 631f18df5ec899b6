//! Independent implementations look at what we write: transformers, Python's safetensors, pyarrow, BLAKE3.

use crate::support::{example, python, root, run_ok, run_python, text};

const SAME_LOGITS: &str = r#"
import sys, torch, transformers
transformers.utils.logging.set_verbosity_error()
original, rebuilt = (transformers.AutoModelForCausalLM.from_pretrained(p).eval() for p in sys.argv[1:3])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[2])
tokens = tokenizer("a delta of its base", return_tensors="pt")["input_ids"]
with torch.no_grad():
    a, b = original(tokens).logits, rebuilt(tokens).logits
assert torch.equal(a, b)
print(tuple(a.shape)[0])
"#;

#[test]
fn transformers_loads_the_rebuilt_model() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let (delta, again) = (
        text(&work.path().join("delta")),
        text(&work.path().join("again")),
    );
    run_ok(
        work.path(),
        &["compress", &example("base"), &example("sft"), "-o", &delta],
    );
    run_ok(
        work.path(),
        &["reconstruct", &example("base"), &delta, "-o", &again],
    );
    let said = run_python(&python, SAME_LOGITS, &[&example("sft"), &again]);
    assert_eq!(said.trim(), "1");
}

const READ_COPY: &str = r#"
import sys, torch
from safetensors.torch import load_file
base = load_file(sys.argv[1])
same, cast = load_file(sys.argv[2]), load_file(sys.argv[3])
assert sorted(same) == sorted(base)
assert all(torch.equal(same[n], base[n]) and same[n].dtype == base[n].dtype for n in base)
assert cast and all(t.dtype == torch.float32 and torch.equal(t, base[n].float()) for n, t in cast.items())
print(len(same), len(cast))
"#;

#[test]
fn pythons_safetensors_reads_what_copy_writes() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let (same, cast) = (
        text(&work.path().join("same.safetensors")),
        text(&work.path().join("cast.safetensors")),
    );
    let sql = format!(
        "COPY (SELECT * FROM sparse_tensors('examples/models/base')) TO '{same}';
         COPY (SELECT name, 'F32' AS dtype, shape, tensor_cast(data, dtype, 'F32') AS data
               FROM sparse_tensors('examples/models/base') WHERE name LIKE '%norm%') TO '{cast}'"
    );
    run_ok(work.path(), &["sql", "-c", &sql]);
    let base = text(&root().join("examples/models/base/model.safetensors"));
    let said = run_python(&python, READ_COPY, &[&base, &same, &cast]);
    assert_eq!(said.trim(), "38 9");
}

/// FORMAT.md, read by a program that shares nothing with ours.
const READ_ARTIFACT: &str = r#"
import hashlib, json, os, sys
import blake3, pyarrow.parquet as pq, zstandard
delta, base = sys.argv[1:3]
read = lambda *p: open(os.path.join(*p), "rb").read()
manifest = json.loads(read(delta, "manifest.json"))
unsealed = {k: v for k, v in manifest.items() if k != "seal"}
compact = json.dumps(unsealed, separators=(",", ":"), ensure_ascii=False).encode()
assert manifest["seal"] == blake3.blake3(compact).hexdigest()[:32]
assert manifest["artifact_bytes"] == sum(os.path.getsize(os.path.join(delta, f)) for f in os.listdir(delta))
payloads = []
for p in manifest["payloads"]:
    data = read(delta, p["file"])
    assert len(data) == p["size"] and blake3.blake3(data).hexdigest() == p["blake3"]
    payloads.append(data)
index = manifest["index"]
assert blake3.blake3(read(delta, index["file"])).hexdigest() == index["blake3"]
rows = pq.read_table(os.path.join(delta, index["file"])).to_pylist()
assert len(rows) == index["rows"]
blocks = 0
for row in rows:
    if row["block"] >= 0:
        block = payloads[row["payload"]][row["offset"]:row["offset"] + row["length"]]
        assert len(block) == row["length"]
        assert int.from_bytes(blake3.blake3(block).digest()[:8], "little") == row["checksum"]
        blocks += 1
def unpack(blob, prefix=b""):
    data = payloads[blob.get("payload", 0)][blob["offset"]:blob["offset"] + blob["size"]]
    if blob["size"] == blob["raw"]:
        return data
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    out = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=2**31).decompress(data, max_output_size=blob["raw"])
    assert len(out) == blob["raw"]
    return out
weights = [f for f in sorted(os.listdir(base)) if f.endswith(".safetensors")]
prefix = b""
for name in weights:
    data = read(base, name)
    prefix += data[:8 + int.from_bytes(data[:8], "little")]
headers = unpack(manifest["headers"], prefix)
at = 0
names = []
for file in manifest["files"]:
    header = headers[at:at + file["header"]]
    at += file["header"]
    assert int.from_bytes(header[:8], "little") + 8 == file["header"]
    names += [n for n in json.loads(header[8:]) if n != "__metadata__"]
assert at == len(headers)
assert sorted(names) == sorted({row["tensor"] for row in rows})
for carried in manifest["carried"]:
    if "same_as" in carried:
        content = read(base, carried["same_as"])
    elif "blob" in carried:
        content = unpack(carried["blob"], read(base, carried["prefix"]) if "prefix" in carried else b"")
    else:
        content = b""
    assert hashlib.sha256(content).hexdigest() == carried["sha256"], carried["path"]
print("ok")
"#;

#[test]
fn the_artifact_is_what_its_specification_says() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    for finetune in ["sft", "lora-merged"] {
        let delta = text(&work.path().join(finetune));
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
        let said = run_python(&python, READ_ARTIFACT, &[&delta, &example("base")]);
        assert_eq!(said.trim(), "ok");
    }
}
