//! Many processes and one cache folder. `SPARSE_HAMMER_SECONDS` says how long the longer test takes, if not a minute.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{World, files, runtime};

const PROCESSES: usize = 16;
const MODELS: usize = 6;
/// Models there is room for.
const ROOM: u64 = 3;
/// Requests of each process, where it is given no time.
const REQUESTS: usize = 12;
/// Tells a process for how many seconds it makes requests.
const SECONDS: &str = "SPARSE_HAMMER_SECONDS";

fn seconds() -> Option<u64> {
    std::env::var(SECONDS).ok()?.parse().ok()
}

/// One of the processes: asks for models and compares every byte of them.
#[test]
#[ignore = "run by the other tests of this module, in processes of its own"]
fn child() {
    let root = std::env::var("SPARSE_HAMMER_ROOT").unwrap();
    let mut random: u64 = std::env::var("SPARSE_HAMMER_SEED")
        .unwrap()
        .parse()
        .unwrap();
    let world = World::at(Path::new(&root));
    let cache = world.cache(ROOM);
    let runtime = runtime();
    let expected: Vec<_> = (1..=MODELS)
        .map(|number| files(&world.finetune(number)))
        .collect();
    let until = seconds().map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut done = 0;
    while until.map_or(done < REQUESTS, |until| Instant::now() < until) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let number = usize::try_from(random >> 33).unwrap() % MODELS;
        let lease = runtime
            .block_on(cache.get_or_reconstruct(&world.base(), &world.delta(number + 1)))
            .unwrap();
        assert!(
            files(lease.path()) == expected[number],
            "a torn entry: {}",
            lease.path().display()
        );
        // Held for a while, whole to the end.
        std::thread::sleep(Duration::from_millis(random >> 60));
        assert!(
            files(lease.path()) == expected[number],
            "an entry was lost while it was held"
        );
        done += 1;
    }
}

fn spawn(world: &World, seed: usize, seconds: Option<u64>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    match seconds {
        Some(seconds) => command.env(SECONDS, seconds.to_string()),
        None => command.env_remove(SECONDS),
    };
    command
        .args(["--exact", "hammer::child", "--ignored", "--nocapture"])
        .env("SPARSE_HAMMER_ROOT", &world.root)
        .env("SPARSE_HAMMER_SEED", seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Bytes of models and of models in the making. While the ledger's lock is held nothing is removed or begun, so that no model is
/// counted before it goes and after another came.
fn size(world: &World) -> u64 {
    let ledger = std::fs::File::options()
        .write(true)
        .open(world.models().join(".state/ledger.lock"));
    let Ok(ledger) = ledger else { return 0 };
    ledger.lock().unwrap();
    let mut sum = 0;
    let mut folders = vec![world.models()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() && entry.file_name() != ".state" {
                folders.push(entry.path());
            } else if kind.is_file() {
                sum += entry.metadata().map_or(0, |meta| meta.len());
            }
        }
    }
    sum
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn sixteen_processes_share_a_cache_for_a_minute() {
    let seconds = seconds().unwrap_or(60);
    let world = World::new(MODELS);
    let limit = world.size() * ROOM + 100;
    let mut children: Vec<Child> = (0..PROCESSES)
        .map(|seed| spawn(&world, seed, Some(seconds)))
        .collect();
    let mut largest = 0;
    while children
        .iter_mut()
        .any(|child| child.try_wait().unwrap().is_none())
    {
        largest = largest.max(size(&world));
        assert!(largest <= limit, "{largest} of {limit} bytes");
        std::thread::sleep(Duration::from_millis(5));
    }
    children.into_iter().for_each(finish);
    let cache = world.cache(ROOM);
    let stats = cache.get_stats().unwrap();
    // Every build is there, or was evicted: none was made twice at once, none was lost, none was damaged.
    assert_eq!(
        stats.reconstructions,
        stats.entries + stats.evictions,
        "{stats:?}"
    );
    assert_eq!(
        (stats.quarantined, stats.reconstructions),
        (0, stats.cache_misses),
        "{stats:?}"
    );
    assert!(
        stats.evictions > 0 && largest > world.size() * (ROOM - 1),
        "{stats:?}, {largest}"
    );
    assert!(
        runtime()
            .block_on(cache.verify(None))
            .unwrap()
            .iter()
            .all(|entry| entry.ok)
    );
    eprintln!("{stats:?}");
}

#[test]
fn killed_processes_leave_a_usable_cache() {
    let world = World::new(MODELS);
    let limit = world.size() * ROOM + 100;
    let mut children: Vec<Child> = (0..4).map(|seed| spawn(&world, seed, None)).collect();
    for kill in 0..30 {
        std::thread::sleep(Duration::from_millis(30 + kill * 37 % 90));
        let at = usize::try_from(kill).unwrap() % children.len();
        children[at].kill().unwrap();
        children[at].wait().unwrap();
        assert!(size(&world) <= limit);
        children[at] = spawn(&world, usize::try_from(kill).unwrap() + 100, None);
    }
    children.into_iter().for_each(finish);
    let cache = world.cache(ROOM);
    assert!(
        runtime()
            .block_on(cache.verify(None))
            .unwrap()
            .iter()
            .all(|entry| entry.ok)
    );
    // Nothing half-made is left, and no room is reserved for nobody.
    let stats = cache.get_stats().unwrap();
    assert_eq!(stats.cache_size_bytes, stats.entries * world.size());
    assert_eq!(size(&world), stats.cache_size_bytes);
}
