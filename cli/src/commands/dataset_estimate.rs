//! `sparse dataset-estimate`.

use std::io::Write as _;

use super::{json, print_json};
use crate::args::DatasetEstimate;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(args: &DatasetEstimate, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let outcome = sparse_dataset::Estimate::new(args.base.as_str(), args.derivative.as_str())
        .split(&args.split)
        .sample_size(args.sample_size)
        .effort(args.effort)
        .memory(args.memory.0)
        .threads(context.global.threads)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel())
        .run()
        .await?;
    drop(bar);
    let stats = &outcome.stats;
    if context.global.json {
        let mut document = json(stats);
        document["split"] = outcome.split.clone().into();
        document["sampled"] = outcome.sampled.into();
        document["exact"] = outcome.exact.into();
        document["seconds"] = outcome.elapsed.as_secs_f64().into();
        print_json(&document)?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {} -> {} {}, {:.2} % saved",
        outcome.split,
        format::bytes(stats.derivative_size_bytes),
        if outcome.exact { "exactly" } else { "about" },
        format::bytes(stats.delta_size_bytes),
        stats.savings_pct,
    )?;
    if context.talks() {
        writeln!(
            out,
            "  {} rows shared with the base, {} new; {} coded in {:.2} s",
            format::count(stats.num_shared_samples),
            format::count(stats.num_new_samples),
            format::count(outcome.sampled),
            outcome.elapsed.as_secs_f64(),
        )?;
    }
    Ok(0)
}
