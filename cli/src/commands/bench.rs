//! `sparse bench`.

use std::io::Write as _;

use sparse_delta::{Benchmark, BenchmarkReport};

use super::{json, print_json};
use crate::args::Bench;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &Bench, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let report = Benchmark::new()
        .tensor_size(args.tensor_size)
        .iterations(args.iterations)
        .threads(context.global.threads)
        .device(context.device())
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel())
        .run()
        .await?;
    drop(bar);
    if context.global.json {
        print_json(&json(&report))?;
    } else {
        show(&report, context)?;
    }
    Ok(0)
}

fn show(report: &BenchmarkReport, context: &Context) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let rows: Vec<Vec<String>> = report
        .measurements
        .iter()
        .map(|measured| {
            vec![
                measured.name.to_owned(),
                rate(measured.bytes_per_second),
                format!("{} to {}", rate(measured.worst), rate(measured.best)),
                format!("{:.3}", measured.of_memory),
                measured.detail.clone(),
            ]
        })
        .collect();
    let header = ["measured", "median", "range", "of memory", "what"];
    write!(out, "{}", format::table(&header, &[1, 3], &rows))?;
    let rows: Vec<Vec<String>> = report
        .estimated_times
        .iter()
        .map(|estimate| {
            let seconds = |value: f64| format!("{value:.1} s");
            vec![
                estimate.model.to_owned(),
                seconds(estimate.seconds),
                estimate.bound_by.to_owned(),
                seconds(estimate.processor_seconds),
                seconds(estimate.read_seconds),
                seconds(estimate.write_seconds),
            ]
        })
        .collect();
    let header = [
        "estimated",
        "takes",
        "bound by",
        "processor",
        "reading",
        "writing",
    ];
    write!(out, "\n{}", format::table(&header, &[1, 3, 4, 5], &rows))?;
    if context.talks() {
        writeln!(
            out,
            "\n{} threads; a generated BF16 model of 4 tensors of {} elements, whose delta is 1/{:.2} of it. Estimates are for BF16, \
             scale with bytes, and take the slowest of the three steps, which overlap.",
            report.threads,
            format::count(report.tensor_size),
            report.ratio
        )?;
    }
    Ok(())
}

fn rate(bytes_per_second: f64) -> String {
    format!("{:.3} GB/s", bytes_per_second / 1e9)
}
