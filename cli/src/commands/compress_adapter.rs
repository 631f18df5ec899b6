//! `sparse compress-adapter`.

use super::compress::print;
use crate::args::CompressAdapter;
use crate::context::Context;
use crate::failure::Failure;

pub(super) async fn run(args: &CompressAdapter, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let mut compress = sparse_delta::Compress::of_adapter(&args.base, &args.adapter)
        .effort(args.effort)
        .dry_run(args.dry_run)
        .overwrite(args.overwrite)
        .threads(context.global.threads)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(context.cancel());
    if let Some(output) = &args.output {
        compress = compress.output(output);
    }
    let outcome = compress.stage().await?.commit().await?;
    drop(bar);
    print(&outcome, context)
}
