//! Compares two CSV files with the `csv-diff` crate and says how many CPU seconds that took.
//! `cargo run --manifest-path benches/csv-diff/Cargo.toml -- BASE.csv DERIVATIVE.csv`

use std::error::Error;
use std::fs::File;

use csv_diff::csv::Csv;
use csv_diff::csv_diff::CsvByteDiffLocal;

/// CPU seconds of this process so far, all threads.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(") ").next().unwrap_or_default();
    after
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(base), Some(derivative)) = (arguments.next(), arguments.next()) else {
        return Err("usage: csv-diff-peer BASE.csv DERIVATIVE.csv".into());
    };
    let before = cpu();
    let found = CsvByteDiffLocal::new()?.diff(
        Csv::with_reader_seek(File::open(base)?),
        Csv::with_reader_seek(File::open(derivative)?),
    )?;
    println!(
        "{} rows differ, {:.2} CPU-s",
        found.as_slice().len(),
        cpu() - before
    );
    Ok(())
}
