//! `payload-*.bin`: runs of bytes, one after another. The index and the manifest say where each begins.
//!
//! Runs of 64 KiB and more begin at a multiple of 64 bytes, which costs at most one byte in a thousand and lets them be
//! mapped, or read straight into pinned memory; smaller ones are decoded by copying and are not aligned.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::DeltaError;
use crate::error::During;
use crate::manifest::{Blob, PayloadEntry, payload_name};

const ALIGN: usize = 64;
const ALIGN_FROM: usize = 64 << 10;
/// A payload file that has reached this size is followed by another: pieces an object store takes well.
const FILE_SIZE: u64 = 1 << 30;
/// Bytes gathered before a write.
const BUFFER: usize = 1 << 20;

/// Writes payload files one after another; without a folder it only counts and hashes (a dry run).
pub(crate) struct PayloadWriter {
    dir: Option<PathBuf>,
    file_size: u64,
    current: Option<(PathBuf, Option<File>)>,
    buffer: Vec<u8>,
    offset: u64,
    hasher: blake3::Hasher,
    done: Vec<PayloadEntry>,
}

impl PayloadWriter {
    pub(crate) fn new(dir: Option<&Path>) -> Self {
        Self {
            dir: dir.map(Path::to_path_buf),
            file_size: FILE_SIZE,
            current: None,
            buffer: Vec::with_capacity(BUFFER),
            offset: 0,
            hasher: blake3::Hasher::new(),
            done: Vec::new(),
        }
    }

    #[cfg(test)]
    fn with_file_size(mut self, size: u64) -> Self {
        self.file_size = size;
        self
    }

    /// Begins a run of about `size` bytes. Returns the payload file's number and where in it the run begins.
    pub(crate) fn begin(&mut self, size: usize) -> Result<(u32, u64), DeltaError> {
        if self.current.is_some() && self.offset >= self.file_size {
            self.close()?;
        }
        if self.current.is_none() {
            let name = payload_name(self.done.len());
            let path = self
                .dir
                .as_ref()
                .map_or_else(|| PathBuf::from(&name), |dir| dir.join(&name));
            let file = self
                .dir
                .is_some()
                .then(|| File::create_new(&path))
                .transpose()
                .during("create", &path)?;
            self.current = Some((path, file));
        }
        if size >= ALIGN_FROM {
            let padding = self.offset.next_multiple_of(ALIGN as u64) - self.offset;
            self.write(&[0; ALIGN][..usize::try_from(padding).unwrap_or(0)])?;
        }
        let number = u32::try_from(self.done.len())
            .map_err(|_| DeltaError::internal("too many payload files"))?;
        Ok((number, self.offset))
    }

    /// Adds bytes to the run.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), DeltaError> {
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            return self.through(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// A whole run.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(u32, u64), DeltaError> {
        let place = self.begin(bytes.len())?;
        self.write(bytes)?;
        Ok(place)
    }

    /// Where the next byte goes.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    fn through(&mut self, bytes: &[u8]) -> Result<(), DeltaError> {
        match &mut self.current {
            Some((path, Some(file))) => file.write_all(bytes).during("write", path),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), DeltaError> {
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.through(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        result
    }

    fn close(&mut self) -> Result<(), DeltaError> {
        self.flush()?;
        if self.current.take().is_some() {
            let hash = std::mem::take(&mut self.hasher).finalize();
            let entry = PayloadEntry {
                file: payload_name(self.done.len()),
                size: std::mem::take(&mut self.offset),
                blake3: hash.to_hex().to_string(),
            };
            self.done.push(entry);
        }
        Ok(())
    }

    /// Ends the last file and describes all of them.
    pub(crate) fn finish(mut self) -> Result<Vec<PayloadEntry>, DeltaError> {
        self.close()?;
        Ok(self.done)
    }
}

/// Reads runs from the payload files of an artifact, from any thread.
#[derive(Debug)]
pub(crate) struct PayloadReader {
    files: Vec<(PathBuf, File, u64)>,
}

impl PayloadReader {
    /// Opens the payload files, whose sizes must be those of the manifest.
    pub(crate) fn open(dir: &Path, entries: &[PayloadEntry]) -> Result<Self, DeltaError> {
        let mut files = Vec::with_capacity(entries.len().min(1024));
        for entry in entries {
            let path = sparse_store::safe_join(dir, &entry.file)?;
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(DeltaError::corrupt(
                        path,
                        "the manifest names it, and it is missing",
                    ));
                }
                Err(error) => return Err(DeltaError::io("open", path, error)),
            };
            let meta = file.metadata().during("read the size of", &path)?;
            if !meta.is_file() || meta.len() != entry.size {
                let problem = format!(
                    "it has {} bytes where the manifest says {}",
                    meta.len(),
                    entry.size
                );
                return Err(DeltaError::corrupt(path, problem));
            }
            files.push((path, file, entry.size));
        }
        Ok(Self { files })
    }

    /// The path of a payload file, for messages.
    pub(crate) fn path(&self, payload: u32) -> PathBuf {
        self.files
            .get(payload as usize)
            .map(|f| f.0.clone())
            .unwrap_or_default()
    }

    /// Whether a run lies in its file.
    pub(crate) fn holds(&self, payload: u32, offset: u64, length: u64) -> bool {
        let size = self.files.get(payload as usize).map(|f| f.2);
        matches!((size, offset.checked_add(length)), (Some(size), Some(end)) if end <= size)
    }

    /// Reads a run into `buffer`, which takes its length.
    pub(crate) fn read(
        &self,
        payload: u32,
        offset: u64,
        length: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), DeltaError> {
        let outside = || {
            DeltaError::corrupt(
                self.path(payload),
                format!("{length} bytes at {offset} lie outside of it"),
            )
        };
        if !self.holds(payload, offset, length) {
            return Err(outside());
        }
        // No larger than the file on disk, so nothing is allocated that a few bytes of manifest only claim.
        buffer.resize(usize::try_from(length).map_err(|_| outside())?, 0);
        let (path, file, _) = self.files.get(payload as usize).ok_or_else(outside)?;
        file.read_exact_at(buffer, offset).during("read", path)
    }

    /// A reader over a blob.
    pub(crate) fn reader(&self, blob: &Blob) -> BlobReader<'_> {
        BlobReader {
            payload: self.files.get(blob.payload as usize).map(|f| &f.1),
            at: blob.offset,
            left: blob.size,
        }
    }
}

/// Reads a blob from start to end.
pub(crate) struct BlobReader<'a> {
    payload: Option<&'a File>,
    at: u64,
    left: u64,
}

impl std::io::Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(file) = self.payload else {
            return Ok(0);
        };
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = file.read_at(&mut buffer[..want], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn runs_read_back_and_large_ones_are_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = PayloadWriter::new(Some(dir.path())).with_file_size(3 << 20);
        let mut dry = PayloadWriter::new(None).with_file_size(3 << 20);
        let runs: Vec<Vec<u8>> = [1_usize, 0, 70_000, 3, 2 << 20, 5, 1 << 20, 65_536, 9]
            .iter()
            .enumerate()
            .map(|(i, &n)| (0..n).map(|j| (i * 31 + j * 7).to_le_bytes()[0]).collect())
            .collect();
        let places: Vec<_> = runs.iter().map(|run| writer.append(run).unwrap()).collect();
        let dry_places: Vec<_> = runs.iter().map(|run| dry.append(run).unwrap()).collect();
        assert_eq!(places, dry_places);
        let entries = writer.finish().unwrap();
        assert_eq!(entries, dry.finish().unwrap());
        assert_eq!(entries.len(), 2);
        for entry in &entries {
            assert_eq!(
                blake3::hash(&std::fs::read(dir.path().join(&entry.file)).unwrap())
                    .to_hex()
                    .as_str(),
                entry.blake3
            );
        }
        let reader = PayloadReader::open(dir.path(), &entries).unwrap();
        let mut buffer = Vec::new();
        for (run, (payload, offset)) in runs.iter().zip(places) {
            reader
                .read(payload, offset, run.len() as u64, &mut buffer)
                .unwrap();
            assert_eq!(&buffer, run);
            assert!(run.len() < ALIGN_FROM || offset % ALIGN as u64 == 0);
        }
        assert!(reader.read(0, u64::MAX, 1, &mut buffer).is_err());
        assert!(reader.read(9, 0, 1, &mut buffer).is_err());
    }

    #[test]
    fn missing_and_short_files_are_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let entry = PayloadEntry {
            file: payload_name(0),
            size: 4,
            blake3: String::new(),
        };
        let open = || PayloadReader::open(dir.path(), std::slice::from_ref(&entry)).unwrap_err();
        assert!(open().to_string().contains("missing"));
        std::fs::write(dir.path().join(payload_name(0)), b"abc").unwrap();
        assert!(open().to_string().contains("3 bytes"));
    }
}
