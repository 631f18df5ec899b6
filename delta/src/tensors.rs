//! The tensors that an artifact makes of its base, one at a time: a delta of any kind as a model that is nowhere whole.

use std::collections::HashMap;
use std::path::Path;

use rayon::ThreadPool;
use sparse_codec::DType;
use sparse_store::Model;

use crate::artifact::{self, Artifact};
use crate::manifest::MANIFEST;
use crate::rebuild::Rebuild;
use crate::svd::{Kept, SvdArtifact, SvdTensor};
use crate::wrong_base::{refuse_other_base, refuse_wrong_base};
use crate::{DeltaError, seal};

/// An artifact whose tensors can be asked for.
#[derive(Debug)]
pub struct DeltaTensors<'b> {
    base: &'b Model,
    kind: Kind,
    numbers: HashMap<String, usize>,
}

#[derive(Debug)]
enum Kind {
    /// Coded blocks: exact, or INT8.
    Blocks(Box<Artifact>),
    LowRank {
        artifact: Box<SvdArtifact>,
        rank: u64,
    },
}

impl<'b> DeltaTensors<'b> {
    /// Opens the artifact in a folder, lossless or not, and checks that `base` is the one it was made against. `rank` is one
    /// of those of a low-rank approximation; its largest where it is not given.
    ///
    /// # Errors
    /// An artifact that cannot be read, another base, a rank that the artifact does not have.
    pub fn open(
        dir: &Path,
        base: &'b Model,
        rank: Option<u64>,
        pool: &ThreadPool,
    ) -> Result<Self, DeltaError> {
        let (path, bytes) = artifact::manifest_bytes(dir, "compress")?;
        let value = seal::value(&path, &bytes)?;
        let svd = value.get("delta_type").and_then(|kind| kind.as_str()) == Some("svd_delta");
        let kind = if svd {
            let artifact = SvdArtifact::open(dir)?;
            let manifest = &artifact.manifest;
            refuse_other_base(&manifest.base, &manifest.base_model_id, base, pool)?;
            let rank = artifact.rank(rank)?;
            Kind::LowRank {
                artifact: Box::new(artifact),
                rank,
            }
        } else {
            if rank.is_some() {
                return Err(DeltaError::usage(format!(
                    "{} is no low-rank approximation: leave the rank out",
                    dir.display()
                )));
            }
            let artifact = Artifact::open(dir)?;
            refuse_wrong_base(&artifact, base, pool)?;
            Kind::Blocks(Box::new(artifact))
        };
        let names: Vec<&str> = match &kind {
            Kind::Blocks(artifact) => artifact.tensors.iter().map(|t| t.name.as_str()).collect(),
            Kind::LowRank { artifact, .. } => {
                let tensors = &artifact.manifest.tensors;
                tensors.iter().map(|t| t.tensor.as_str()).collect()
            }
        };
        let mut numbers = HashMap::new();
        for (number, name) in names.into_iter().enumerate() {
            // As in a model: of two files with a tensor of one name, the first file's.
            numbers.entry(name.to_owned()).or_insert(number);
        }
        Ok(Self {
            base,
            kind,
            numbers,
        })
    }

    /// What kind of delta it is, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Blocks(artifact) => match &artifact.manifest.lossy {
                Some(lossy) => format!("INT8 delta, a scale for each {}", lossy.granularity),
                None => "lossless delta".to_owned(),
            },
            Kind::LowRank { artifact, rank } => format!(
                "low-rank approximation, rank {rank}, {} factors{}",
                artifact.manifest.precision,
                if artifact.manifest.signs {
                    " and signs"
                } else {
                    ""
                }
            ),
        }
    }

    /// Bytes of the artifact.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.kind {
            Kind::Blocks(artifact) => artifact.manifest.artifact_bytes,
            Kind::LowRank { artifact, .. } => artifact.manifest.compressed_size_bytes,
        }
    }

    /// Dtype as written, and shape, of a tensor.
    #[must_use]
    pub fn form(&self, name: &str) -> Option<(&str, &[u64])> {
        let number = *self.numbers.get(name)?;
        match &self.kind {
            Kind::Blocks(artifact) => {
                let row = artifact.tensors.get(number)?;
                Some((row.dtype.as_str(), row.shape.as_slice()))
            }
            Kind::LowRank { artifact, .. } => {
                let tensor = artifact.manifest.tensors.get(number)?;
                Some((tensor.dtype.as_str(), tensor.shape.as_slice()))
            }
        }
    }

    /// The dtype of a tensor; none where it is not known.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.form(name).and_then(|(dtype, _)| DType::parse(dtype))
    }

    /// Bytes of a tensor in the artifact.
    #[must_use]
    pub fn stored(&self, name: &str) -> Option<u64> {
        let number = *self.numbers.get(name)?;
        match &self.kind {
            Kind::Blocks(artifact) => {
                let row = artifact.tensors.get(number)?;
                Some(row.header + row.stored())
            }
            Kind::LowRank { artifact, .. } => {
                Some(artifact.manifest.tensors.get(number)?.stored_bytes)
            }
        }
    }

    /// The bytes that the artifact makes of a tensor.
    ///
    /// # Errors
    /// A tensor that the artifact does not have, or that it does not make as it should.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, DeltaError> {
        let number = *self.numbers.get(name).ok_or_else(|| DeltaError::NotFound {
            what: format!("tensor {name:?} of the delta"),
            remedy: "give the delta that was made of this fine-tune".into(),
        })?;
        match &self.kind {
            Kind::Blocks(artifact) => Rebuild::new(artifact, self.base)?.tensor(number),
            Kind::LowRank { artifact, rank } => low_rank(artifact, self.base, *rank, number),
        }
    }
}

fn low_rank(
    artifact: &SvdArtifact,
    base: &Model,
    rank: u64,
    number: usize,
) -> Result<Vec<u8>, DeltaError> {
    let tensors = &artifact.manifest.tensors;
    let missing = || DeltaError::corrupt(artifact.dir.join(MANIFEST), "it lacks a tensor");
    let tensor: &SvdTensor = tensors.get(number).ok_or_else(missing)?;
    let source = match (tensor.kept, tensor.of) {
        (Kept::Twin, Some(of)) => usize::try_from(of)
            .ok()
            .filter(|of| *of < number)
            .and_then(|of| tensors.get(of))
            .ok_or_else(missing)?,
        _ => tensor,
    };
    let bytes = match source.kept {
        Kept::LowRank => {
            let mut bytes = Vec::new();
            for matrix in artifact.approximations(source, base, rank)? {
                matrix.each(|rows| {
                    bytes.extend_from_slice(rows);
                    Ok::<_, DeltaError>(())
                })?;
            }
            bytes
        }
        Kept::Same => artifact
            .base(source, base)?
            .map(|base| base.data().to_vec())
            .unwrap_or_default(),
        Kept::Exact | Kept::Twin => artifact.exact(source, base)?,
    };
    if bytes.len() as u64 == tensor.bytes {
        Ok(bytes)
    } else {
        Err(artifact.corrupt(tensor, "its bytes are too many or too few"))
    }
}
