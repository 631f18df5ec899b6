//! Keeps mapped files from filling the memory: pages are let go once they add up to too much.
//!
//! A mapped page that was read stays resident until somebody lets go of it. Tensors are released when they are done, but
//! one tensor may be many gigabytes, and analysis reads all of it. So a thread looks at the resident file pages now and
//! then and releases everything when they pass a limit; what is still in use is mapped again from the page cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sparse_store::Model;

/// Resident file pages above which everything is released.
const LIMIT: u64 = 192 << 20;
const EVERY: Duration = Duration::from_millis(4);
/// Resident file pages above which who reads on waits for the watch, and how often it looks: it may not be scheduled in time.
const MOST: u64 = 384 << 20;
const WAITS: usize = 200;

/// Watches that go on, and how often they have released everything.
static WATCHES: AtomicUsize = AtomicUsize::new(0);
static RELEASES: AtomicUsize = AtomicUsize::new(0);
/// The fewest resident file pages that a release left, since there is a watch; the most there can be where none was made.
/// They are others' (the program's own, libraries', models that nobody watches), and no release takes them away.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Waits a little while the watches have too much to release: until they have done so once, and not for what is others'.
pub(crate) fn wait() {
    let releases = RELEASES.load(Ordering::Relaxed);
    for _ in 0..WAITS {
        if WATCHES.load(Ordering::Relaxed) == 0
            || RELEASES.load(Ordering::Relaxed) != releases
            || !is_above(MOST)
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether there are more resident file pages than a limit allows.
fn is_above(limit: u64) -> bool {
    let allowed = allowed(limit, LEFT.load(Ordering::Relaxed));
    resident_file_bytes().is_some_and(|bytes| bytes > allowed)
}

/// The limit, or half of it beside what a release left, where that is more.
fn allowed(limit: u64, left: u64) -> u64 {
    let others = if left == u64::MAX { 0 } else { left };
    limit.max(others.saturating_add(limit / 2))
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
                if WATCHES.fetch_add(1, Ordering::Relaxed) == 0 {
                    LEFT.store(u64::MAX, Ordering::Relaxed);
                }
                while !flag.load(Ordering::Relaxed) {
                    std::thread::sleep(EVERY);
                    if is_above(LIMIT) {
                        for file in models.iter().flat_map(|m| m.files()) {
                            file.release(0..file.size);
                        }
                        if let Some(left) = resident_file_bytes() {
                            LEFT.fetch_min(left, Ordering::Relaxed);
                        }
                        RELEASES.fetch_add(1, Ordering::Relaxed);
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

    /// Nobody waits for pages that no watch can release.
    #[test]
    fn the_pages_of_others_are_allowed() {
        for limit in [LIMIT, MOST] {
            assert_eq!(allowed(limit, u64::MAX), limit);
            assert_eq!(allowed(limit, limit / 4), limit);
            assert!(allowed(limit, 4 * limit) > 4 * limit);
        }
    }
}
