//! A low-rank approximation on disk, opened and checked.

use std::path::{Path, PathBuf};

use sparse_codec::TensorView;
use sparse_store::{Model, TensorHandle};
use sparse_svd::{Factors, Precision, Signs};

use super::apply::Approximation;
use super::floats::Float;
use super::manifest::{SvdDeltaManifest, SvdTensor};
use crate::carried::Carrier;
use crate::manifest::{Blob, MANIFEST};
use crate::payload::PayloadReader;
use crate::tensor::Form;
use crate::{DeltaError, artifact};

#[derive(Debug)]
pub(crate) struct SvdArtifact {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: SvdDeltaManifest,
    pub(crate) payload: PayloadReader,
}

/// Reads the manifest of a folder.
pub(crate) fn read_manifest(dir: &Path) -> Result<SvdDeltaManifest, DeltaError> {
    let (path, bytes) = artifact::manifest_bytes(dir, "svd-compress")?;
    SvdDeltaManifest::parse(&path, &bytes)
}

impl SvdArtifact {
    pub(crate) fn open(dir: &Path) -> Result<Self, DeltaError> {
        let manifest = read_manifest(dir)?;
        let payload = PayloadReader::open(dir, &manifest.payloads)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            manifest,
            payload,
        })
    }

    /// The rank that is asked for, or the largest.
    pub(crate) fn rank(&self, asked: Option<u64>) -> Result<u64, DeltaError> {
        let ranks = &self.manifest.ranks;
        let wanted = asked.or_else(|| ranks.last().copied());
        wanted.filter(|rank| ranks.contains(rank)).ok_or_else(|| {
            let all: Vec<String> = ranks.iter().map(ToString::to_string).collect();
            DeltaError::usage(format!(
                "the approximation in {} can be rebuilt at rank {}; make one with the rank you want",
                self.dir.display(),
                all.join(", ")
            ))
        })
    }

    pub(crate) fn carrier(&self) -> Carrier<'_> {
        Carrier {
            dir: &self.dir,
            payload: &self.payload,
            base_id: &self.manifest.base_model_id,
        }
    }

    /// Whether the adapters are as they were written.
    pub(crate) fn adapters_intact(&self) -> bool {
        self.adapter_files().iter().all(|(_, intact)| *intact)
    }

    /// Every file of the adapters, and whether it is as it was written.
    pub(crate) fn adapter_files(&self) -> Vec<(String, bool)> {
        let intact = |file: &str, hash: &str| {
            sparse_store::safe_join(&self.dir, file)
                .ok()
                .and_then(|path| std::fs::read(path).ok())
                .is_some_and(|content| blake3::hash(&content).to_hex().as_str() == hash)
        };
        let files = self.manifest.adapters.iter().flat_map(|adapter| {
            let names = sparse_adapter::FILES.iter().zip(&adapter.blake3);
            names.map(|(name, hash)| (format!("{}/{name}", adapter.folder), hash))
        });
        files
            .map(|(file, hash)| {
                let intact = intact(&file, hash);
                (file, intact)
            })
            .collect()
    }

    /// An error about one tensor.
    pub(crate) fn corrupt(
        &self,
        tensor: &SvdTensor,
        problem: impl std::fmt::Display,
    ) -> DeltaError {
        DeltaError::corrupt(
            self.dir.join(MANIFEST),
            format!("tensor {:?}: {problem}", tensor.tensor),
        )
    }

    fn read(&self, blob: &Blob) -> Result<Vec<u8>, DeltaError> {
        let mut bytes = Vec::new();
        self.payload
            .read(blob.payload, blob.offset, blob.size, &mut bytes)?;
        Ok(bytes)
    }

    /// The base's tensor that the artifact names.
    pub(crate) fn base<'b>(
        &self,
        tensor: &SvdTensor,
        base: &'b Model,
    ) -> Result<Option<TensorHandle<'b>>, DeltaError> {
        let Some([file, name]) = &tensor.base else {
            return Ok(None);
        };
        let found = base
            .tensors()
            .find(|t| t.name() == name && t.file.name == *file)
            .or_else(|| base.tensor(name));
        found
            .map(Some)
            .ok_or_else(|| self.corrupt(tensor, format!("the base has no tensor {name:?}")))
    }

    /// The bytes of a tensor that is kept exactly.
    pub(crate) fn exact(&self, tensor: &SvdTensor, base: &Model) -> Result<Vec<u8>, DeltaError> {
        let Some(blob) = &tensor.blob else {
            return Ok(Vec::new());
        };
        let base = self.base(tensor, base)?;
        let form = base.map(Form::of);
        let view = base.zip(form.as_ref()).map(|(base, form)| TensorView {
            data: base.data(),
            ..form.view(&[])
        });
        let decoded = sparse_codec::decode_buffer(&self.read(blob)?, view)
            .map_err(|error| self.corrupt(tensor, error))?;
        if decoded.data.len() as u64 == tensor.bytes {
            Ok(decoded.data)
        } else {
            Err(self.corrupt(tensor, "its bytes are too many or too few"))
        }
    }

    /// The approximated matrices of a tensor at one of the artifact's ranks.
    pub(crate) fn approximations<'b>(
        &self,
        tensor: &SvdTensor,
        base: &'b Model,
        rank: u64,
    ) -> Result<Vec<Approximation<'b>>, DeltaError> {
        let corrupt = |problem: &str| self.corrupt(tensor, problem);
        let precision = Precision::parse(&self.manifest.precision)
            .ok_or_else(|| corrupt("its factors have no known precision"))?;
        let [count, rows, cols] = tensor
            .matrices()
            .ok_or_else(|| corrupt("it is no matrix"))?;
        let base = self
            .base(tensor, base)?
            .ok_or_else(|| corrupt("it has no base"))?;
        let (float, dtype) = Float::of(base.dtype())
            .zip(Float::of(sparse_codec::DType::parse(&tensor.dtype)))
            .ok_or_else(|| corrupt("its dtype is not one of F32, F16 and BF16"))?;
        if base.shape() != tensor.shape || tensor.bytes != base.params() * dtype.size() as u64 {
            return Err(corrupt("its shape is not the base's"));
        }
        // From here on all sizes are those of a tensor that lies in a file.
        let data = match &tensor.blob {
            Some(blob) => self.read(blob)?,
            None => Vec::new(),
        };
        let signs = tensor
            .signs
            .as_ref()
            .map(|blob| self.read(blob))
            .transpose()?;
        let component = precision
            .component(rows, cols)
            .ok_or_else(|| corrupt("it is too large"))?;
        let (mut data, mut signs) = (data.as_slice(), signs.as_deref());
        let mut found = Vec::new();
        for (bases, stored) in base
            .data()
            .chunks_exact(rows * cols * float.size())
            .zip(&tensor.ranks)
        {
            let stored = usize::try_from(*stored).map_err(|_| corrupt("its rank is too large"))?;
            let (factors, rest) = component
                .checked_mul(stored)
                .and_then(|size| data.split_at_checked(size))
                .ok_or_else(|| corrupt("its factors are cut short"))?;
            data = rest;
            let wanted = stored.min(usize::try_from(rank).unwrap_or(usize::MAX));
            let factors = Factors::decode(precision, [rows, cols], wanted, factors)
                .map_err(|error| self.corrupt(tensor, error))?;
            let signs = match signs {
                None => None,
                Some(all) => {
                    let (mine, rest) = Signs::bytes(rows, cols)
                        .and_then(|size| all.split_at_checked(size))
                        .ok_or_else(|| corrupt("its signs are cut short"))?;
                    signs = Some(rest);
                    Some(
                        Signs::decode([rows, cols], mine)
                            .map_err(|error| self.corrupt(tensor, error))?,
                    )
                }
            };
            found.push(Approximation {
                factors,
                signs,
                base: (float, bases),
                dtype,
            });
        }
        if found.len() == count && data.is_empty() {
            Ok(found)
        } else {
            Err(corrupt("its factors are of another number"))
        }
    }
}
