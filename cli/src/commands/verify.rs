//! `sparse verify`.

use std::io::Write as _;

use serde_json::json;

use super::print_json;
use crate::args::Verify;
use crate::context::Context;
use crate::failure::Failure;

pub(super) async fn run(args: &Verify, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let open = context.open_options(&bar);
    let checks = if sparse_dataset::is_dataset_delta(&args.delta, &open).await? {
        let mut verify = sparse_dataset::Verify::new(&args.delta)
            .threads(context.global.threads)
            .open_options(open)
            .progress(bar.callback())
            .cancel(context.cancel());
        if let Some(base) = &args.base {
            verify = verify.base(base.as_str());
        }
        verify.run().await?
    } else {
        let mut verify = sparse_delta::Verify::new(&args.delta)
            .threads(context.global.threads)
            .device(context.device())
            .open_options(open)
            .progress(bar.callback())
            .cancel(context.cancel());
        if let Some(base) = &args.base {
            verify = verify.base(base);
        }
        verify.run().await?
    };
    drop(bar);
    let failed = checks.iter().filter(|check| !check.ok).count();
    context.measure_verify_failures(failed as u64);
    if context.global.json {
        print_json(&json!({ "ok": failed == 0, "failed": failed, "checks": checks }))?;
    } else {
        let mut out = std::io::stdout().lock();
        for check in &checks {
            if !check.ok || context.talks() {
                let mark = if check.ok { "ok    " } else { "FAILED" };
                writeln!(
                    out,
                    "{mark} {:<9} {}: {}",
                    check.kind, check.item, check.detail
                )?;
            }
        }
        if context.talks() {
            writeln!(out, "{} checks, {failed} failed", checks.len())?;
        }
    }
    Ok(if failed == 0 { 0 } else { 3 })
}
