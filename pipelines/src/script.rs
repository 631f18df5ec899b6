//! A script whose statements are bound and parsed.

use std::collections::{BTreeSet, HashMap};

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::split::{Piece, split};
use crate::{Params, PipelineError};

/// How deep expressions may nest; DataFusion's own default.
const RECURSION_LIMIT: usize = 50;

/// One statement of a script.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its number, from 1.
    pub index: usize,
    /// From a `-- name: x` comment before it, else its number.
    pub name: String,
    /// The line of the script in which it begins, from 1.
    pub line: u64,
    /// Its text as written: parameters appear as `$key`.
    pub sql: String,
    /// Parsed, parameters bound.
    pub(crate) statement: Statement,
}

/// Statements to be run in order.
#[derive(Clone, Debug, Default)]
pub struct Script {
    stages: Vec<Stage>,
}

impl Script {
    /// Splits `source`, binds `params` and parses every statement: a script with a mistake in its last line runs no line.
    pub fn parse(source: &str, params: &Params) -> Result<Self, PipelineError> {
        let (script, used) = Self::parse_using(source, params)?;
        if let Some(name) = params.names().find(|name| !used.contains(*name)) {
            return Err(PipelineError::UnusedParam {
                name: name.to_owned(),
            });
        }
        Ok(script)
    }

    /// The same where some parameters may be for others; returns the names of those that are used too.
    pub(crate) fn parse_using(
        source: &str,
        params: &Params,
    ) -> Result<(Self, BTreeSet<String>), PipelineError> {
        let mut used = BTreeSet::new();
        let mut lines: HashMap<String, u64> = HashMap::new();
        let mut stages = Vec::new();
        for (number, mut piece) in split(source)?.into_iter().enumerate() {
            let index = number + 1;
            bind(&mut piece.tokens, params, &mut used)?;
            let name = piece.name.clone().unwrap_or_else(|| index.to_string());
            if let Some(first) = lines.insert(name.clone(), piece.line) {
                return Err(PipelineError::DuplicateName {
                    name,
                    first,
                    second: piece.line,
                });
            }
            stages.push(stage(index, name, piece)?);
        }
        Ok((Self { stages }, used))
    }

    /// Its stages, in order.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }
}

fn stage(index: usize, name: String, piece: Piece) -> Result<Stage, PipelineError> {
    let Piece {
        line,
        text: sql,
        tokens,
        ..
    } = piece;
    let wrong = |message: String| PipelineError::Syntax {
        stage: index,
        line,
        message,
    };
    let parsed = DFParserBuilder::new(tokens)
        .with_recursion_limit(RECURSION_LIMIT)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| wrong(error.strip_backtrace()))?;
    let mut statements = parsed.into_iter();
    match (statements.next(), statements.next()) {
        (Some(statement), None) => Ok(Stage {
            index,
            name,
            line,
            sql,
            statement,
        }),
        _ => Err(wrong("one statement was expected".to_owned())),
    }
}

/// The names of the parameters that `source` uses, without `$`.
pub(crate) fn placeholders(source: &str) -> Result<BTreeSet<String>, PipelineError> {
    let names = split(source)?.into_iter().flat_map(|piece| piece.tokens);
    Ok(names
        .filter_map(|token| match token.token {
            Token::Placeholder(name) => name.strip_prefix('$').map(str::to_owned),
            _ => None,
        })
        .filter(|name| !name.bytes().all(|b| b.is_ascii_digit()))
        .collect())
}

/// Puts literal tokens in the place of `$key`. `$1` stays, and so does everything in PREPARE: those are the session's.
fn bind(
    tokens: &mut [TokenWithSpan],
    params: &Params,
    used: &mut BTreeSet<String>,
) -> Result<(), PipelineError> {
    let prepares = matches!(tokens.first().map(|t| &t.token), Some(Token::Word(word)) if word.value.eq_ignore_ascii_case("prepare"));
    for token in tokens {
        let Token::Placeholder(placeholder) = &token.token else {
            continue;
        };
        let Some(name) = placeholder.strip_prefix('$') else {
            continue;
        };
        if name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        match params.get(name) {
            Some(value) => {
                used.insert(name.to_owned());
                token.token = value.token();
            }
            None if prepares => {}
            None => {
                return Err(PipelineError::MissingParam {
                    name: name.to_owned(),
                    line: token.span.start.line,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;
    use crate::ParamValue;

    fn statements(source: &str, params: &Params) -> Vec<String> {
        Script::parse(source, params)
            .unwrap()
            .stages()
            .iter()
            .map(|s| s.statement.to_string())
            .collect()
    }

    #[test]
    fn stages_have_names_lines_and_text() {
        let script = Script::parse(
            "SELECT 1;\n-- name: second\nSELECT\n 2;",
            &Params::default(),
        )
        .unwrap();
        let all: Vec<_> = script
            .stages()
            .iter()
            .map(|s| (s.index, s.name.as_str(), s.line, s.sql.as_str()))
            .collect();
        assert_eq!(
            all,
            [(1, "1", 1, "SELECT 1"), (2, "second", 3, "SELECT\n 2")]
        );
        assert!(
            Script::parse(" -- nothing\n", &Params::default())
                .unwrap()
                .stages()
                .is_empty()
        );
    }

    #[test]
    fn a_value_stays_one_literal_whatever_it_holds() {
        let params = Params::default().with("x", ParamValue::Text("'; DROP TABLE t; --".into()));
        let bound = statements("SELECT * FROM t WHERE a = $x", &params);
        assert_eq!(bound, ["SELECT * FROM t WHERE a = '''; DROP TABLE t; --'"]);
    }

    #[test]
    fn parameters_reach_every_place_a_literal_can_stand() {
        let params = Params::default()
            .with("out", ParamValue::Text("o.csv".into()))
            .with("n", ParamValue::Number("16".into()))
            .with("on", ParamValue::Boolean(true));
        let bound = statements(
            "COPY (SELECT 1) TO $out; SELECT f(rank => $n, b => $on) LIMIT $n",
            &params,
        );
        assert_eq!(bound[0], "COPY (SELECT 1) TO o.csv");
        assert!(
            bound[1].contains("rank => 16")
                && bound[1].contains("true")
                && bound[1].ends_with("LIMIT 16"),
            "{}",
            bound[1]
        );
    }

    #[test]
    fn prepared_statements_keep_their_own() {
        let bound = statements(
            "PREPARE p AS SELECT $1, $x; EXECUTE p(1, 2)",
            &Params::default(),
        );
        assert!(bound[0].contains("$1") && bound[0].contains("$x"));
    }

    #[test]
    fn mistakes_stop_everything() {
        let none = Params::default();
        let text =
            |source: &str, params: &Params| Script::parse(source, params).unwrap_err().to_string();
        assert!(
            text("SELECT 1;\n\nSELEC 2;", &none).contains("line 3"),
            "{}",
            text("SELECT 1;\n\nSELEC 2;", &none)
        );
        assert!(text("SELECT 'x", &none).contains("not closed"));
        assert!(text("SELECT\n $k", &none).contains("--param k=VALUE"));
        assert!(
            text("SELECT 1", &none.clone().with("k", ParamValue::Null))
                .contains("used by no statement")
        );
        assert!(
            text("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2", &none).contains("two statements")
        );
    }
}
