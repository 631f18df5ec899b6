//! `sparse validate`.

use sparse_inference::Candidate;

use super::validation;
use crate::args::Validate;
use crate::context::Context;
use crate::failure::Failure;

pub(super) async fn run(args: &Validate, context: &Context) -> Result<u8, Failure> {
    let candidate = match &args.delta {
        Some(path) => Candidate::Delta {
            path: path.clone(),
            rank: args.rank,
        },
        None => Candidate::Base,
    };
    validation::run(
        &args.base,
        &args.finetune,
        candidate,
        &args.judging,
        context,
    )
    .await
}
