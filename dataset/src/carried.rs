//! Files beside the data that Python's `datasets` reads: what a folder that it saved needs to be loaded again, and the card of a
//! dataset. They are carried as they are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sparse_delta::Blob;
use sparse_store::safe_join;

use crate::DatasetError;
use crate::artifact::within;
use crate::error::During as _;
use crate::manifest::DatasetManifest;

/// The names of such files.
const NAMES: [&str; 5] = [
    "README.md",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
];
/// A larger file is something else, and is left out.
const MOST: u64 = 1 << 20;
/// Bytes of all of them together.
const MOST_IN_ALL: u64 = 64 << 20;

/// Whether a file of this name and size is carried.
pub(crate) fn is_carried(name: &str, bytes: u64) -> bool {
    NAMES.contains(&name) && bytes <= MOST
}

/// Files as an artifact has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Path below the dataset, and bytes.
    pub files: Vec<(String, u64)>,
    /// Where they are in `payload.bin`: one zstd frame of all, one after another.
    pub blob: Blob,
}

/// Appends files to a payload; `None` if there are none.
pub(crate) fn append(
    payload: &mut Vec<u8>,
    files: &[(String, PathBuf)],
) -> Result<Option<Carried>, DatasetError> {
    let mut all = Vec::new();
    let mut listed = Vec::new();
    for (relative, path) in files {
        let bytes = std::fs::read(path).during("read", path)?;
        listed.push((relative.clone(), bytes.len() as u64));
        all.extend_from_slice(&bytes);
    }
    if listed.is_empty() || all.len() as u64 > MOST_IN_ALL {
        return Ok(None);
    }
    let packed =
        zstd::bulk::compress(&all, 19).map_err(|e| DatasetError::internal(e.to_string()))?;
    let blob = Blob {
        payload: 0,
        offset: payload.len() as u64,
        size: packed.len() as u64,
        raw: all.len() as u64,
    };
    payload.extend_from_slice(&packed);
    Ok(Some(Carried {
        files: listed,
        blob,
    }))
}

/// The files of an artifact, with what is in each.
pub(crate) fn read(
    payload: &[u8],
    carried: &Carried,
) -> Result<Vec<(String, Vec<u8>)>, DatasetError> {
    let damaged = || DatasetError::damaged("the files beside the data cannot be unpacked");
    let Blob {
        offset, size, raw, ..
    } = carried.blob;
    if raw > MOST_IN_ALL {
        return Err(damaged());
    }
    let place = |at: u64| usize::try_from(at).ok();
    let packed = within(payload, offset, size).ok_or_else(damaged)?;
    let all =
        zstd::bulk::decompress(packed, place(raw).ok_or_else(damaged)?).map_err(|_| damaged())?;
    let mut rest = all.as_slice();
    let mut files = Vec::new();
    for (relative, bytes) in &carried.files {
        let bytes = place(*bytes).ok_or_else(damaged)?;
        let (own, after) = rest.split_at_checked(bytes).ok_or_else(damaged)?;
        files.push((relative.clone(), own.to_vec()));
        rest = after;
    }
    if !rest.is_empty() {
        return Err(damaged());
    }
    Ok(files)
}

/// Writes files below a folder.
pub(crate) fn write(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<(), DatasetError> {
    for (relative, bytes) in files {
        let path = safe_join(folder, relative)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).during("create", parent)?;
        }
        std::fs::write(&path, bytes).during("write", &path)?;
    }
    Ok(())
}

/// Whether a folder has them all as they are.
pub(crate) fn are_there(folder: &Path, files: &[(String, Vec<u8>)]) -> bool {
    files.iter().all(|(relative, bytes)| {
        safe_join(folder, relative)
            .is_ok_and(|path| std::fs::read(path).is_ok_and(|found| found == *bytes))
    })
}

/// The paths of everything a dataset has.
pub(crate) fn paths(manifest: &DatasetManifest) -> impl Iterator<Item = &str> {
    let data = manifest.splits.iter().flat_map(|split| &split.files);
    let carried = manifest.carried.iter().flat_map(|carried| &carried.files);
    data.chain(carried).map(|(path, _)| path.as_str())
}
