//! Keeps mapped files from filling the memory: pages are let go once they add up to too much.
//!
//! A mapped page that was read stays resident until somebody lets go of it. Tensors are released when they are done, but
//! one tensor may be many gigabytes, and analysis reads all of it. So who reads looks at the resident file pages between two
//! pieces, as does a thread now and then, and releases everything when they pass a limit; what is still in use is mapped again
//! from the page cache. The thread alone would not do: on a busy machine it is not scheduled in time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sparse_store::Model;

/// Resident file pages above which the pages of models are released.
const LIMIT: u64 = 192 << 20;
const EVERY: Duration = Duration::from_millis(4);
/// Nanoseconds between two looks: some megabytes are read in them at most, and a look takes three thousand.
const LOOK: u64 = 500_000;

/// Lets go of all the pages of something.
type Release = Arc<dyn Fn() + Send + Sync>;

/// What is watched, each with its limit.
static WATCHED: Mutex<Vec<(u64, Release)>> = Mutex::new(Vec::new());
static WATCHES: AtomicUsize = AtomicUsize::new(0);
/// The resident file pages when the first watch began. They are others' (the program's own, libraries', models that nobody
/// watches), and no release takes them away.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// Releases the pages of what is watched, where they are too many. Called by who reads, between two pieces; looks at most once
/// in half a millisecond, whoever asks.
pub fn relieve() {
    if WATCHES.load(Ordering::Relaxed) == 0 || !is_due() || !is_above(LIMIT) {
        return;
    }
    // Whoever held the lock before may have done it.
    for (limit, release) in watched().iter() {
        if is_above(*limit) {
            release();
        }
    }
}

/// Whether nobody has looked for a while.
fn is_due() -> bool {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    static LOOKED: AtomicU64 = AtomicU64::new(0);
    let now = u64::try_from(BEGAN.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let looked = LOOKED.load(Ordering::Relaxed);
    // Not held back while one releases: the others find it due after that time, and wait for its lock.
    let due = looked == 0 || now.saturating_sub(looked) >= LOOK;
    if due {
        LOOKED.store(now, Ordering::Relaxed);
    }
    due
}

fn watched() -> MutexGuard<'static, Vec<(u64, Release)>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there are more resident file pages than a limit allows.
fn is_above(limit: u64) -> bool {
    let allowed = allowed(limit, OTHERS.load(Ordering::Relaxed));
    resident_file_bytes().is_some_and(|bytes| bytes > allowed)
}

/// The limit, or half of it beside what is others', where that is more.
fn allowed(limit: u64, others: u64) -> u64 {
    limit.max(others.saturating_add(limit / 2))
}

/// A watch over mapped files.
pub struct Residency {
    watched: Option<Release>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Residency {
    /// Watches the files of the models until dropped.
    #[must_use]
    pub fn watch(models: Vec<Arc<Model>>) -> Self {
        let size = models.iter().flat_map(|m| m.files()).map(|f| f.size).sum();
        Self::over(size, LIMIT, move || {
            for file in models.iter().flat_map(|m| m.files()) {
                file.release(0..file.size);
            }
        })
    }

    /// Watches something of `size` mapped bytes until dropped: `release`, which lets go of its pages, is called when this process
    /// has more than `limit` bytes of file pages resident (192 MiB at least).
    #[must_use]
    pub fn over(size: u64, limit: u64, release: impl Fn() + Send + Sync + 'static) -> Self {
        let limit = limit.max(LIMIT);
        let done = Arc::new(AtomicBool::new(false));
        if size <= LIMIT || resident_file_bytes().is_none() {
            return Self {
                watched: None,
                done,
                thread: None,
            };
        }
        if WATCHES.fetch_add(1, Ordering::Relaxed) == 0 {
            OTHERS.store(resident_file_bytes().unwrap_or(0), Ordering::Relaxed);
        }
        let release: Release = Arc::new(release);
        watched().push((limit, Arc::clone(&release)));
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
            watched: Some(release),
            done,
            thread: thread.ok(),
        }
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        let Some(release) = self.watched.take() else {
            return;
        };
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does nothing that can fail.
            drop(thread.join());
        }
        watched().retain(|(_, other)| !Arc::ptr_eq(other, &release));
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
        assert_eq!(allowed(LIMIT, 0), LIMIT);
        assert_eq!(allowed(LIMIT, LIMIT / 4), LIMIT);
        assert!(allowed(LIMIT, 4 * LIMIT) > 4 * LIMIT);
    }
}
