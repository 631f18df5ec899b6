//! Dataset deltas through files: every format, idempotence, refusals, damage.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use arrow::ipc::writer::{FileWriter, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sparse_dataset::{Compress, DatasetError, Reconstruct, Restores};
use sparse_delta::Status;

/// Rows with a key, texts, numbers and, if `nested`, lists; every `edit`-th text is another, and the first `removed` are missing.
fn rows(count: i64, edit: i64, removed: i64, nested: bool) -> RecordBatch {
    let ids: Vec<i64> = (removed..count).collect();
    let text = |id: i64| {
        let end = if edit > 0 && id % edit == 0 {
            "changed"
        } else {
            "as it was"
        };
        format!("row {id} has the word {} and is {end}", id * 7919 % 1000)
    };
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
        ids.iter().map(|&id| text(id)),
    ));
    let values = ids
        .iter()
        .map(|&id| (id % 9 != 0).then_some(id as f64 / 8.0));
    let mut columns = vec![
        ("id", Arc::new(Int64Array::from(ids.clone())) as ArrayRef),
        ("text", texts),
        ("value", Arc::new(Float64Array::from_iter(values))),
    ];
    if nested {
        let lists = ids
            .iter()
            .map(|&id| (id % 5 != 0).then(|| (0..id % 4).map(|k| i32::try_from(k).ok())));
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
        columns.push(("list", Arc::new(lists)));
    }
    RecordBatch::try_from_iter(columns).unwrap()
}

fn parquet(path: &Path, batch: &RecordBatch) {
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn read(path: &Path) -> Vec<RecordBatch> {
    ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap())
        .unwrap()
        .with_batch_size(1 << 20)
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        parquet(&place.path("base.parquet"), &rows(3000, 0, 0, true));
        parquet(&place.path("ft.parquet"), &rows(3100, 40, 20, true));
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn compress(&self, derivative: &str) -> Compress {
        Compress::new(self.text("base.parquet"), self.text(derivative)).output(self.text("delta"))
    }

    fn reconstruct(&self, output: &str) -> Reconstruct {
        Reconstruct::new(self.text("delta"))
            .base(self.text("base.parquet"))
            .output(self.text(output))
    }
}

#[tokio::test]
async fn a_parquet_file_comes_back_and_is_not_made_twice() -> Result<(), DatasetError> {
    let place = Place::new();
    let made = place.compress("ft.parquet").run().await?;
    assert_eq!(made.status, Status::Created);
    let split = &made.manifest.splits[0];
    // Every fortieth text is another; rows of other ids are new, however much they are like some of the base.
    let edited = (20..3000).filter(|id| id % 40 == 0).count() as u64;
    assert_eq!(
        (split.shared, split.edited, split.new, split.removed),
        (2980 - edited, edited, 100, 20)
    );
    // This is how parquet-rs writes.
    assert!(matches!(split.restores, Restores::Bytes(_)));
    assert!(made.manifest.size_stats.savings_pct > 50.0);
    assert_eq!(
        place.compress("ft.parquet").run().await?.status,
        Status::Exists
    );

    place.reconstruct("again.parquet").run().await?;
    assert_eq!(
        read(&place.path("again.parquet")),
        read(&place.path("ft.parquet"))
    );
    assert_eq!(
        std::fs::read(place.path("again.parquet")).unwrap(),
        std::fs::read(place.path("ft.parquet")).unwrap()
    );
    let again = place.reconstruct("again.parquet").run().await?;
    assert_eq!(again.status, Status::Exists);

    // Another derivative does not replace it unless told to; something else is never replaced.
    parquet(&place.path("other.parquet"), &rows(100, 3, 0, true));
    assert!(place.compress("other.parquet").run().await.is_err());
    place
        .compress("other.parquet")
        .overwrite(true)
        .run()
        .await?;
    assert!(place.reconstruct("again.parquet").run().await.is_err());
    std::fs::create_dir(place.path("mine")).unwrap();
    std::fs::write(place.path("mine/notes"), "mine").unwrap();
    let taken = place.compress("ft.parquet").output(place.text("mine"));
    assert!(taken.overwrite(true).run().await.is_err());
    assert!(place.path("mine/notes").exists());
    Ok(())
}

#[tokio::test]
async fn a_derivative_that_is_its_base_costs_next_to_nothing() -> Result<(), DatasetError> {
    let place = Place::new();
    let made = place.compress("base.parquet").run().await?;
    assert!(made.manifest.size_stats.delta_size_bytes < 2000);
    assert_eq!(made.manifest.splits[0].shared, 3000);
    Ok(())
}

#[tokio::test]
async fn every_format_comes_back() -> Result<(), DatasetError> {
    let place = Place::new();
    let flat = rows(500, 7, 3, false);
    let nested = rows(500, 7, 3, true);
    let file = |name: &str| File::create(place.path(name)).unwrap();
    let mut writer = FileWriter::try_new(file("ft.arrow"), &nested.schema())?;
    writer.write(&nested)?;
    writer.finish()?;
    std::fs::create_dir(place.path("stream")).unwrap();
    let mut writer = StreamWriter::try_new(file("stream/ft.arrow"), &nested.schema())?;
    writer.write(&nested)?;
    writer.finish()?;
    arrow::csv::Writer::new(file("ft.csv")).write(&flat)?;
    let mut writer = arrow::json::LineDelimitedWriter::new(file("ft.jsonl"));
    writer.write(&nested)?;
    writer.finish()?;
    for (name, output) in [
        ("ft.arrow", "again.arrow"),
        ("stream/ft.arrow", "again2.arrow"),
        ("ft.csv", "again.csv"),
        ("ft.jsonl", "again.jsonl"),
    ] {
        let made = place.compress(name).overwrite(true).run().await?;
        place.reconstruct(output).run().await?;
        let bytes = |name: &str| std::fs::read(place.path(name)).unwrap();
        // The rows are checked by their hash; it is said where the file is the same too.
        match &made.manifest.splits[0].restores {
            Restores::Rows => assert!(name.ends_with(".arrow"), "{name}"),
            Restores::Bytes(_) => assert_eq!(bytes(output), bytes(name)),
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_same_rows_in_other_bytes_are_not_the_file() -> Result<(), DatasetError> {
    let place = Place::new();
    let file = File::create(place.path("ft.csv")).unwrap();
    arrow::csv::Writer::new(file).write(&rows(50, 7, 3, false))?;
    let made = place.compress("ft.csv").run().await?;
    assert!(matches!(
        made.manifest.splits[0].restores,
        Restores::Bytes(_)
    ));
    let sound = std::fs::read_to_string(place.path("ft.csv")).unwrap();
    let quoted = sound.replacen("id,", "\"id\",", 1);
    assert_ne!(quoted, sound);
    std::fs::write(place.path("again.csv"), &quoted).unwrap();
    assert!(place.reconstruct("again.csv").run().await.is_err());
    let again = place.reconstruct("again.csv").overwrite(true).run().await?;
    assert_eq!(again.status, Status::Created);
    let found = std::fs::read_to_string(place.path("again.csv")).unwrap();
    assert_eq!(found, sound);
    let again = place.reconstruct("again.csv").run().await?;
    assert_eq!(again.status, Status::Exists);
    Ok(())
}

/// Texts that all begin with one instruction: what that says makes no two alike.
#[tokio::test]
async fn new_rows_are_not_told_as_edits_of_what_they_share_an_instruction_with()
-> Result<(), DatasetError> {
    let place = Place::new();
    let words = |row: u64, salt: u64| -> String {
        let word = |k: u64| (row * 31 + k + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (0..10).map(|k| format!(" w{}", word(k))).collect()
    };
    let text = |row: u64, edited: bool| {
        let end = if edited { ", in short" } else { "" };
        let words = words(row, 0);
        format!("You are a helpful assistant. Answer with one sentence, and be polite:{words}{end}")
    };
    let write = |name: &str, texts: Vec<String>| {
        let column: ArrayRef = Arc::new(StringArray::from(texts));
        let batch = RecordBatch::try_from_iter([("prompt", column)]).unwrap();
        parquet(&place.path(name), &batch);
    };
    write(
        "base.parquet",
        (0..1500).map(|row| text(row, false)).collect(),
    );
    let edited = (0..1500).map(|row| text(row, row % 15 == 0));
    let new = (5000..5060).map(|row| text(row, false));
    write("ft.parquet", edited.chain(new).collect());
    let made = place.compress("ft.parquet").run().await?;
    let split = &made.manifest.splits[0];
    assert_eq!(
        (split.shared, split.edited, split.new, split.removed),
        (1400, 100, 60, 0)
    );
    place.reconstruct("again.parquet").run().await?;
    assert_eq!(
        read(&place.path("again.parquet")),
        read(&place.path("ft.parquet"))
    );
    Ok(())
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_with_a_link_to_another_is_not_replaced() -> Result<(), DatasetError> {
    let place = Place::new();
    std::fs::create_dir(place.path("folder")).unwrap();
    parquet(&place.path("folder/train.parquet"), &rows(90, 3, 0, true));
    place.compress("folder").run().await?;
    let again = || place.reconstruct("again").overwrite(true);
    std::fs::create_dir_all(place.path("again")).unwrap();
    parquet(&place.path("again/train.parquet"), &rows(5, 0, 0, true));
    std::os::unix::fs::symlink(place.path("folder"), place.path("again/mine")).unwrap();
    assert!(again().run().await.is_err());
    assert!(place.path("again/mine").exists());
    std::fs::remove_file(place.path("again/mine")).unwrap();
    assert_eq!(again().run().await?.status, Status::Created);
    Ok(())
}

#[tokio::test]
async fn a_wrong_base_is_refused() -> Result<(), DatasetError> {
    let place = Place::new();
    place.compress("ft.parquet").run().await?;
    let wrong = place
        .reconstruct("again.parquet")
        .base(place.text("ft.parquet"));
    let error = wrong
        .run()
        .await
        .err()
        .map(|error| (error.exit_code(), error.to_string()));
    let (code, message) = error.unwrap();
    assert_eq!(code, 4);
    assert!(message.contains("is not the base this delta was made against"));
    assert!(!place.path("again.parquet").exists());
    Ok(())
}

#[tokio::test]
async fn damage_anywhere_is_an_error() -> Result<(), DatasetError> {
    let place = Place::new();
    place.compress("ft.parquet").run().await?;
    for name in ["delta/manifest.json", "delta/payload.bin"] {
        let sound = std::fs::read(place.path(name)).unwrap();
        for step in 0..40 {
            let mut bytes = sound.clone();
            let at = step * sound.len() / 40;
            if step % 4 == 3 {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << (step % 8);
            }
            std::fs::write(place.path(name), &bytes).unwrap();
            assert!(
                place.reconstruct("again.parquet").run().await.is_err(),
                "{name}, byte {at}"
            );
            assert!(!place.path("again.parquet").exists());
        }
        std::fs::write(place.path(name), &sound).unwrap();
    }
    place.reconstruct("again.parquet").run().await?;
    Ok(())
}
