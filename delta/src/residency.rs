//! Keeps mapped files from filling the memory: pages are let go once they add up to too much.
//!
//! A mapped page that was read stays resident until somebody lets go of it. Tensors are released when they are done, but
//! one tensor may be many gigabytes, and analysis reads all of it. So who reads looks at the resident file pages between two
//! pieces, as does a thread now and then, and releases everything when they pass a limit; what is still in use is mapped again
//! from the page cache. The thread alone would not do: on a busy machine it is not scheduled in time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sparse_store::Model;

/// Resident file pages above which everything is released.
const LIMIT: u64 = 192 << 20;
const EVERY: Duration = Duration::from_millis(4);

/// The models that are watched; one that two watch, twice.
static WATCHED: Mutex<Vec<Arc<Model>>> = Mutex::new(Vec::new());
static WATCHES: AtomicUsize = AtomicUsize::new(0);
/// The resident file pages when the first watch began. They are others' (the program's own, libraries', models that nobody
/// watches), and no release takes them away.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// Releases the pages of what is watched, where they are too many. Called by who reads, between two pieces.
pub(crate) fn relieve() {
    if WATCHES.load(Ordering::Relaxed) == 0 || !is_above() {
        return;
    }
    let models = watched();
    // Whoever held the lock may have done it.
    if models.is_empty() || !is_above() {
        return;
    }
    for file in models.iter().flat_map(|m| m.files()) {
        file.release(0..file.size);
    }
}

fn watched() -> MutexGuard<'static, Vec<Arc<Model>>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there are more resident file pages than the limit allows.
fn is_above() -> bool {
    let allowed = allowed(OTHERS.load(Ordering::Relaxed));
    resident_file_bytes().is_some_and(|bytes| bytes > allowed)
}

/// The limit, or half of it beside what is others', where that is more.
fn allowed(others: u64) -> u64 {
    LIMIT.max(others.saturating_add(LIMIT / 2))
}

/// A watch over mapped models.
pub struct Residency {
    models: Vec<Arc<Model>>,
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
            return Self {
                models: Vec::new(),
                done,
                thread: None,
            };
        }
        if WATCHES.fetch_add(1, Ordering::Relaxed) == 0 {
            OTHERS.store(resident_file_bytes().unwrap_or(0), Ordering::Relaxed);
        }
        watched().extend(models.iter().cloned());
        let flag = Arc::clone(&done);
        let thread = std::thread::Builder::new()
            .name("sparse-residency".into())
            .spawn(move || {
                while !flag.load(Ordering::Relaxed) {
                    std::thread::sleep(EVERY);
                    relieve();
                }
            });
        Self {
            models,
            done,
            thread: thread.ok(),
        }
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        if self.models.is_empty() {
            return;
        }
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does nothing that can fail.
            drop(thread.join());
        }
        let mut watched = watched();
        for model in &self.models {
            if let Some(at) = watched.iter().position(|other| Arc::ptr_eq(other, model)) {
                watched.swap_remove(at);
            }
        }
        WATCHES.fetch_sub(1, Ordering::Relaxed);
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

    /// Pages that no release takes away are not released again and again.
    #[test]
    fn the_pages_of_others_are_allowed() {
        assert_eq!(allowed(0), LIMIT);
        assert_eq!(allowed(LIMIT / 4), LIMIT);
        assert!(allowed(4 * LIMIT) > 4 * LIMIT);
    }
}
