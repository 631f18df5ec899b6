//! The tensors of a model on this machine: headers at once, samples of the data by small reads. Nothing is mapped: a page fault
//! would read ahead far more than a sample.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sparse_codec::DType;
use sparse_store::{Header, ShardIndex, StoreError};

/// The deepest folder looked into for the parts of a pipeline.
const MAX_DEPTH: usize = 3;
/// The most files of one model.
const MAX_FILES: usize = 10_000;
/// The largest shard index read.
const MAX_INDEX: u64 = 256 << 20;

/// A tensor and where it is.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    /// Number of its file.
    file: usize,
    /// Where its bytes begin in the file.
    start: u64,
}

impl Tensor {
    pub(crate) fn params(&self) -> u64 {
        self.shape.iter().product()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The dimensions after the first.
    pub(crate) fn row_shape(&self) -> &[u64] {
        self.shape.get(1..).unwrap_or(&[])
    }
}

/// The tensors of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    files: Vec<PathBuf>,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Sorted by name, each name once.
    pub(crate) tensors: Vec<Tensor>,
}

impl Weights {
    /// Reads the headers of a safetensors file, or of those of a folder.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let files = if path.is_dir() {
            weight_files(path)?
        } else {
            vec![path.to_path_buf()]
        };
        let mut tensors = Vec::new();
        let mut bytes = 0_u64;
        for (number, file) in files.iter().enumerate() {
            let (header, size) = read_header(file)?;
            bytes = bytes.saturating_add(size);
            tensors.extend(header.entries.into_iter().map(|entry| Tensor {
                name: entry.name,
                dtype: entry.dtype,
                shape: entry.shape,
                file: number,
                start: entry.range.start,
            }));
        }
        tensors.sort_by(|a, b| (&a.name, a.file).cmp(&(&b.name, b.file)));
        tensors.dedup_by(|later, first| later.name == first.name);
        Ok(Self {
            files,
            bytes,
            tensors,
        })
    }

    /// Opens the files, to read samples.
    pub(crate) fn reader(&self) -> Result<Reader<'_>, StoreError> {
        let open = |path: &PathBuf| {
            let file = File::open(path).map_err(|error| io("open", path, error))?;
            // Samples are far apart: what is read ahead would be for nothing. A system that cannot be told is slower.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
            Ok(file)
        };
        Ok(Reader {
            weights: self,
            files: self
                .files
                .iter()
                .map(open)
                .collect::<Result<_, StoreError>>()?,
            bytes: 0,
        })
    }
}

/// Reads samples of a model, and counts their bytes.
pub(crate) struct Reader<'w> {
    weights: &'w Weights,
    files: Vec<File>,
    pub(crate) bytes: u64,
}

impl Reader<'_> {
    /// The values of `count` elements of a tensor from element `start` on.
    pub(crate) fn values(
        &mut self,
        tensor: &Tensor,
        dtype: DType,
        start: u64,
        count: usize,
    ) -> Result<Vec<f32>, StoreError> {
        let width = u64::from(dtype.bits() / 8);
        let mut bytes = vec![0_u8; count * usize::try_from(width).unwrap_or(8)];
        let at = tensor.start + start * width;
        if let (Some(file), Some(path)) = (
            self.files.get(tensor.file),
            self.weights.files.get(tensor.file),
        ) {
            file.read_exact_at(&mut bytes, at)
                .map_err(|error| io("read", path, error))?;
        }
        self.bytes += bytes.len() as u64;
        let mut values = Vec::with_capacity(count);
        // Only float types come here, which all have values.
        let _ = sparse_codec::to_f32(dtype, &bytes, &mut values);
        Ok(values)
    }
}

/// The header of a safetensors file, checked, and the file's size.
fn read_header(path: &Path) -> Result<(Header, u64), StoreError> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(|error| io("open", path, error))?;
    let meta = file
        .metadata()
        .map_err(|error| io("look at", path, error))?;
    let size = meta.len();
    let mut first = vec![0_u8; usize::try_from(size.min(8)).unwrap_or(8)];
    file.read_exact_at(&mut first, 0)
        .map_err(|error| io("read", path, error))?;
    let needed = Header::needed(&shown, &first, size)?;
    let mut start = vec![0_u8; usize::try_from(needed).unwrap_or(0)];
    file.read_exact_at(&mut start, 0)
        .map_err(|error| io("read", path, error))?;
    Ok((Header::parse(&shown, &start, size)?, size))
}

/// The weight files of a folder: those its shard indexes name and the others at its top; where there are none at its top, those
/// further down. A checkpoint that lies there twice (`model.safetensors` and `consolidated.safetensors`) counts once: an index,
/// or `model.safetensors`, decides.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut at_top = Vec::new();
    let mut folders = Vec::new();
    for (name, path, is_dir) in list(folder)? {
        if is_dir {
            folders.push(path);
        } else {
            at_top.push((name, path));
        }
    }
    let index = at_top
        .iter()
        .find(|(name, _)| name == "model.safetensors.index.json")
        .or_else(|| {
            at_top
                .iter()
                .find(|(name, _)| name.ends_with(".safetensors.index.json"))
        });
    if let Some((_, path)) = index {
        let meta = std::fs::metadata(path).map_err(|error| io("look at", path, error))?;
        if meta.len() > MAX_INDEX {
            return Err(StoreError::Index {
                file: path.display().to_string(),
                problem: format!(
                    "it is {} bytes long and the limit is {MAX_INDEX}",
                    meta.len()
                ),
                remedy: "download or export the checkpoint again".to_owned(),
            });
        }
        let json = std::fs::read(path).map_err(|error| io("read", path, error))?;
        let index = ShardIndex::parse(&path.display().to_string(), &json)?;
        return index
            .shards()
            .into_iter()
            .map(|shard| sparse_store::safe_join(folder, shard))
            .collect();
    }
    if let Some((_, path)) = at_top.iter().find(|(name, _)| name == "model.safetensors") {
        return Ok(vec![path.clone()]);
    }
    let mut files: Vec<PathBuf> = at_top
        .into_iter()
        .filter(|(name, _)| is_weights(name))
        .map(|(_, path)| path)
        .collect();
    let mut depth = 0;
    while files.is_empty() && depth < MAX_DEPTH && !folders.is_empty() {
        depth += 1;
        let mut next = Vec::new();
        for folder in folders {
            for (name, path, is_dir) in list(&folder)? {
                match is_dir {
                    true => next.push(path),
                    false if is_weights(&name) => files.push(path),
                    false => {}
                }
            }
        }
        folders = next;
    }
    files.sort();
    files.truncate(MAX_FILES);
    if files.is_empty() {
        return Err(StoreError::NotAModel {
            path: folder.display().to_string(),
            problem: "no *.safetensors file is in it".to_owned(),
            remedy: "convert the weights to safetensors first".to_owned(),
        });
    }
    Ok(files)
}

pub(crate) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Name, path and whether it is a folder, for everything in a folder that is not hidden, sorted. Links to files are followed (the
/// Hub's cache is made of them), links to folders are not.
pub(crate) fn list(folder: &Path) -> Result<Vec<(String, PathBuf, bool)>, StoreError> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for entry in std::fs::read_dir(folder).map_err(|error| io("list", folder, error))? {
        let entry = entry.map_err(|error| io("list", folder, error))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with('.') || !seen.insert(name.clone()) {
            continue;
        }
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = entry.path();
        let is_dir = kind.is_dir();
        let is_file = kind.is_file() || (kind.is_symlink() && path.is_file());
        if is_dir || is_file {
            found.push((name, path, is_dir));
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}
