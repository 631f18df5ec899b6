//! `sparse validate-int8`.

use sparse_inference::Candidate;

use super::validation;
use crate::args::ValidateInt8;
use crate::context::Context;
use crate::failure::Failure;

pub(super) async fn run(args: &ValidateInt8, context: &Context) -> Result<u8, Failure> {
    let candidate = Candidate::Int8(args.granularity);
    validation::run(
        &args.base,
        &args.finetune,
        candidate,
        &args.judging,
        context,
    )
    .await
}
