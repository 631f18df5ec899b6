//! Read-only maps of local files: zero-copy, of any size, with bounded resident memory.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};

use crate::error::{During, StoreError};

/// A multiple of every page size in use (4, 16 and 64 KiB).
const PAGE: usize = 64 << 10;

/// A whole file, mapped read-only.
///
/// Truncating a file while it is mapped makes the next touch of the lost pages a `SIGBUS` that ends the process: no
/// program can map files safely against that. So files are never written in place here (new file, then rename), which
/// leaves a map of the old file intact, and the size is checked again after mapping to catch a writer at work.
#[derive(Debug)]
pub struct Map {
    inner: Option<Mmap>,
}

impl Map {
    /// Maps the file at `path`, which must be a regular file; an empty file is an empty map.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let not_regular = |kind| {
            StoreError::io(
                "map",
                path,
                std::io::Error::new(std::io::ErrorKind::InvalidInput, kind),
            )
        };
        // Before opening: opening a pipe would wait for a writer that never comes.
        let before = std::fs::metadata(path).during("open", path)?;
        if before.is_dir() {
            return Err(not_regular("it is a folder, not a file"));
        }
        if !before.is_file() {
            return Err(not_regular("it is not a regular file"));
        }
        let file = File::open(path).during("open", path)?;
        let len = file.metadata().during("read the size of", path)?.len();
        if len == 0 {
            return Ok(Self { inner: None });
        }
        let size = usize::try_from(len)
            .map_err(|_| not_regular("it is too large for this machine's address space"))?;
        // SAFETY: the map is read-only and private; the type's documentation says what a concurrent truncation does,
        // and nothing in this product writes to a file that may be mapped.
        let map =
            unsafe { MmapOptions::new().len(size).map(file.as_raw_fd()) }.during("map", path)?;
        let after = file.metadata().during("read the size of", path)?.len();
        if after != len {
            return Err(not_regular(
                "its size changed while it was opened: another program is writing to it",
            ));
        }
        Ok(Self { inner: Some(map) })
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.inner.as_deref().unwrap_or(&[])
    }

    /// Lets go of the resident pages of `range`, which stay readable (from the page cache, or the disk).
    ///
    /// The 64 KiB that hold the end of the range are kept unless the file ends there, those that hold its start are not:
    /// a reader that releases behind itself, piece by piece, leaves nothing behind.
    pub fn release(&self, range: Range<u64>) {
        let Some(map) = &self.inner else { return };
        let end = usize::try_from(range.end)
            .unwrap_or(usize::MAX)
            .min(map.len());
        let end = if end == map.len() {
            end
        } else {
            end - end % PAGE
        };
        let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(end);
        let start = start - start % PAGE;
        if start < end {
            // SAFETY: MADV_DONTNEED on a read-only map of a file discards no data: the next access reads the file again.
            let released = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
            };
            if let Err(error) = released {
                tracing::debug!(%error, "pages were not released");
            }
        }
    }

    /// Asks the system to read `range` ahead, in the background.
    pub fn prefetch(&self, range: Range<u64>) {
        let Some(map) = &self.inner else { return };
        let end = usize::try_from(range.end)
            .unwrap_or(usize::MAX)
            .min(map.len());
        let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(end);
        if start < end
            && let Err(error) = map.advise_range(Advice::WillNeed, start, end - start)
        {
            tracing::debug!(%error, "pages were not read ahead");
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn maps_releases_and_reads_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let data: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        std::fs::write(&path, &data).unwrap();
        let map = Map::open(&path).unwrap();
        assert_eq!(map.bytes(), data);
        for start in (0..100_000).step_by(1000) {
            map.prefetch(start..start + 1000);
            map.release(start..start + 1000);
        }
        map.release(0..u64::MAX);
        map.release(Range { start: 5, end: 3 });
        map.release(u64::MAX - 1..u64::MAX);
        assert_eq!(map.bytes(), data);
    }

    #[test]
    fn an_empty_file_is_an_empty_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        let map = Map::open(&path).unwrap();
        assert!(map.bytes().is_empty());
        map.release(0..10);
        map.prefetch(0..10);
    }

    #[test]
    fn folders_pipes_and_missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Map::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("folder"), "{error}");
        let missing = dir.path().join("missing");
        assert!(
            Map::open(&missing)
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert!(
            Map::open(&pipe)
                .unwrap_err()
                .to_string()
                .contains("regular")
        );
    }

    #[test]
    fn released_pages_leave_resident_memory() {
        fn resident() -> u64 {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let map = Map::open(&path).unwrap();
        let before = resident();
        let mut sum = 0_u64;
        for (index, chunk) in map.bytes().chunks(1 << 20).enumerate() {
            sum += chunk
                .iter()
                .step_by(4096)
                .map(|&b| u64::from(b))
                .sum::<u64>();
            map.release((index as u64) << 20..(index as u64 + 1) << 20);
        }
        assert_eq!(sum, 0);
        assert!(
            resident() < before + (256 << 20),
            "resident memory grew with the file"
        );
    }
}
