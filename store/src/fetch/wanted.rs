//! Which files of a remote model are fetched.

use crate::path::has_suffix;

/// Endings of weights in other formats: the same parameters over again, or ones that cannot be read here.
const OTHER_WEIGHTS: &[&str] = &[
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".h5",
    ".keras",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".tflite",
    ".mlmodel",
    ".nemo",
    ".npz",
    ".engine",
];

/// Endings of files that hold rows.
const DATA: &[&str] = &[
    ".parquet", ".arrow", ".feather", ".csv", ".jsonl", ".ndjson",
];

/// Whether a file of a remote dataset is fetched: those that hold rows.
pub(crate) fn is_data(relative: &str) -> bool {
    DATA.iter().any(|suffix| has_suffix(relative, suffix))
}

/// Whether a file of a remote model is fetched: everything but weights in other formats, folders that belong to tools
/// (`.git`, `.cache`), and the index of PyTorch shards. So a Hub snapshot that another program filled with more files is
/// the same model as a fresh one.
pub(crate) fn is_wanted(relative: &str) -> bool {
    let tool_folder = relative
        .split('/')
        .any(|part| matches!(part, ".git" | ".cache"));
    !tool_folder
        && !OTHER_WEIGHTS
            .iter()
            .any(|suffix| has_suffix(relative, suffix))
        && !has_suffix(relative, ".bin.index.json")
}

/// Whether the file is safetensors weights.
pub(crate) fn is_weights(relative: &str) -> bool {
    has_suffix(relative, ".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_in_other_formats_stay_where_they_are() {
        for name in [
            "model.safetensors",
            "a/tokenizer.json",
            "README.md",
            ".gitattributes",
            "code/model.py",
            "LICENSE",
        ] {
            assert!(is_wanted(name), "{name}");
        }
        for name in [
            "pytorch_model.bin",
            "m.GGUF",
            "onnx/model.onnx",
            "pytorch_model.bin.index.json",
            ".git/HEAD",
        ] {
            assert!(!is_wanted(name), "{name}");
        }
        assert!(is_weights("x/Y.SafeTensors") && !is_weights("x.json"));
    }
}
