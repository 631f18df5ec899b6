//! Keeps mapped files from filling the memory: pages are let go once they add up to too much.
//!
//! A mapped page that was read stays resident until somebody lets go of it. Tensors are released when they are done, but
//! one tensor may be many gigabytes, and analysis reads all of it. So a thread looks at the resident file pages now and
//! then and releases everything when they pass a limit; what is still in use is mapped again from the page cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sparse_store::Model;

/// Resident file pages above which everything is released.
const LIMIT: u64 = 192 << 20;
const EVERY: Duration = Duration::from_millis(4);
/// Resident file pages above which who reads on waits for the watch, and how often it looks: it may not be scheduled in time.
const MOST: u64 = 384 << 20;
const WAITS: usize = 200;

/// Watches that go on.
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// Waits a little while a watch has too much to release.
pub(crate) fn wait() {
    for _ in 0..WAITS {
        if WATCHES.load(Ordering::Relaxed) == 0
            || resident_file_bytes().is_none_or(|bytes| bytes <= MOST)
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A watch over mapped models.
pub struct Residency {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Residency {
    /// Watches the files of the models until dropped.
    #[must_use]
    pub fn watch(models: Vec<Arc<Model>>) -> Self {
        let size: u64 = models.iter().flat_map(|m| m.files()).map(|f| f.size).sum();
        let done = Arc::new(AtomicBool::new(false));
        if size <= LIMIT || resident_file_bytes().is_none() {
            return Self { done, thread: None };
        }
        let flag = Arc::clone(&done);
        let thread = std::thread::Builder::new()
            .name("sparse-residency".into())
            .spawn(move || {
                WATCHES.fetch_add(1, Ordering::Relaxed);
                while !flag.load(Ordering::Relaxed) {
                    std::thread::sleep(EVERY);
                    if resident_file_bytes().is_some_and(|bytes| bytes > LIMIT) {
                        for file in models.iter().flat_map(|m| m.files()) {
                            file.release(0..file.size);
                        }
                    }
                }
                WATCHES.fetch_sub(1, Ordering::Relaxed);
            });
        Self {
            done,
            thread: thread.ok(),
        }
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does nothing that can fail.
            drop(thread.join());
        }
    }
}

/// Bytes of file pages mapped into this process, where the system tells.
fn resident_file_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(2)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells() {
        assert!(!cfg!(target_os = "linux") || resident_file_bytes().is_some_and(|bytes| bytes > 0));
    }
}
