//! The library's builders: progress, cancellation, typed errors.

use std::sync::{Arc, Mutex};

use sparse_delta::{
    ArtifactContent, CancelToken, Compress, DeltaError, Diff, Info, Reconstruct, Status, Verify,
};
use sparse_store::OpenOptions;

use crate::support::{assert_same, example, names, text};

fn options(work: &std::path::Path) -> OpenOptions {
    let mut options = OpenOptions::empty();
    options.cache_dir = Some(work.join("cache"));
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn models_in_delta_out_and_back() {
    let work = tempfile::tempdir().unwrap();
    let seen: Arc<Mutex<Vec<(String, f64)>>> = Arc::default();
    let told = Arc::clone(&seen);
    let (delta, again) = (work.path().join("delta"), work.path().join("again"));
    let (manifest, metrics) = Compress::new(example("base"), example("sft"))
        .output(text(&delta))
        .threads(2)
        .open_options(options(work.path()))
        .progress(Arc::new(move |message, fraction| {
            told.lock().unwrap().push((message.to_owned(), fraction));
        }))
        .run()
        .await
        .unwrap();
    assert_eq!(metrics.artifact_bytes, manifest.artifact_bytes);
    assert!(metrics.bytes_read > 0 && metrics.blocks > 0 && !metrics.elapsed.is_zero());
    let seen = seen.lock().unwrap().clone();
    assert!(!seen.is_empty());
    for (message, fraction) in &seen {
        assert!((0.0..=1.0).contains(fraction) && !message.is_empty());
    }
    assert!((seen.last().unwrap().1 - 1.0).abs() < 1e-9, "{seen:?}");
    let (outcome, metrics) = Reconstruct::new(example("base"), text(&delta))
        .output(text(&again))
        .open_options(options(work.path()))
        .run()
        .await
        .unwrap();
    assert_eq!(outcome.status, Status::Created);
    assert_eq!(metrics.bytes, manifest.original_bytes);
    assert_same(example("sft").as_ref(), &again);
    let checks = Verify::new(text(&delta))
        .base(example("base"))
        .run()
        .await
        .unwrap();
    assert!(checks.iter().all(|check| check.ok), "{checks:?}");
    let info = Info::new(text(&delta)).run().await.unwrap();
    let ArtifactContent::Delta {
        manifest: found, ..
    } = info.content
    else {
        panic!("{:?}", info.content)
    };
    assert_eq!(*found, manifest);
    let rows = Diff::new(example("sft"), text(&again)).run().await.unwrap();
    assert!(rows.iter().all(|row| row.status == "same"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    // Before it begins, and from its own progress.
    for at_once in [true, false] {
        let cancel = CancelToken::default();
        let from_progress = cancel.clone();
        if at_once {
            cancel.cancel();
        }
        let error = Compress::new(example("base"), example("sft"))
            .output(text(&work.path().join("delta")))
            .open_options(options(work.path()))
            .progress(Arc::new(move |_, _| from_progress.cancel()))
            .cancel(cancel)
            .run()
            .await
            .unwrap_err();
        assert!(matches!(error, DeltaError::Cancelled), "{error}");
        assert_eq!(error.exit_code(), 130);
    }
    let left: Vec<String> = names(work.path())
        .into_iter()
        .filter(|n| n != "cache")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What is staged is complete and invisible; dropped, it never was.
#[tokio::test(flavor = "multi_thread")]
async fn staged_work_is_invisible() {
    let work = tempfile::tempdir().unwrap();
    let delta = work.path().join("delta");
    let compress = || {
        Compress::new(example("base"), example("sft"))
            .output(text(&delta))
            .open_options(options(work.path()))
    };
    let staged = compress().stage().await.unwrap();
    assert!(!delta.exists());
    assert_eq!(staged.outcome().status, Status::Created);
    drop(staged);
    let left: Vec<String> = names(work.path())
        .into_iter()
        .filter(|n| n != "cache")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(compress().stage().await.unwrap().commit().await.is_ok());
    assert!(delta.join("manifest.json").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_typed() {
    let work = tempfile::tempdir().unwrap();
    let delta = text(&work.path().join("delta"));
    let compress = |finetune: &str| {
        Compress::new(example("base"), example(finetune))
            .output(&delta)
            .open_options(options(work.path()))
            .run()
    };
    compress("sft").await.unwrap();
    assert!(matches!(
        compress("lora-merged").await.unwrap_err(),
        DeltaError::Exists { .. }
    ));
    let wrong = Reconstruct::new(example("sft"), &delta)
        .output(text(&work.path().join("again")))
        .open_options(options(work.path()))
        .run()
        .await
        .unwrap_err();
    let DeltaError::WrongBase {
        expected, found, ..
    } = wrong
    else {
        panic!("{wrong}")
    };
    assert_ne!(expected, found);
    assert_eq!(expected.len(), 64);
}
