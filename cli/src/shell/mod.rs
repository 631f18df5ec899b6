//! The shell: history, completion, statements of several lines.

mod helper;
pub(crate) mod output;

use std::io::Write as _;

use datafusion::prelude::SessionContext;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use sparse_pipelines::{Params, Runner, Script};

use crate::args::Format;
use crate::context::Context;
use crate::failure::{Failure, say};
use helper::ShellHelper;
use output::Printer;

const WELCOME: &str = "Statements end with ;  Tab completes, .help helps, .quit leaves.";

const HELP: &str = "\
.help            this text
.functions       the table functions, and what they take
.tables          the tables of this session
.format FORMAT   how rows are printed: table, csv or json
.quit            leave (Ctrl-D too)
Everything else is SQL and ends with a semicolon. docs/sql.md describes the functions.";

/// Reads and runs statements until the end of input.
pub(crate) async fn run(
    session: &SessionContext,
    context: &Context,
    format: Format,
) -> Result<u8, Failure> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .auto_add_history(true)
        .max_history_size(10_000)
        .map_err(editor_failed)?
        .build();
    let mut editor: Editor<ShellHelper, FileHistory> =
        Editor::with_config(config).map_err(editor_failed)?;
    editor.set_helper(Some(ShellHelper::new(session).await));
    let history = context.config().open_options().cache().join("sql-history");
    // No history is no reason not to work.
    let _ = editor.load_history(&history);
    let mut shell = Shell {
        session,
        context,
        format,
    };
    if context.talks() {
        writeln!(
            std::io::stdout(),
            "sparse {} - {WELCOME}",
            env!("CARGO_PKG_VERSION")
        )?;
    }
    loop {
        let line = tokio::task::block_in_place(|| editor.readline("sparse> "));
        match line {
            Ok(line) => {
                if !shell.take(line.trim()).await? {
                    break;
                }
                if let Some(parent) = history.parent() {
                    let _ = std::fs::create_dir_all(parent);
                }
                let _ = editor.append_history(&history);
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(editor_failed(error)),
        }
    }
    Ok(0)
}

fn editor_failed(error: ReadlineError) -> Failure {
    Failure::failed(format!("cannot read from the terminal: {error}"))
}

struct Shell<'a> {
    session: &'a SessionContext,
    context: &'a Context,
    format: Format,
}

impl Shell<'_> {
    /// Does what a line says. False: leave.
    async fn take(&mut self, line: &str) -> Result<bool, Failure> {
        let mut words = line.split_whitespace();
        match words.next() {
            None => {}
            Some(".quit" | ".exit" | "quit" | "exit" | "quit;" | "exit;" | "\\q") => {
                return Ok(false);
            }
            Some(".help") => writeln!(std::io::stdout(), "{HELP}")?,
            Some(".functions") => {
                for function in sparse_operators::functions::all() {
                    writeln!(std::io::stdout(), "{}", function.spec().syntax())?;
                }
            }
            Some(".tables") => self.run("SHOW TABLES").await?,
            Some(".format") => match words.next() {
                Some("table") => self.format = Format::Table,
                Some("csv") => self.format = Format::Csv,
                Some("json") => self.format = Format::Json,
                _ => say("error: .format table, .format csv or .format json"),
            },
            Some(word) if word.starts_with('.') => {
                say(&format!(
                    "error: there is no command {word}; .help lists them"
                ));
            }
            Some(_) => self.run(line).await?,
        }
        Ok(true)
    }

    /// Runs statements; their errors are shown, and the shell goes on.
    async fn run(&self, sql: &str) -> Result<(), Failure> {
        self.context.interrupt.renew();
        let cancel = self.context.cancel();
        let ran = async {
            let script = Script::parse(sql, &Params::default())?;
            let report = Runner::new(self.session)
                .stop_when(move || cancel.is_cancelled())
                .run(
                    &script,
                    &mut Printer::new(self.format).timed(self.context.talks()),
                )
                .await?;
            if let Some(error) = report
                .first_failure()
                .and_then(|stage| stage.error.as_ref())
            {
                return Err(Failure::from(error.inner()));
            }
            Ok(())
        };
        match ran.await {
            Ok(()) => {}
            Err(failure) => failure.report(self.context.global.json),
        }
        std::io::stdout().flush()?;
        Ok(())
    }
}
