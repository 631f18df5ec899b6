//! `sparse`: fine-tuned models as deltas of their base, on the command line and in SQL.

mod args;
mod commands;
mod context;
mod failure;
mod format;
mod interrupt;
mod page;
mod progress;
mod shell;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Global, LogFormat};
use failure::Failure;

fn main() -> ExitCode {
    // A fault of this program is told like every other error; where it happened is for the log.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    let json = std::env::args_os().any(|argument| argument == "--json");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && json => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            Failure::usage(line.trim_start_matches("error: ")).report(json);
            return ExitCode::from(2);
        }
        // Help, version, and usage errors with the usage below them, for people.
        Err(error) => error.exit(),
    };
    let ended = std::panic::catch_unwind(|| run(cli)).unwrap_or_else(|_| {
        Err(Failure::failed(
            "internal error; please report it, with what --log error shows",
        ))
    });
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report(json);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    log_to_stderr(&cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let code = runtime.block_on(commands::run(cli));
    // Work that was told to stop may still be between two blocks; nothing of it is visible, so nobody waits for it long.
    let patience = std::time::Duration::from_secs(5);
    sparse_pipelines::shutdown(patience);
    runtime.shutdown_timeout(patience);
    let code = code?;
    std::io::stdout().flush()?;
    Ok(code)
}

fn log_to_stderr(global: &Global) -> Result<(), Failure> {
    let Some(filter) = global.log.as_deref() else {
        return Ok(());
    };
    let parsed = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("--log {filter}: {error}; try --log debug")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
