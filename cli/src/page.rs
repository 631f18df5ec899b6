//! `docs/cli.md`, generated from the arguments.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::args::Cli;

const INTRODUCTION: &str = "\
# The command line

Generated from the program: `cargo run -p sparse-cli -- page > docs/cli.md`. The same operations in SQL: [sql.md](sql.md).

Every command takes `--json` (one document on standard output, errors as JSON on standard error), shows progress on a terminal
only, writes whole results or none, and ends with the exit codes below. Ctrl-C stops it, and leaves nothing half-done.
";

/// The whole page.
pub(crate) fn page() -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut out = INTRODUCTION.to_owned();
    let _ = writeln!(out, "\n```\n{}\n```", help(&mut command.clone()));
    sections(&command, "sparse", &mut out);
    out
}

/// One section per command below `command`, and below those.
fn sections(command: &clap::Command, path: &str, out: &mut String) {
    for sub in command.get_subcommands() {
        if sub.is_hide_set() || sub.get_name() == "help" {
            continue;
        }
        let path = format!("{path} {}", sub.get_name());
        let mut sub = sub.clone().bin_name(&path);
        let _ = writeln!(out, "\n## {path}\n\n```\n{}\n```", help(&mut sub));
        sections(&sub, &path, out);
    }
}

fn help(command: &mut clap::Command) -> String {
    let text = command.render_long_help().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_end().to_owned()
}
