//! `sparse dataset-diff`.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use sparse_dataset::{Diff, DiffOp, DiffRow, DiffSummary, Report};

use crate::args::{DatasetDiff, FailOnRows};
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

/// Differences shown to people who do not say how many.
const SHOWN: usize = 20;
/// Characters of a value in a table.
const WIDTH: usize = 60;

/// Where differences go.
struct Outputs {
    /// The first ones, for a table.
    shown: Vec<DiffRow>,
    left: usize,
    json: Option<Report>,
    report: Option<Report>,
}

pub(super) async fn run(args: &DatasetDiff, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let json = context.global.json;
    let outputs = Arc::new(Mutex::new(Outputs {
        shown: Vec::new(),
        left: args.limit.unwrap_or(if json { usize::MAX } else { SHOWN }),
        json: json.then(|| Report::json(std::io::stdout())).transpose()?,
        report: args.report.as_deref().map(Report::create).transpose()?,
    }));
    let sink = Arc::clone(&outputs);
    let summary = Diff::new(args.base.as_str(), args.derivative.as_str())
        .key(args.key.clone())
        .splits(args.splits.clone())
        .threads(context.global.threads)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel())
        .run(move |rows| {
            let mut outputs = sink.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(report) = &mut outputs.report {
                report.rows(rows)?;
            }
            let some = &rows[..rows.len().min(outputs.left)];
            outputs.left -= some.len();
            match &mut outputs.json {
                Some(json) => json.rows(some)?,
                None => outputs.shown.extend_from_slice(some),
            }
            Ok(())
        })
        .await?;
    drop(bar);
    let mut outputs = outputs.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(report) = outputs.report.take() {
        report.finish(&summary)?;
    }
    match outputs.json.take() {
        Some(json) => json.finish(&summary)?,
        None => show(&summary, &outputs.shown, args, context)?,
    }
    let fails = |on: &FailOnRows| {
        summary.count(match on {
            FailOnRows::Changed => DiffOp::Changed,
            FailOnRows::Added => DiffOp::Added,
            FailOnRows::Removed => DiffOp::Removed,
            FailOnRows::Schema => DiffOp::Schema,
        }) > 0
    };
    Ok(if args.fail_on.iter().any(fails) { 3 } else { 0 })
}

fn show(
    summary: &DiffSummary,
    rows: &[DiffRow],
    args: &DatasetDiff,
    context: &Context,
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if !rows.is_empty() {
        writeln!(out, "{}", table(rows))?;
    }
    if !context.talks() {
        return Ok(());
    }
    let splits: Vec<Vec<String>> = summary
        .splits
        .iter()
        .map(|split| {
            let counts = [
                split.base_rows,
                split.derivative_rows,
                split.same,
                split.changed,
                split.added,
                split.removed,
                split.moved,
                split.schema,
            ];
            std::iter::once(split.split.clone())
                .chain(counts.map(format::count))
                .collect()
        })
        .collect();
    let header = [
        "split",
        "base",
        "derivative",
        "same",
        "changed",
        "added",
        "removed",
        "moved",
        "schema",
    ];
    writeln!(
        out,
        "{}",
        format::table(&header, &[1, 2, 3, 4, 5, 6, 7, 8], &splits)
    )?;
    let columns: Vec<Vec<String>> = summary
        .splits
        .iter()
        .flat_map(|split| split.columns.iter().map(move |column| (split, column)))
        .filter(|(_, column)| column.status != "same")
        .map(|(split, column)| {
            vec![
                split.split.clone(),
                column.column.clone(),
                column.status.clone(),
                types(
                    column.base_type.as_deref(),
                    column.derivative_type.as_deref(),
                ),
                format::count(column.changed),
                format::count(column.from_null),
                format::count(column.to_null),
            ]
        })
        .collect();
    if !columns.is_empty() {
        let header = [
            "split",
            "column",
            "status",
            "type",
            "changed",
            "from null",
            "to null",
        ];
        writeln!(out, "{}", format::table(&header, &[4, 5, 6], &columns))?;
    }
    let all: u64 = [
        DiffOp::Changed,
        DiffOp::Added,
        DiffOp::Removed,
        DiffOp::Schema,
    ]
    .iter()
    .map(|op| summary.count(*op))
    .sum();
    match (&args.report, all) {
        (_, 0) => writeln!(out, "no differences")?,
        (Some(report), _) => writeln!(out, "report: {}", report.display())?,
        (None, _) => {}
    }
    Ok(())
}

fn types(before: Option<&str>, after: Option<&str>) -> String {
    match (before, after) {
        (Some(before), Some(after)) if before != after => format!("{before} -> {after}"),
        (before, after) => after.or(before).unwrap_or_default().to_owned(),
    }
}

fn table(rows: &[DiffRow]) -> String {
    let number = |row: Option<u64>| row.map(|row| row.to_string()).unwrap_or_default();
    let text = |text: &Option<String>| short(text.as_deref().unwrap_or_default());
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.op.name().to_owned(),
                row.split.clone(),
                number(row.base_row),
                number(row.derivative_row),
                text(&row.column),
                text(&row.before),
                text(&row.after),
            ]
        })
        .collect();
    let header = [
        "op", "split", "base row", "row", "column", "before", "after",
    ];
    format::table(&header, &[2, 3], &cells)
}

/// A value cut to what a table has room for; reports and `--json` have the whole.
fn short(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    let cut: String = text.chars().take(WIDTH - 1).collect();
    cut + "\u{2026}"
}
