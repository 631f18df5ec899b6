//! Dataset deltas on a generated pair with a key and five columns, beside writing the derivative as Parquet. With a folder the
//! pair stays there, as CSV too, for peers: `benches/csv-diff` is one.
//! `cargo bench -p sparse-benches --bench dataset [-- ROWS [FOLDER]]`

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use sparse_dataset::{Compress, Reconstruct};

type Failure = Box<dyn Error + Send + Sync>;

/// CPU seconds of this process so far, all threads.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<f64> = after
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    fields.iter().sum::<f64>() / 100.0
}

fn measured<T>(what: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let (before, start) = (cpu(), Instant::now());
    let made = work()?;
    println!(
        "{what:32} {:6.2} CPU-s {:6.2} s",
        cpu() - before,
        start.elapsed().as_secs_f64()
    );
    Ok(made)
}

struct Random(u64);

impl Random {
    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % count.max(1)
    }
}

struct Row {
    id: i64,
    text: String,
    category: &'static str,
    value: f64,
    time: i64,
}

fn text(random: &mut Random) -> String {
    let words: Vec<String> = (0..4 + random.below(6))
        .map(|_| {
            let limit = 1 + random.below(5000);
            format!("w{}", random.below(limit))
        })
        .collect();
    words.join(" ")
}

fn row(id: i64, random: &mut Random) -> Row {
    let categories = ["alpha", "beta", "gamma", "delta", "epsilon"];
    Row {
        id,
        text: text(random),
        category: categories[usize::try_from(random.below(5)).unwrap_or(0)],
        value: random.below(20_000) as f64 / 100.0,
        time: 1_600_000_000 + id * 9 + i64::try_from(random.below(9)).unwrap_or(0),
    }
}

/// 1 % removed, 2 % with a changed text, 1 % with a changed value, 1 % added.
fn derive(rows: &[Row], random: &mut Random) -> Vec<Row> {
    let mut made = Vec::new();
    for row in rows {
        if random.below(100) == 0 {
            continue;
        }
        let mut text = row.text.clone();
        if random.below(50) == 0 {
            text += " edited";
        }
        made.push(Row {
            id: row.id,
            text,
            category: row.category,
            value: row.value + f64::from(u8::from(random.below(100) == 0)),
            time: row.time,
        });
    }
    let first = i64::try_from(rows.len()).unwrap_or(0) * 10;
    for at in 0..i64::try_from(rows.len() / 100).unwrap_or(0) {
        made.push(self::row(first + at, random));
    }
    made
}

fn batch(rows: &[Row]) -> Result<RecordBatch, Failure> {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("category", DataType::Utf8, false),
        Field::new("value", DataType::Float64, false),
        Field::new("time", DataType::Int64, false),
    ]);
    let numbers = |of: fn(&Row) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of)));
    Ok(RecordBatch::try_new(
        Arc::new(schema),
        vec![
            numbers(|row| row.id),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.text))),
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|r| r.category),
            )),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.value))),
            numbers(|row| row.time),
        ],
    )?)
}

fn write_parquet(path: &Path, batch: &RecordBatch) -> Result<(), Failure> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), Some(properties))?;
    writer.write(batch)?;
    writer.close()?;
    Ok(())
}

fn write_csv(path: &Path, batch: &RecordBatch) -> Result<(), Failure> {
    let mut writer = arrow::csv::Writer::new(File::create(path)?);
    writer.write(batch)?;
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|text| !text.starts_with("--"))
        .collect();
    let count = match arguments.first() {
        Some(rows) => rows.parse::<i64>()?,
        None => 870_000,
    };
    let temporary = tempfile::tempdir()?;
    let folder = match arguments.get(1) {
        Some(folder) => Path::new(folder).to_path_buf(),
        None => temporary.path().to_path_buf(),
    };
    std::fs::create_dir_all(&folder)?;
    let at = |name: &str| folder.join(name);
    {
        let random = &mut Random(88_172_645_463_325_252);
        let base: Vec<Row> = (0..count).map(|id| row(id, random)).collect();
        for (name, rows) in [("derivative", derive(&base, random)), ("base", base)] {
            let batch = batch(&rows)?;
            drop(rows);
            write_csv(&at(&format!("{name}.csv")), &batch)?;
            let path = at(&format!("{name}.parquet"));
            if name == "derivative" {
                measured("write the derivative as Parquet", || {
                    write_parquet(&path, &batch)
                })?;
            } else {
                write_parquet(&path, &batch)?;
            }
        }
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let text = |name: &str| at(name).to_string_lossy().into_owned();
    let made = measured("compress", || {
        let work = Compress::new(text("base.parquet"), text("derivative.parquet"))
            .output(text("delta"))
            .threads(1)
            .run();
        Ok(runtime.block_on(work)?)
    })?;
    println!(
        "  of that {:.2} s of matching, on one thread",
        made.matching.as_secs_f64()
    );
    let size = made.manifest.size_stats;
    println!(
        "  {} bytes, the derivative has {}",
        size.delta_size_bytes, size.derivative_size_bytes
    );
    measured("reconstruct", || {
        let work = Reconstruct::new(text("delta"))
            .base(text("base.parquet"))
            .output(text("again.parquet"))
            .threads(1)
            .run();
        Ok(runtime.block_on(work)?)
    })?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("VmHWM")) {
        println!("{line} (the generator included)");
    }
    Ok(())
}
