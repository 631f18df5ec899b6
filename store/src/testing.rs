//! Small safetensors files for the tests of this crate.

use std::path::Path;

/// A tensor to write: name, dtype, shape, bytes.
pub(crate) type Spec<'a> = (&'a str, &'a str, &'a [u64], Vec<u8>);

/// A safetensors file with these tensors, in order.
pub(crate) fn safetensors(tensors: &[Spec<'_>]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        header.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let json = serde_json::Value::Object(header).to_string();
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// Writes a safetensors file, folders included.
pub(crate) fn write(path: &Path, tensors: &[Spec<'_>]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, safetensors(tensors))
}

/// Bytes that look like nothing else, reproducibly.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut reader = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    reader.fill(&mut bytes);
    bytes
}
