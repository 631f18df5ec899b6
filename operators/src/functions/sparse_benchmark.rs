//! `sparse_benchmark()`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_delta::{Benchmark, BenchmarkReport};

use super::{CancelOnDrop, once, threads};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction};
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_benchmark",
    row: "measurement or estimate",
    description: "How fast models are rebuilt here: a generated model is decoded in memory and rebuilt from files to files, against the \
                  memory, the disk of the cache folder and the hash function. From that, what models of common sizes take, and what bounds \
                  them.",
    inputs: &[],
    options: &[
        Parameter::of(
            "tensor_size",
            Kind::Count(&[]),
            "Elements of each of the four generated BF16 tensors. Default: 4000000.",
        ),
        Parameter::of(
            "iterations",
            Kind::Count(&[]),
            "How often everything is measured. Default: 5.",
        ),
    ],
    columns: &[
        Column::new(
            "name",
            Type::Text,
            "memory_copy, disk_write, disk_read, sha256, decode or reconstruct; or the model that is estimated: 7B_model and so on.",
        ),
        Column::new("kind", Type::Text, "measured or estimated."),
        Column::new(
            "bytes_per_second",
            Type::Real,
            "The median of the iterations; the model's bytes over the estimated time.",
        ),
        Column::new(
            "of_memory",
            Type::Real,
            "That over the speed at which memory is copied.",
        ),
        Column::new(
            "seconds",
            Type::Real,
            "The estimated time; null where measured.",
        ),
        Column::new(
            "bound_by",
            Type::Text,
            "What takes that long: processor, disk_read or disk_write; null where measured.",
        ),
        Column::new(
            "detail",
            Type::Text,
            "What was done, or the time of each step.",
        ),
    ],
    examples: &[
        "SELECT name, bytes_per_second, seconds, bound_by FROM sparse_benchmark(tensor_size => 100000, iterations => 1);",
    ],
};

#[derive(Debug)]
pub(super) struct SparseBenchmark;

impl SparseFunction for SparseBenchmark {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseBenchmark {
    fn read(
        &self,
        _inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let (_guard, cancel) = CancelOnDrop::new();
            let mut benchmark = Benchmark::new()
                .device(request.config.device)
                .open_options(request.config.open_options())
                .cancel(cancel);
            if let Some(elements) = request.options.count("tensor_size") {
                benchmark = benchmark.tensor_size(elements);
            }
            if let Some(iterations) = request.options.count("iterations") {
                benchmark = benchmark.iterations(iterations);
            }
            if let Some(threads) = threads(&request) {
                benchmark = benchmark.threads(threads);
            }
            let report = benchmark.run().await.map_err(error::delta)?;
            request.project(&batch(&report)?)
        })
    }
}

fn batch(report: &BenchmarkReport) -> Result<RecordBatch> {
    let (measured, estimated) = (&report.measurements, &report.estimated_times);
    let memory = measured
        .iter()
        .find(|measurement| measurement.name == "memory_copy")
        .map_or(f64::NAN, |measurement| measurement.bytes_per_second);
    let none = || measured.iter().map(|_| None);
    let rate = |at: usize| {
        estimated
            .get(at)
            .map(|estimate| estimate.bytes / estimate.seconds)
    };
    let rates: Vec<Option<f64>> = (0..estimated.len()).map(rate).collect();
    let steps = estimated.iter().map(|estimate| {
        format!(
            "processor {:.1} s, reading {:.1} s, writing {:.1} s",
            estimate.processor_seconds, estimate.read_seconds, estimate.write_seconds
        )
    });
    let all = vec![
        columns::texts(
            measured
                .iter()
                .map(|measurement| Some(measurement.name))
                .chain(estimated.iter().map(|estimate| Some(estimate.model))),
        ),
        columns::texts(
            measured
                .iter()
                .map(|_| Some("measured"))
                .chain(estimated.iter().map(|_| Some("estimated"))),
        ),
        columns::reals(
            measured
                .iter()
                .map(|measurement| Some(measurement.bytes_per_second))
                .chain(rates.iter().copied()),
        ),
        columns::reals(
            measured
                .iter()
                .map(|measurement| Some(measurement.of_memory))
                .chain(rates.iter().map(|rate| Some((*rate)? / memory))),
        ),
        columns::reals(none().chain(estimated.iter().map(|estimate| Some(estimate.seconds)))),
        columns::texts(
            measured
                .iter()
                .map(|_| None)
                .chain(estimated.iter().map(|estimate| Some(estimate.bound_by))),
        ),
        columns::texts(
            measured
                .iter()
                .map(|measurement| measurement.detail.clone())
                .chain(steps)
                .map(Some),
        ),
    ];
    columns::batch(SPEC.schema(), all, measured.len() + estimated.len())
}
