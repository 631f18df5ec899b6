//! A script's statements, told apart by DataFusion's own tokenizer: quotes, dollar quotes and comments may hold `;`.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{
    Location, Token, TokenWithSpan, Tokenizer, Whitespace,
};

use crate::PipelineError;

/// One statement, not parsed yet.
pub(crate) struct Piece {
    /// From a `-- name: x` comment before it.
    pub(crate) name: Option<String>,
    /// The line of its first token.
    pub(crate) line: u64,
    /// Its text, as written.
    pub(crate) text: String,
    /// Its tokens, with places in the script.
    pub(crate) tokens: Vec<TokenWithSpan>,
    /// Whether a `;` ends it.
    pub(crate) closed: bool,
}

/// What text typed so far is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing but space and comments.
    Empty,
    /// A statement, comment or quote is still open.
    Open,
    /// Every statement is ended by `;`.
    Complete,
}

/// Whether `text` ends with a complete statement: what a shell asks when Enter is pressed.
#[must_use]
pub fn input_state(text: &str) -> Input {
    match split(text) {
        Err(_) => Input::Open,
        Ok(pieces) => match pieces.last() {
            None => Input::Empty,
            Some(last) if last.closed => Input::Complete,
            Some(_) => Input::Open,
        },
    }
}

/// Splits a script. Empty statements (`;;`) are dropped.
pub(crate) fn split(source: &str) -> Result<Vec<Piece>, PipelineError> {
    let tokens = Tokenizer::new(&GenericDialect {}, source)
        .tokenize_with_location()
        .map_err(|error| PipelineError::Unclosed {
            message: error.to_string(),
        })?;
    let lines = Lines::new(source);
    let mut pieces = Vec::new();
    let mut name = None;
    let mut current: Vec<TokenWithSpan> = Vec::new();
    for token in tokens {
        match &token.token {
            Token::SemiColon => {
                pieces.extend(piece(
                    &lines,
                    name.take(),
                    std::mem::take(&mut current),
                    true,
                ));
            }
            Token::EOF => {}
            Token::Whitespace(space) => {
                if current.is_empty() {
                    name = name_in(space).or(name);
                } else {
                    current.push(token);
                }
            }
            _ => current.push(token),
        }
    }
    pieces.extend(piece(&lines, name, current, false));
    Ok(pieces)
}

fn piece(
    lines: &Lines<'_>,
    name: Option<String>,
    mut tokens: Vec<TokenWithSpan>,
    closed: bool,
) -> Option<Piece> {
    while tokens
        .last()
        .is_some_and(|t| matches!(t.token, Token::Whitespace(_)))
    {
        tokens.pop();
    }
    let (first, last) = (tokens.first()?, tokens.last()?);
    let line = first.span.start.line;
    let text = lines.between(first.span.start, last.span.end).to_owned();
    Some(Piece {
        name,
        line,
        text,
        tokens,
        closed,
    })
}

fn name_in(space: &Whitespace) -> Option<String> {
    let comment = match space {
        Whitespace::SingleLineComment { comment, .. } | Whitespace::MultiLineComment(comment) => {
            comment
        }
        _ => return None,
    };
    let name = comment.trim().strip_prefix("name:")?.trim();
    (!name.is_empty() && !name.contains('\n')).then(|| name.to_owned())
}

/// From the tokenizer's lines and columns (characters, from 1) to bytes.
struct Lines<'a> {
    source: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(source: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(source.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { source, starts }
    }

    fn offset(&self, at: Location) -> usize {
        let line = usize::try_from(at.line.saturating_sub(1)).unwrap_or(usize::MAX);
        let column = usize::try_from(at.column.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(start) = self.starts.get(line).copied() else {
            return self.source.len();
        };
        let rest = &self.source[start..];
        start
            + rest
                .char_indices()
                .nth(column)
                .map_or(rest.len(), |(at, _)| at)
    }

    fn between(&self, start: Location, end: Location) -> &'a str {
        self.source
            .get(self.offset(start)..self.offset(end))
            .unwrap_or_default()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<String> {
        split(source).unwrap().into_iter().map(|p| p.text).collect()
    }

    #[test]
    fn semicolons_in_quotes_and_comments_do_not_split() {
        let source = "SELECT ';' AS \"a;b\" -- one; two\n;\n/* x; */ SELECT $tag$ ; $tag$, 'é;ü' ;; \n SELECT 3";
        assert_eq!(
            texts(source),
            [
                "SELECT ';' AS \"a;b\"",
                "SELECT $tag$ ; $tag$, 'é;ü'",
                "SELECT 3"
            ]
        );
    }

    #[test]
    fn text_is_kept_as_written() {
        assert_eq!(texts("  SELECT\n\t1,  'ä'  \n"), ["SELECT\n\t1,  'ä'"]);
    }

    #[test]
    fn names_come_from_the_comment_before() {
        let pieces = split("-- setup\n-- name: one \nSELECT 1;\nSELECT 2;\n/* name: three */\nSELECT 3 -- name: no\n").unwrap();
        let names: Vec<_> = pieces.iter().map(|p| (p.name.as_deref(), p.line)).collect();
        assert_eq!(names, [(Some("one"), 3), (None, 4), (Some("three"), 6)]);
    }

    #[test]
    fn the_state_of_typed_text() {
        for (text, state) in [
            ("", Input::Empty),
            (" -- x\n", Input::Empty),
            ("SELECT 1", Input::Open),
            ("SELECT 1;", Input::Complete),
            ("SELECT 1; -- done", Input::Complete),
            ("SELECT 1; SELECT", Input::Open),
            ("SELECT ';", Input::Open),
            ("/* ;", Input::Open),
            (";", Input::Empty),
        ] {
            assert_eq!(input_state(text), state, "{text}");
        }
    }
}
