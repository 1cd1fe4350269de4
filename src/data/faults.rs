//! Lines that are refused, where and why.

use std::{fmt, path::Path, sync::Arc};

/// A record that was refused, and where it stood.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {reason}")]
pub struct BadLine {
    /// Where.
    pub origin: Origin,
    /// Why.
    pub reason: Reason,
}

/// Where a record comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its file, or none for one made in memory.
    pub file: Option<Arc<Path>>,
    /// Its line, or its row of a parquet file, from 1; 0 for one made in memory.
    pub line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}:{}", file.display(), self.line),
            None => write!(f, "a record made in memory"),
        }
    }
}

/// Why a record was refused.
#[non_exhaustive]
#[derive(Debug)]
pub enum Reason {
    /// The line is longer than any pair: a file without line breaks, perhaps.
    TooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// The line does not begin with `{`.
    NotAnObject,
    /// The line is no JSON.
    Json(serde_json::Error),
    /// A field of the wrong type.
    Field {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it was.
        found: &'static str,
    },
    /// A number outside its domain.
    Domain {
        /// The field.
        field: &'static str,
        /// What it may be.
        domain: &'static str,
        /// What it was.
        value: f64,
    },
    /// A field that the others call for.
    Missing(&'static str),
    /// Two fields that exclude each other.
    Together(&'static str, &'static str),
    /// `responses` without a vote, a soft label or a gold label.
    Unlabelled,
    /// One response is text and the other a list of messages.
    Mixed,
    /// `chosen` and `rejected` share no message, or no turn.
    NoPrompt,
    /// `prompt` is not among the messages that `chosen` and `rejected` share.
    OtherPrompt,
    /// The chat template refused the conversation.
    Template(minijinja::Error),
    /// The tokenizer refused the text.
    Tokenizer(tokenizers::Error),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { limit } => write!(f, "the line has more than {limit} bytes"),
            Self::NotAnObject => write!(f, "the line is no JSON object"),
            Self::Json(error) => json(error, f),
            Self::Field { field, expected, found } => write!(f, "`{field}` must be {expected}, got {found}"),
            Self::Domain { field, domain, value } => write!(f, "`{field}` must be {domain}, got {value}"),
            Self::Missing(field) => write!(f, "there is no `{field}`"),
            Self::Together(first, second) => write!(f, "`{first}` and `{second}` cannot stand together"),
            Self::Unlabelled => write!(f, "`responses` need `votes`, `soft_label` or `gold`"),
            Self::Mixed => write!(f, "one response is text, the other a list of messages"),
            Self::NoPrompt => {
                write!(
                    f,
                    "there is no `prompt`, and the responses begin with no common message or `\\n\\nAssistant:` turn"
                )
            }
            Self::OtherPrompt => write!(f, "`prompt` is none of the messages that `chosen` and `rejected` begin with"),
            Self::Template(error) => write!(f, "chat template: {error}"),
            Self::Tokenizer(error) => write!(f, "tokenizer: {error}"),
        }
    }
}

/// Its line number counts from the start of our line and would only confuse.
fn json(error: &serde_json::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match message.strip_suffix(&place) {
        Some(message) => write!(f, "no JSON record: {message} at column {}", error.column()),
        None => write!(f, "no JSON record: {message}"),
    }
}

/// Broken lines: the first of them, and how many there are.
#[derive(Debug, Default)]
pub struct Faults {
    listed: Vec<BadLine>,
    total: u64,
}

impl Faults {
    /// One more, listed as long as fewer than `limit` are.
    pub fn push(&mut self, line: BadLine, limit: usize) {
        if self.listed.len() < limit {
            self.listed.push(line);
        }
        self.total += 1;
    }

    /// The first ones, in the order of the files.
    pub fn listed(&self) -> &[BadLine] {
        &self.listed
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.total
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken line{}", self.total, if self.total == 1 { "" } else { "s" })?;
        self.listed.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        match self.total - self.listed.len() as u64 {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}
