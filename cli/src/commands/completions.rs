//! `sparse completions`.

use std::io::Write as _;

use clap::CommandFactory as _;

use crate::args::{Cli, Completions};
use crate::failure::Failure;

pub(super) fn run(args: &Completions) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sparse", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(0)
}
