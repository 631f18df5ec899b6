//! Locks between processes on files that stay where they are. A lock dies with its process.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::CacheError;
use crate::error::During;

/// An open lock file, locked or not.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    pub(crate) fn open(path: &Path) -> Result<Self, CacheError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .during("open", path)?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
        })
    }

    /// Shares the lock, if nobody has it for itself. Of one that is held exclusively this makes a shared one.
    pub(crate) fn try_shared(&self) -> Result<bool, CacheError> {
        self.attempt(FlockOperation::NonBlockingLockShared)
    }

    /// Takes the lock, if nobody else has it.
    pub(crate) fn try_exclusive(&self) -> Result<bool, CacheError> {
        self.attempt(FlockOperation::NonBlockingLockExclusive)
    }

    /// Lets go.
    pub(crate) fn unlock(&self) -> Result<(), CacheError> {
        self.attempt(FlockOperation::Unlock).map(|_| ())
    }

    /// Waits for the lock. Only for work that is done in no time.
    pub(crate) fn wait_exclusive(&self) -> Result<(), CacheError> {
        while !self.attempt(FlockOperation::LockExclusive)? {}
        Ok(())
    }

    fn attempt(&self, operation: FlockOperation) -> Result<bool, CacheError> {
        match flock(&self.file, operation) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error).during("lock", &self.path),
        }
    }
}

/// How long to sleep between two looks: short at first, and never in step with others.
pub(crate) fn pause(since: Instant) -> Duration {
    let jitter = u64::from(Instant::now().elapsed().subsec_nanos() ^ std::process::id()) % 7;
    let waited = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis((waited / 8).clamp(2, 50) + jitter)
}
