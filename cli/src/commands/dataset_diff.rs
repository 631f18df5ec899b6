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
        .memory(args.memory.0)
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
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let (before, after) = (
                row.before.as_deref().unwrap_or_default(),
                row.after.as_deref().unwrap_or_default(),
            );
            let differs = before
                .chars()
                .zip(after.chars())
                .take_while(|(a, b)| a == b)
                .count();
            vec![
                row.op.name().to_owned(),
                row.split.clone(),
                number(row.base_row),
                number(row.derivative_row),
                window(row.column.as_deref().unwrap_or_default(), 0),
                window(before, differs),
                window(after, differs),
            ]
        })
        .collect();
    let header = [
        "op", "split", "base row", "row", "column", "before", "after",
    ];
    format::table(&header, &[2, 3], &cells)
}

/// What a table has room for of a value, around the character where it differs; reports and `--json` have the whole.
fn window(text: &str, differs: usize) -> String {
    let all: Vec<char> = text.chars().collect();
    if all.len() <= WIDTH {
        return text.to_owned();
    }
    let start = differs.saturating_sub(WIDTH / 3).min(all.len() - WIDTH);
    let end = (start + WIDTH).min(all.len());
    let mut out: Vec<char> = all[start..end].to_vec();
    if start > 0 {
        out[0] = '\u{2026}';
    }
    if end < all.len()
        && let Some(last) = out.last_mut()
    {
        *last = '\u{2026}';
    }
    out.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_in_the_window() {
        let long = "x".repeat(100) + "y" + &"z".repeat(100);
        let shown = window(&long, 100);
        assert_eq!(shown.chars().count(), WIDTH);
        assert!(
            shown.contains('y') && shown.starts_with('\u{2026}') && shown.ends_with('\u{2026}')
        );
        assert_eq!(window("short", 3), "short");
        assert!(window(&long, 200).ends_with('z'));
    }
}
