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
    for sub in command.get_subcommands_mut() {
        if sub.is_hide_set() || sub.get_name() == "help" {
            continue;
        }
        let name = sub.get_name().to_owned();
        let mut sub = sub.clone().bin_name(format!("sparse {name}"));
        let _ = writeln!(out, "\n## sparse {name}\n\n```\n{}\n```", help(&mut sub));
        for inner in sub.get_subcommands_mut() {
            if inner.is_hide_set() || inner.get_name() == "help" {
                continue;
            }
            let name = format!("sparse {name} {}", inner.get_name());
            let mut inner = inner.clone().bin_name(name.clone());
            let _ = writeln!(out, "\n### {name}\n\n```\n{}\n```", help(&mut inner));
        }
    }
    out
}

fn help(command: &mut clap::Command) -> String {
    let text = command.render_long_help().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_end().to_owned()
}
