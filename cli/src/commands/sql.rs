//! `sparse sql`: statements from the command line, a file or standard input; else the shell.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::sync::Arc;

use sparse_operators::session_with;
use sparse_pipelines::{Params, RunStatus, Runner, Script, State};

use crate::args::{Format, Sql};
use crate::context::Context;
use crate::failure::Failure;
use crate::shell::{self, output::Printer};

/// The longest script that is read: far above any that people write.
const MAX_SCRIPT: u64 = 64 << 20;

pub(super) async fn run(args: &Sql, context: &Context) -> Result<u8, Failure> {
    let params = Params::parse(&args.param)?;
    let session = session_with(context.config());
    // A shell makes no history, but shows the one there is.
    if args.state.state_dir.join("state.db").is_file() {
        let state = Arc::new(State::open(&args.state.state_dir)?);
        sparse_pipelines::state::register(&session, &state)?;
    }
    let format = if context.global.json {
        Format::Json
    } else {
        args.format
    };
    let source = if !args.command.is_empty() {
        args.command.join(";\n")
    } else if let Some(file) = &args.file {
        read_file(file)?
    } else if std::io::stdin().is_terminal() {
        if !args.param.is_empty() {
            return Err(Failure::usage(
                "--param is for -c, -f and standard input; in the shell, write the value",
            ));
        }
        return shell::run(&session, context, format).await;
    } else {
        read(std::io::stdin().lock(), "standard input")?
    };
    let script = Script::parse(&source, &params)?;
    let cancel = context.cancel();
    let report = Runner::new(&session)
        .keep_going(args.keep_going)
        .stop_when(move || cancel.is_cancelled())
        .run(&script, &mut Printer::new(format))
        .await?;
    if report.status == RunStatus::Cancelled {
        return Err(Failure::new("interrupted", 130));
    }
    let Some(stage) = report.first_failure() else {
        return Ok(0);
    };
    let failure = stage.error.as_ref().map_or_else(
        || Failure::failed("it failed"),
        |error| Failure::from(error.inner()),
    );
    Err(if script.stages().len() > 1 {
        failure.within(&format!("statement {} (line {})", stage.name, stage.line))
    } else {
        failure
    })
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let shown = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound {
            6
        } else {
            1
        };
        Failure::new(format!("cannot open {shown}: {error}"), code)
    })?;
    read(file, &shown)
}

fn read(from: impl std::io::Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(MAX_SCRIPT + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::failed(format!("cannot read {name}: {error}")))?;
    if text.len() as u64 > MAX_SCRIPT {
        return Err(Failure::usage(format!(
            "{name} holds more than 64 MiB, which is no script"
        )));
    }
    Ok(text)
}
