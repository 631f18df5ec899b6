//! The fuzz target of manifests on stable: the manifest of a real delta, damaged in its text and in its values, a bounded number of
//! times.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

#[path = "../../fuzz/src/manifest.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate exports it")]
mod targets;

use std::path::Path;

use serde_json::{Value, json};

/// Replaces one value, anywhere in the document.
fn change(value: &mut Value, next: &mut impl FnMut() -> usize) {
    let inner: Vec<&mut Value> = match value {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => Vec::new(),
    };
    let count = inner.len();
    if count > 0 && !next().is_multiple_of(8) {
        let number = next() % count;
        if let Some(one) = inner.into_iter().nth(number) {
            return change(one, next);
        }
    }
    let values = [
        json!(null),
        json!(-1),
        json!(0),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("../x"),
        json!("0".repeat(64)),
        json!([]),
        json!({}),
        json!(true),
    ];
    *value = values[next() % values.len()].clone();
}

#[tokio::test]
async fn manifests_are_errors_or_values() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
    let work = tempfile::tempdir().unwrap();
    let output = work.path().join("delta");
    let path = |name: &str| models.join(name).display().to_string();
    sparse_delta::Compress::new(path("base"), path("sft"))
        .open_options(sparse_store::OpenOptions {
            cache_dir: Some(work.path().join("cache")),
            ..sparse_store::OpenOptions::empty()
        })
        .output(output.display().to_string())
        .run()
        .await
        .unwrap();
    let text = std::fs::read(output.join("manifest.json")).unwrap();
    targets::manifest(&text);
    let mut state = 0x5eedu64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) as usize
    };
    for _ in 0..4000 {
        let mut value: Value = serde_json::from_slice(&text).unwrap();
        for _ in 0..1 + next() % 3 {
            change(&mut value, &mut next);
        }
        targets::manifest(&serde_json::to_vec(&value).unwrap());
        let mut bytes = text.clone();
        for _ in 0..1 + next() % 3 {
            let at = next() % bytes.len();
            bytes[at] = next() as u8;
        }
        targets::manifest(&bytes);
    }
}
