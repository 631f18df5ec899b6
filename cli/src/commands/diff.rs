//! `sparse diff`.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::json;
use sparse_delta::DiffRow;

use super::print_json;
use crate::args::Diff;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &Diff, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let rows = sparse_delta::Diff::new(&args.base, &args.finetune)
        .threads(context.global.threads)
        .device(context.device())
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel())
        .run()
        .await?;
    drop(bar);
    let mut statuses: BTreeMap<&str, u64> = BTreeMap::new();
    for row in &rows {
        *statuses.entry(&row.status).or_default() += 1;
    }
    let shown: Vec<&DiffRow> = rows
        .iter()
        .filter(|row| args.all || row.status != "same")
        .collect();
    let failed = rows
        .iter()
        .any(|row| args.fail_on.iter().any(|on| on.matches(&row.status)));
    if context.global.json {
        print_json(&json!({ "statuses": statuses, "tensors": shown }))?;
    } else {
        let mut out = std::io::stdout().lock();
        if !shown.is_empty() {
            write!(out, "{}", table(&shown))?;
        }
        if context.talks() {
            let counts: Vec<String> = statuses
                .iter()
                .map(|(status, tensors)| format!("{tensors} {status}"))
                .collect();
            let total: u64 = rows.iter().map(|row| row.params).sum();
            let changed: u64 = rows.iter().map(|row| row.changed).sum();
            writeln!(
                out,
                "{} tensors: {}; {} of {} parameters changed",
                rows.len(),
                counts.join(", "),
                format::count(changed),
                format::count(total),
            )?;
        }
    }
    Ok(if failed { 3 } else { 0 })
}

fn table(rows: &[&DiffRow]) -> String {
    let header = [
        "tensor", "status", "dtype", "shape", "changed", "l2", "max_abs", "cosine",
    ];
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.tensor.clone(),
                row.status.clone(),
                row.dtype.clone(),
                format::shape(&row.shape),
                format::count(row.changed),
                format::real(row.l2),
                format::real(row.max_abs),
                format::real(row.cosine),
            ]
        })
        .collect();
    format::table(&header, &[4, 5, 6, 7], &rows)
}
