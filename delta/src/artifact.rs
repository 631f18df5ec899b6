//! An artifact on disk, opened and checked: every size, place, path and count against the others before anything is
//! decoded or allocated for it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;

use crate::carried::Carrier;
use crate::error::During;
use crate::index::{self, Source, TensorRow};
use crate::manifest::{INDEX, MANIFEST, MAX_MANIFEST};
use crate::payload::PayloadReader;
use crate::{DeltaError, DeltaManifest, blobs, seal};

/// Bytes of tensor headers after which a frame is closed.
pub(crate) const FRAME_SIZE: usize = 4 << 20;
/// Frames that are kept once unpacked: tensors are visited in order, a few at a time.
const KEPT_FRAMES: usize = 4;

/// Where the header of a tensor is: in which frame, and from where.
#[derive(Clone, Copy, Debug, Default)]
struct HeaderPlace {
    frame: usize,
    start: u64,
}

type Frame = (usize, Arc<Vec<u8>>);

#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: DeltaManifest,
    pub(crate) tensors: Vec<TensorRow>,
    pub(crate) payload: PayloadReader,
    places: Vec<HeaderPlace>,
    frames: Mutex<Vec<Frame>>,
}

/// Reads the manifest of an artifact folder.
pub(crate) fn read_manifest(dir: &Path) -> Result<DeltaManifest, DeltaError> {
    let (path, bytes) = manifest_bytes(dir, "compress")?;
    DeltaManifest::parse(&path, &bytes)
}

/// Whether a folder holds a low-rank approximation, by what its manifest calls itself.
pub(crate) fn is_svd(dir: &Path) -> Result<bool, DeltaError> {
    let (path, bytes) = manifest_bytes(dir, "compress")?;
    let value = seal::value(&path, &bytes)?;
    Ok(value.get("delta_type").and_then(serde_json::Value::as_str) == Some("svd_delta"))
}

/// The manifest of a folder as bytes, and its path; `command` makes such folders.
pub(crate) fn manifest_bytes(dir: &Path, command: &str) -> Result<(PathBuf, Vec<u8>), DeltaError> {
    let path = dir.join(MANIFEST);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            let (what, remedy) = if dir.is_dir() {
                (
                    format!("a delta in {} (it has no {MANIFEST})", dir.display()),
                    format!("give the folder that `{command}` wrote"),
                )
            } else {
                (
                    format!("the delta {}", dir.display()),
                    "check the path".into(),
                )
            };
            return Err(DeltaError::NotFound { what, remedy });
        }
        Err(error) => return Err(DeltaError::io("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST + 1)
        .read_to_end(&mut bytes)
        .during("read", &path)?;
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(DeltaError::corrupt(
            path,
            "it is far too large for a manifest",
        ));
    }
    Ok((path, bytes))
}

/// What kind of delta a folder says it holds: the `delta_type` of its manifest. `None` where that cannot be read.
#[must_use]
pub fn delta_type(dir: &Path) -> Option<String> {
    let (_, bytes) = manifest_bytes(dir, "compress").ok()?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    Some(value.get("delta_type")?.as_str()?.to_owned())
}

/// Whether a folder holds something that calls itself the manifest of a delta, readable or not.
pub(crate) fn is_artifact(dir: &Path) -> bool {
    match read_manifest(dir) {
        Ok(_) | Err(DeltaError::Version { .. }) => true,
        // Damaged ones are still ours where the rest of the folder looks like it.
        Err(DeltaError::Corrupt { .. }) => dir.join(INDEX).is_file(),
        Err(_) => false,
    }
}

impl Artifact {
    pub(crate) fn open(dir: &Path) -> Result<Self, DeltaError> {
        let manifest = read_manifest(dir)?;
        let path = dir.join(INDEX);
        let bytes = read_index(&path, &manifest)?;
        let tensors = index::read(&path, bytes, manifest.index.rows)?;
        let payload = PayloadReader::open(dir, &manifest.payloads)?;
        let places = place_headers(&manifest, &tensors)
            .map_err(|problem| DeltaError::corrupt(&path, problem))?;
        let artifact = Self {
            dir: dir.to_path_buf(),
            manifest,
            tensors,
            payload,
            places,
            frames: Mutex::new(Vec::new()),
        };
        artifact
            .check()
            .map_err(|problem| DeltaError::corrupt(&path, problem))?;
        Ok(artifact)
    }

    pub(crate) fn carrier(&self) -> Carrier<'_> {
        Carrier {
            dir: &self.dir,
            payload: &self.payload,
            base_id: &self.manifest.base_model_id,
        }
    }

    pub(crate) fn index_path(&self) -> PathBuf {
        self.dir.join(INDEX)
    }

    fn check(&self) -> Result<(), String> {
        if self.tensors.len() as u64 != self.manifest.num_layers {
            return Err(format!(
                "it has {} tensors where the manifest says {}",
                self.tensors.len(),
                self.manifest.num_layers
            ));
        }
        let mut files = self
            .manifest
            .files
            .iter()
            .map(|f| f.path.as_str())
            .peekable();
        for tensor in &self.tensors {
            // Tensors stand in the order of the files, so every file is passed once.
            while files.peek().is_some_and(|file| *file != &*tensor.file) {
                files.next();
            }
            if files.peek().is_none() {
                return Err(format!(
                    "tensor {:?} is in a file that the manifest does not have there ({:?})",
                    tensor.name, tensor.file
                ));
            }
            if let Source::Coded(blocks) = &tensor.source {
                for (number, block) in blocks.iter().enumerate() {
                    if !self
                        .payload
                        .holds(block.payload, block.offset, u64::from(block.length))
                    {
                        return Err(format!(
                            "block {number} of tensor {:?} lies outside its payload file",
                            tensor.name
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// The codec header of a tensor.
    pub(crate) fn header(&self, tensor: usize) -> Result<Vec<u8>, DeltaError> {
        let corrupt = || {
            DeltaError::corrupt(
                self.index_path(),
                format!("the header of tensor number {tensor} is not in its frame"),
            )
        };
        let row = self.tensors.get(tensor).ok_or_else(corrupt)?;
        if row.header == 0 {
            return Ok(Vec::new());
        }
        let place = self.places.get(tensor).copied().ok_or_else(corrupt)?;
        let frame = self.frame(place.frame)?;
        let start = usize::try_from(place.start).map_err(|_| corrupt())?;
        let length = usize::try_from(row.header).map_err(|_| corrupt())?;
        let end = start.checked_add(length).ok_or_else(corrupt)?;
        frame
            .get(start..end)
            .map(<[u8]>::to_vec)
            .ok_or_else(corrupt)
    }

    fn frame(&self, number: usize) -> Result<Arc<Vec<u8>>, DeltaError> {
        // Held while unpacking, so that neighbours wait for one frame rather than each unpack it.
        let mut kept = self
            .frames
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, frame)) = kept.iter().find(|(n, _)| *n == number) {
            return Ok(Arc::clone(frame));
        }
        let blob = self.manifest.frames.get(number);
        let blob = blob.ok_or_else(|| {
            DeltaError::corrupt(
                self.index_path(),
                "it has more headers than there are frames",
            )
        })?;
        let frame = Arc::new(blobs::unpack(&self.payload, blob, &[])?);
        if kept.len() >= KEPT_FRAMES {
            kept.remove(0);
        }
        kept.push((number, Arc::clone(&frame)));
        Ok(frame)
    }
}

fn read_index(path: &Path, manifest: &DeltaManifest) -> Result<Vec<u8>, DeltaError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DeltaError::corrupt(path, "it is missing"));
        }
        Err(error) => return Err(DeltaError::io("open", path, error)),
    };
    let size = file.metadata().during("read the size of", path)?.len();
    if size != manifest.index.size {
        let problem = format!(
            "it has {size} bytes where the manifest says {}",
            manifest.index.size
        );
        return Err(DeltaError::corrupt(path, problem));
    }
    let mut bytes = Vec::new();
    file.take(size)
        .read_to_end(&mut bytes)
        .during("read", path)?;
    if blake3::hash(&bytes).to_hex().as_str() != manifest.index.blake3 {
        return Err(DeltaError::corrupt(
            path,
            "its content does not match its hash in the manifest",
        ));
    }
    Ok(bytes)
}

/// Finds the frame of every header: they follow one another in order, and none spans two frames.
fn place_headers(
    manifest: &DeltaManifest,
    tensors: &[TensorRow],
) -> Result<Vec<HeaderPlace>, String> {
    let mut places = Vec::with_capacity(tensors.len());
    let (mut frame, mut start) = (0_usize, 0_u64);
    for tensor in tensors {
        if tensor.header == 0 {
            places.push(HeaderPlace::default());
            continue;
        }
        let fail = || format!("the header of tensor {:?} is not in its frame", tensor.name);
        let mut raw = manifest.frames.get(frame).map(|f| f.raw).ok_or_else(fail)?;
        if start == raw {
            (frame, start) = (frame + 1, 0);
            raw = manifest.frames.get(frame).map(|f| f.raw).ok_or_else(fail)?;
        }
        places.push(HeaderPlace { frame, start });
        start += tensor.header;
        if start > raw {
            return Err(fail());
        }
    }
    let complete = manifest.frames.get(frame).is_none_or(|f| f.raw == start)
        && frame + 1 >= manifest.frames.len();
    if complete {
        Ok(places)
    } else {
        Err("the frames hold more headers than there are tensors".into())
    }
}
