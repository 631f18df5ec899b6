//! The manifest of a delta.

use std::path::Path;

use serde_json::Value;
use sparse_delta::DeltaManifest;

/// Reads any bytes as a manifest, as they are and, where they are JSON, with the seal that an attacker would give them.
pub fn manifest(data: &[u8]) {
    let path = Path::new("manifest.json");
    let _ = DeltaManifest::parse(path, data);
    if let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(data) {
        fields.shift_remove("seal");
        let text = serde_json::to_vec(&fields).expect("values are JSON");
        let seal = blake3::hash(&text).to_hex()[..32].to_owned();
        fields.insert("seal".into(), seal.into());
        let text = serde_json::to_vec(&fields).expect("values are JSON");
        let _ = DeltaManifest::parse(path, &text);
    }
}
