//! Which model is this? By a glance, and by every byte.

use crate::error::StoreError;
use crate::hash::blake3_map;
use crate::model::{Model, TensorHandle, WeightFile};
use crate::options::Progress;
use crate::sample::sample;

impl WeightFile {
    /// BLAKE3 of the whole file, on all cores, with bounded resident memory.
    #[must_use]
    pub fn blake3(&self) -> [u8; 32] {
        *blake3_map(self.map(), &mut |done| self.release(done)).as_bytes()
    }
}

impl Model {
    /// A fingerprint from names, dtypes, shapes and some bytes of each tensor: quick at any size, and different for
    /// different models in practice, though not by construction. It does not depend on how the tensors are spread over
    /// files. BLAKE3, in hexadecimal.
    pub fn quick_fingerprint(&self) -> Result<String, StoreError> {
        let mut tensors: Vec<TensorHandle<'_>> = self.tensors().collect();
        tensors.sort_by(|a, b| (a.name(), &a.file.name).cmp(&(b.name(), &b.file.name)));
        let mut hasher =
            blake3::Hasher::new_derive_key("sparse 2026-11 quick fingerprint of a model's tensors");
        let text = |hasher: &mut blake3::Hasher, text: &str| {
            hasher
                .update(&(text.len() as u64).to_le_bytes())
                .update(text.as_bytes());
        };
        for tensor in tensors {
            text(&mut hasher, tensor.name());
            text(&mut hasher, &tensor.entry.dtype);
            hasher.update(&(tensor.shape().len() as u64).to_le_bytes());
            for dimension in tensor.shape() {
                hasher.update(&dimension.to_le_bytes());
            }
            hasher.update(&tensor.entry.bytes().to_le_bytes());
            sample(tensor.data(), &mut hasher);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The fingerprint of every byte of the weight files, in the order of their paths (which are not part of it: a
    /// single file and a folder that holds just it are the same model). On all cores, with bounded resident memory.
    /// BLAKE3, in hexadecimal.
    pub fn fingerprint(&self, progress: Option<&Progress>) -> Result<String, StoreError> {
        let total = self.weight_bytes().max(1);
        let mut done = 0_u64;
        let mut all =
            blake3::Hasher::new_derive_key("sparse 2026-11 fingerprint of a model's weight files");
        for file in self.files() {
            let hash = blake3_map(file.map(), &mut |range| {
                done += range.end - range.start;
                file.release(range);
                if let Some(progress) = progress {
                    #[expect(clippy::cast_precision_loss, reason = "a fraction for people")]
                    progress(
                        &format!("hashing {}", file.name),
                        (done as f64 / total as f64).min(1.0),
                    );
                }
            });
            all.update(&file.size.to_le_bytes()).update(hash.as_bytes());
        }
        Ok(all.finalize().to_hex().to_string())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::testing::{noise, write};

    #[test]
    fn files_and_folders_of_the_same_bytes_are_the_same_model() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = [
            ("a", "U8", &[1000_u64][..], noise(1, 1000)),
            ("b", "U8", &[10][..], noise(2, 10)),
        ];
        write(&dir.path().join("m/model.safetensors"), &tensors).unwrap();
        write(&dir.path().join("x.safetensors"), &tensors).unwrap();
        let folder = Model::open_local(&dir.path().join("m")).unwrap();
        let file = Model::open_local(&dir.path().join("x.safetensors")).unwrap();
        assert_eq!(
            folder.fingerprint(None).unwrap(),
            file.fingerprint(None).unwrap()
        );
        assert_eq!(
            folder.quick_fingerprint().unwrap(),
            file.quick_fingerprint().unwrap()
        );
        assert_eq!(folder.fingerprint(None).unwrap().len(), 64);
    }

    #[test]
    fn the_quick_one_ignores_sharding_and_sees_names_shapes_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let quick = |name: &str, files: &[&[crate::testing::Spec<'_>]]| {
            for (index, tensors) in files.iter().enumerate() {
                write(
                    &dir.path().join(name).join(format!("{index}.safetensors")),
                    tensors,
                )
                .unwrap();
            }
            Model::open_local(&dir.path().join(name))
                .unwrap()
                .quick_fingerprint()
                .unwrap()
        };
        let a = || ("a", "U8", &[4_u64, 256][..], noise(1, 1024));
        let b = || ("b", "U8", &[8_u64][..], noise(2, 8));
        let whole = quick("whole", &[&[a(), b()]]);
        assert_eq!(whole, quick("sharded", &[&[b()], &[a()]]));
        assert_ne!(
            whole,
            quick("name", &[&[("c", "U8", &[4, 256], noise(1, 1024)), b()]])
        );
        assert_ne!(
            whole,
            quick("shape", &[&[("a", "U8", &[256, 4], noise(1, 1024)), b()]])
        );
        assert_ne!(
            whole,
            quick("dtype", &[&[("a", "I8", &[4, 256], noise(1, 1024)), b()]])
        );
        assert_ne!(
            whole,
            quick("bytes", &[&[("a", "U8", &[4, 256], noise(3, 1024)), b()]])
        );
    }

    #[test]
    fn progress_ends_at_one() {
        let dir = tempfile::tempdir().unwrap();
        write(
            &dir.path().join("model.safetensors"),
            &[("a", "U8", &[8], noise(1, 8))],
        )
        .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let progress: Progress =
            Arc::new(move |_: &str, fraction| sink.lock().unwrap().push(fraction));
        Model::open_local(dir.path())
            .unwrap()
            .fingerprint(Some(&progress))
            .unwrap();
        assert_eq!(seen.lock().unwrap().last(), Some(&1.0));
    }
}
