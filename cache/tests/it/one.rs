//! One process.

use std::time::Duration;

use sparse_cache::{CacheError, DeltaCache, DeltaMode, Found};
use sparse_delta::{Compress, MergeRule, Reconstruct, SvdCompress, SvdRank, SvdReconstruct};
use sparse_store::OpenOptions;

use crate::support::{World, files, runtime};

#[test]
fn rebuilt_once_then_found() {
    let world = World::new(2);
    let cache = world.cache(3);
    let runtime = runtime();
    let get = |number| {
        runtime
            .block_on(cache.get_or_reconstruct(&world.base(), &world.delta(number)))
            .unwrap()
    };
    let first = get(1);
    assert_eq!(first.found(), Found::Rebuilt);
    assert_eq!(files(first.path()), files(&world.finetune(1)));
    let again = get(1);
    assert_eq!((again.found(), again.path()), (Found::Hit, first.path()));
    // The delta elsewhere is the same model.
    std::fs::rename(world.delta(1), world.root.join("moved")).unwrap();
    let moved = world.root.join("moved").display().to_string();
    let moved = runtime
        .block_on(cache.get_or_reconstruct(&world.base(), &moved))
        .unwrap();
    assert_eq!((moved.found(), moved.path()), (Found::Hit, first.path()));
    assert_eq!(get(2).found(), Found::Rebuilt);
    let stats = cache.get_stats().unwrap();
    assert_eq!(
        (stats.cache_hits, stats.cache_misses, stats.entries),
        (2, 2, 2)
    );
    assert_eq!(stats.cache_size_bytes, 2 * world.size());
    assert!(stats.avg_reconstruction_time_s > 0.0);
    let entries = cache.entries().unwrap();
    assert!(
        entries
            .iter()
            .any(|entry| entry.path == first.path() && entry.in_use && !entry.pinned)
    );
}

#[test]
fn what_was_not_used_for_longest_goes_and_what_is_pinned_or_held_stays() {
    let world = World::new(5);
    let cache = world.cache(3).low_water(1.0).patience(Duration::ZERO);
    let runtime = runtime();
    let get = |number| {
        // Last use is a time of the file system's grain.
        std::thread::sleep(Duration::from_millis(20));
        runtime.block_on(cache.get_or_reconstruct(&world.base(), &world.delta(number)))
    };
    let held = get(1).unwrap();
    drop(get(2).unwrap());
    drop(get(3).unwrap());
    drop(get(2).unwrap());
    // Room for the fourth: the third was not used for longest, the first is held.
    drop(get(4).unwrap());
    let deltas = || {
        let mut deltas: Vec<String> = cache
            .entries()
            .unwrap()
            .into_iter()
            .map(|entry| entry.delta)
            .collect();
        deltas.sort();
        deltas
    };
    assert_eq!(deltas(), [world.delta(1), world.delta(2), world.delta(4)]);
    assert_eq!(files(held.path()), files(&world.finetune(1)));
    cache.pin(&world.delta(2), true).unwrap();
    cache.pin(&world.delta(4), true).unwrap();
    let error = get(5).unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }), "{error}");
    assert_eq!(deltas(), [world.delta(1), world.delta(2), world.delta(4)]);
    // Let go, it is the one that goes.
    drop(held);
    drop(get(5).unwrap());
    assert_eq!(deltas(), [world.delta(2), world.delta(4), world.delta(5)]);
    let collected = runtime.block_on(cache.gc(Some(0))).unwrap();
    assert_eq!(
        (collected.evicted.len(), collected.used_bytes),
        (1, 2 * world.size())
    );
    cache.pin(&world.delta(2), false).unwrap();
    let collected = runtime.block_on(cache.gc(Some(0))).unwrap();
    assert_eq!(collected.freed_bytes, world.size());
    // A model larger than the cache is refused before any work.
    let tiny = world.cache(0);
    let error = runtime
        .block_on(tiny.get_or_reconstruct(&world.base(), &world.delta(1)))
        .unwrap_err();
    assert!(
        matches!(error, CacheError::TooLarge { .. })
            && error.to_string().contains("raise the limit"),
        "{error}"
    );
}

#[test]
fn damage_is_found_set_aside_and_rebuilt() {
    let world = World::new(1);
    let cache = world.cache(3);
    let runtime = runtime();
    let get = || {
        runtime
            .block_on(cache.get_or_reconstruct(&world.base(), &world.delta(1)))
            .unwrap()
    };
    let path = get().path().to_path_buf();
    // A glance sees a file that is cut short or gone, and other weights.
    let weights = path.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() - 1000..].fill(7);
    let damages: [&dyn Fn(); 3] = [
        &|| std::fs::write(&weights, &whole[..whole.len() - 1]).unwrap(),
        &|| std::fs::remove_file(path.join("config.json")).unwrap(),
        &|| std::fs::write(&weights, &flipped).unwrap(),
    ];
    for damage in damages {
        damage();
        let lease = get();
        assert_eq!(lease.found(), Found::Rebuilt);
        assert_eq!(files(lease.path()), files(&world.finetune(1)));
    }
    assert_eq!(cache.get_stats().unwrap().quarantined, 3);
    // A single bit in between is seen by the full check only.
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 1;
    std::fs::write(&weights, &flipped).unwrap();
    let verified = runtime.block_on(cache.verify(None)).unwrap();
    assert!(
        !verified[0].ok && verified[0].problem.as_ref().unwrap().contains("SHA-256"),
        "{verified:?}"
    );
    assert_eq!(get().found(), Found::Rebuilt);
    assert!(
        runtime
            .block_on(cache.verify(Some(&world.delta(1))))
            .unwrap()[0]
            .ok
    );
    // Damaged models count, and are the first to go.
    assert!(cache.get_stats().unwrap().cache_size_bytes > world.size());
    runtime.block_on(cache.gc(Some(world.size()))).unwrap();
    assert_eq!(cache.get_stats().unwrap().cache_size_bytes, world.size());
}

#[test]
fn references_are_resolved() {
    let world = World::new(1);
    let cache = world.cache(3);
    let runtime = runtime();
    let resolve =
        |model: &str, base: Option<&str>, mode| runtime.block_on(cache.resolve(model, base, mode));
    let full = world.finetune(1).display().to_string();
    let delta = world.delta(1);
    for mode in [DeltaMode::Auto, DeltaMode::PreferDelta, DeltaMode::FullOnly] {
        let resolved = resolve(&full, None, mode).unwrap();
        assert!(resolved.path == world.finetune(1) && resolved.lease.is_none());
    }
    for (base, mode) in [
        (None, DeltaMode::Auto),
        (Some(world.base()), DeltaMode::PreferDelta),
    ] {
        let resolved = resolve(&delta, base.as_deref(), mode).unwrap();
        assert_eq!(files(&resolved.path), files(&world.finetune(1)));
        assert!(resolved.lease.is_some());
    }
    let error = resolve(&delta, None, DeltaMode::FullOnly).unwrap_err();
    assert!(
        error.to_string().contains("is a delta") && error.exit_code() == 2,
        "{error}"
    );
    // A folder that has both.
    for (name, bytes) in files(&world.finetune(1)) {
        std::fs::write(world.root.join("delta-1").join(name), bytes).unwrap();
    }
    assert!(
        resolve(&delta, None, DeltaMode::Auto)
            .unwrap()
            .lease
            .is_none()
    );
    assert!(
        resolve(&delta, None, DeltaMode::PreferDelta)
            .unwrap()
            .lease
            .is_some()
    );
    assert_eq!(
        "prefer_delta".parse::<DeltaMode>().unwrap(),
        DeltaMode::PreferDelta
    );
    assert!("other".parse::<DeltaMode>().is_err());
    assert_eq!(
        resolve(
            &world.root.join("nothing").display().to_string(),
            None,
            DeltaMode::Auto
        )
        .unwrap_err()
        .exit_code(),
        6
    );
}

#[test]
fn a_wrong_base_or_a_damaged_delta_leaves_nothing() {
    let world = World::new(2);
    let cache = world.cache(3);
    let runtime = runtime();
    let wrong = world.finetune(2).display().to_string();
    let error = runtime
        .block_on(cache.get_or_reconstruct(&wrong, &world.delta(1)))
        .unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    let payload = world.root.join("delta-2/payload-00000.bin");
    let mut bytes = std::fs::read(&payload).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&payload, bytes).unwrap();
    let error = runtime
        .block_on(cache.get_or_reconstruct(&world.base(), &world.delta(2)))
        .unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    assert!(cache.entries().unwrap().is_empty());
    assert_eq!(cache.get_stats().unwrap().cache_size_bytes, 0);
}

/// Adapters come merged into their base, approximations as the model they stand for.
#[test]
fn deltas_of_every_kind_are_models() {
    let example = |name: &str| format!("{}/../examples/models/{name}", env!("CARGO_MANIFEST_DIR"));
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).display().to_string();
    let options = OpenOptions {
        cache_dir: Some(work.path().join("cache")),
        hub_cache: Some(work.path().join("hub")),
        ..OpenOptions::empty()
    };
    let runtime = runtime();
    let base = example("base");
    runtime
        .block_on(
            Compress::of_adapter(&base, example("lora"))
                .output(at("adapter"))
                .open_options(options.clone())
                .run(),
        )
        .unwrap();
    runtime
        .block_on(
            SvdCompress::new(&base, example("sft"))
                .rank(SvdRank::Fixed(vec![2, 4]))
                .output(at("approximation"))
                .open_options(options.clone())
                .run(),
        )
        .unwrap();
    runtime
        .block_on(
            Reconstruct::new(&base, at("adapter"))
                .merge(MergeRule::default())
                .output(at("merged"))
                .open_options(options.clone())
                .run(),
        )
        .unwrap();
    runtime
        .block_on(
            SvdReconstruct::new(&base, at("approximation"))
                .output(at("approximate"))
                .open_options(options.clone())
                .run(),
        )
        .unwrap();
    let cache = DeltaCache::new().open_options(options).open().unwrap();
    for (delta, model) in [("adapter", "merged"), ("approximation", "approximate")] {
        let lease = runtime
            .block_on(cache.get_or_reconstruct(&base, &at(delta)))
            .unwrap();
        assert_eq!(lease.found(), Found::Rebuilt);
        assert_eq!(files(lease.path()), files(&work.path().join(model)));
        // The base that the delta names is found without being told.
        let resolved = runtime
            .block_on(cache.resolve(&at(delta), None, DeltaMode::Auto))
            .unwrap();
        assert_eq!(resolved.path, lease.path());
        assert_eq!(resolved.lease.unwrap().found(), Found::Hit);
        assert!(matches!(
            runtime.block_on(cache.resolve(&at(delta), None, DeltaMode::FullOnly)),
            Err(CacheError::Usage { .. })
        ));
    }
    let merged = work.path().join("merged/model.safetensors");
    assert_eq!(
        std::fs::read(merged).unwrap(),
        std::fs::read(example("lora-merged") + "/model.safetensors").unwrap()
    );
    let verified = runtime.block_on(cache.verify(None)).unwrap();
    assert!(verified.len() == 2 && verified.iter().all(|v| v.ok));
    assert_eq!(cache.get_stats().unwrap().quarantined, 0);
}

/// Whether the file system shares what two files hold until one of them is written to.
fn clones(folder: &std::path::Path) -> bool {
    let (from, to) = (folder.join("clone-from"), folder.join("clone-to"));
    std::fs::write(&from, [7; 4096]).unwrap();
    let source = std::fs::File::open(&from).unwrap();
    rustix::fs::ioctl_ficlone(std::fs::File::create(&to).unwrap(), source).is_ok()
}

#[test]
fn what_the_base_has_unchanged_is_not_there_twice() {
    use std::os::unix::fs::MetadataExt as _;

    let world = World::new(1);
    // The base as the Hub's cache keeps it: blobs, and a snapshot of links to them. One shard and the tokenizer stay as they are.
    let repo = world.root.join("hub/models--org--base");
    let (blobs, snapshot) = (repo.join("blobs"), repo.join("snapshots/1"));
    for folder in [&blobs, &snapshot] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let unchanged = ["frozen/other.safetensors", "tokenizer.json"];
    std::fs::create_dir_all(snapshot.join("frozen")).unwrap();
    let weights = std::fs::read(world.root.join("base/model.safetensors")).unwrap();
    for (number, (name, bytes)) in [
        ("model.safetensors", weights.clone()),
        (unchanged[0], weights),
        (unchanged[1], vec![b' '; 10_000]),
        ("config.json", b"{}".to_vec()),
    ]
    .into_iter()
    .enumerate()
    {
        let blob = blobs.join(number.to_string());
        std::fs::write(&blob, bytes).unwrap();
        std::os::unix::fs::symlink(&blob, snapshot.join(name)).unwrap();
    }
    let (plain, finetune) = (world.root.join("plain"), world.finetune(1));
    for (name, bytes) in files(&snapshot) {
        for folder in [&plain, &finetune] {
            let path = folder.join(&name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !path.exists() {
                std::fs::write(path, &bytes).unwrap();
            }
        }
    }
    let runtime = runtime();
    let delta = world.root.join("delta").display().to_string();
    let compress = Compress::new(plain.display().to_string(), finetune.display().to_string())
        .output(&delta)
        .open_options(world.options());
    runtime.block_on(compress.run()).unwrap();
    let inode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().ino();
    for (base, linked) in [(&snapshot, true), (&plain, false)] {
        let cache = world.cache(1);
        let base_name = base.display().to_string();
        let model = runtime
            .block_on(cache.get_or_reconstruct(&base_name, &delta))
            .unwrap();
        assert_eq!(model.found(), Found::Rebuilt);
        assert_eq!(files(model.path()), files(&finetune));
        for name in files(base).into_keys() {
            let one = inode(base.join(&name)) == inode(model.path().join(&name));
            let may_be = linked
                && unchanged
                    .iter()
                    .any(|same| name == std::path::Path::new(same));
            if !clones(&world.root) {
                assert_eq!(one, may_be, "{}", name.display());
            }
            assert!(!one || may_be, "{}", name.display());
        }
        // Evicted, the model takes nothing of the base with it.
        drop(model);
        runtime.block_on(cache.gc(Some(0))).unwrap();
        assert_eq!(files(&snapshot), files(&plain));
    }
}
