//! What can be wrong with a script before it runs, or with the place its results go.

use std::io;

/// A script that is not run, or not run to its end for reasons outside its statements.
///
/// Failures of statements are not here: they are in the report of their stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The script is not SQL.
    #[error("{message} (statement {stage}, which begins in line {line}); nothing was run")]
    Syntax {
        /// The number of the statement, from 1.
        stage: usize,
        /// The line of the script in which it begins, from 1.
        line: u64,
        /// What the parser says.
        message: String,
    },

    /// A string, identifier or comment that is not closed.
    #[error("{message}: a quote or comment is not closed; nothing was run")]
    Unclosed {
        /// What the tokenizer says, with the place.
        message: String,
    },

    /// Two stages of one name.
    #[error(
        "two statements are named {name:?} (lines {first} and {second}); give each its own name; nothing was run"
    )]
    DuplicateName {
        /// The name.
        name: String,
        /// The line of the first.
        first: u64,
        /// The line of the second.
        second: u64,
    },

    /// A parameter that is not `key=value`.
    #[error("parameter {given:?} is not understood: {problem}")]
    Param {
        /// The parameter as given.
        given: String,
        /// What is wrong, and what to write.
        problem: String,
    },

    /// A statement uses a parameter that was not given.
    #[error(
        "line {line} uses ${name}, but no such parameter was given: add --param {name}=VALUE; nothing was run"
    )]
    MissingParam {
        /// The name, without `$`.
        name: String,
        /// The line of its use.
        line: u64,
    },

    /// A parameter that no statement uses: most likely misspelt.
    #[error("parameter {name:?} is used by no statement (write it ${name}); nothing was run")]
    UnusedParam {
        /// The name, without `$`.
        name: String,
    },

    /// The place results are written to failed; a closed pipe is the usual case.
    #[error("cannot write results: {source}")]
    Output {
        /// What the system said.
        source: io::Error,
        /// Whether it was the last stage, so that none was left to run.
        last: bool,
    },
}
