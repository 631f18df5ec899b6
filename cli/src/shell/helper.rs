//! Completion and multi-line input.

use datafusion::prelude::SessionContext;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper, Highlighter, Hinter};
use sparse_pipelines::{Input, input_state};

const KEYWORDS: &[&str] = &[
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "COPY",
    "CREATE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "ELSE",
    "END",
    "EXECUTE",
    "EXISTS",
    "EXPLAIN",
    "EXTERNAL",
    "FALSE",
    "FROM",
    "GROUP",
    "HAVING",
    "IN",
    "INNER",
    "IS",
    "JOIN",
    "LEFT",
    "LIKE",
    "LIMIT",
    "LOCATION",
    "NOT",
    "NULL",
    "ON",
    "OR",
    "ORDER",
    "PREPARE",
    "SAFETENSORS",
    "SELECT",
    "SET",
    "SHOW",
    "STORED",
    "TABLE",
    "TABLES",
    "THEN",
    "TO",
    "TRUE",
    "UNION",
    "VALUES",
    "VIEW",
    "WHEN",
    "WHERE",
    "WITH",
];

/// What the editor asks while a statement is typed.
#[derive(Helper, Highlighter, Hinter)]
pub(super) struct ShellHelper {
    /// Functions, options and keywords.
    words: Vec<String>,
    files: FilenameCompleter,
}

impl ShellHelper {
    pub(super) async fn new(session: &SessionContext) -> Self {
        let mut words: Vec<String> = sparse_operators::functions::all()
            .iter()
            .flat_map(|function| {
                let spec = function.spec();
                let columns = spec.columns.iter().map(|column| column.name.to_owned());
                columns.chain([format!("{}(", spec.name)])
            })
            .collect();
        let state = session.state();
        words.extend(
            state
                .scalar_functions()
                .keys()
                .map(|name| format!("{name}(")),
        );
        words.extend(
            state
                .aggregate_functions()
                .keys()
                .map(|name| format!("{name}(")),
        );
        let options = sparse_operators::SparseConfig::default();
        words.extend(options.documented().map(|(name, _, _)| name.to_owned()));
        words.extend(KEYWORDS.iter().map(|word| (*word).to_owned()));
        words.sort();
        words.dedup();
        Self {
            words,
            files: FilenameCompleter::new(),
        }
    }

    fn complete_word(&self, line: &str, position: usize) -> (usize, Vec<Pair>) {
        let before = line.get(..position).unwrap_or_default();
        let start = before
            .rfind(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
            .map_or(0, |at| {
                at + before[at..].chars().next().map_or(1, char::len_utf8)
            });
        let typed = &before[start..];
        if typed.is_empty() {
            return (position, Vec::new());
        }
        let lower = typed.to_lowercase();
        let pairs = self
            .words
            .iter()
            .filter(|word| word.to_lowercase().starts_with(&lower))
            .map(|word| Pair {
                display: word.clone(),
                replacement: word.clone(),
            })
            .collect();
        (start, pairs)
    }
}

impl Completer for ShellHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        // Inside a text, most likely a path.
        let before = line.get(..position).unwrap_or_default();
        if before.matches('\'').count() % 2 == 1 {
            let start = before.rfind('\'').map_or(0, |at| at + 1);
            let (at, pairs) = self
                .files
                .complete_path(&before[start..], position - start)?;
            return Ok((start + at, pairs));
        }
        Ok(self.complete_word(line, position))
    }
}

impl Validator for ShellHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input().trim();
        let command = input.starts_with(['.', '\\']) || matches!(input, "quit" | "exit");
        let open = !command && input_state(input) == Input::Open;
        Ok(if open {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_and_paths_complete() {
        let helper = ShellHelper::new(&sparse_operators::session()).await;
        let (start, pairs) = helper.complete_word("SELECT * FROM sparse_comp", 25);
        assert_eq!(start, 14);
        assert_eq!(pairs[0].replacement, "sparse_compress(");
        let (_, pairs) = helper.complete_word("sel", 3);
        assert_eq!(pairs[0].replacement, "SELECT");
        assert!(helper.complete_word("SELECT ", 7).1.is_empty());
    }
}
