//! Model files to serve.

/// A safetensors file with one tensor of bytes.
pub(crate) fn weights(name: &str, data: &[u8]) -> Vec<u8> {
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![data.len()], data)
        .unwrap();
    safetensors::serialize([(name, view)], None).unwrap()
}

/// Bytes that look like nothing else, reproducibly.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}
