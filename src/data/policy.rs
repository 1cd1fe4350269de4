use serde::{Deserialize, Serialize};

use super::{DataError, Result};

/// How many broken lines are listed.
const LISTED: usize = 20;

/// How long pairs may be, in tokens. The prompt and each response for itself fit into the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LimitsFile")]
pub struct Limits {
    pub(super) context: usize,
    pub(super) longest_prompt: Option<usize>,
    pub(super) longest_response: Option<usize>,
}

/// What a configuration file says, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFile {
    context: usize,
    #[serde(default)]
    longest_prompt: Option<usize>,
    #[serde(default)]
    longest_response: Option<usize>,
}

impl TryFrom<LimitsFile> for Limits {
    type Error = DataError;
    fn try_from(file: LimitsFile) -> Result<Self> {
        let mut limits = Self::new(file.context)?;
        if let Some(tokens) = file.longest_prompt {
            limits = limits.with_longest_prompt(tokens)?;
        }
        file.longest_response.map_or(Ok(limits), |tokens| limits.with_longest_response(tokens))
    }
}

impl Limits {
    /// `context` for prompt and response together.
    ///
    /// # Errors
    /// [`Limit`](DataError::Limit) below 2, a token of each.
    pub fn new(context: usize) -> Result<Self> {
        let context = at_least("context", 2, context)?;
        Ok(Self { context, longest_prompt: None, longest_response: None })
    }

    /// A limit for prompts.
    ///
    /// # Errors
    /// [`Limit`](DataError::Limit) below 1.
    pub fn with_longest_prompt(self, tokens: usize) -> Result<Self> {
        Ok(Self { longest_prompt: Some(at_least("longest_prompt", 1, tokens)?), ..self })
    }

    /// A limit for responses.
    ///
    /// # Errors
    /// [`Limit`](DataError::Limit) below 1.
    pub fn with_longest_response(self, tokens: usize) -> Result<Self> {
        Ok(Self { longest_response: Some(at_least("longest_response", 1, tokens)?), ..self })
    }
}

fn at_least(limit: &'static str, least: usize, value: usize) -> Result<usize> {
    if value >= least { Ok(value) } else { Err(DataError::Limit { limit, least, value }) }
}

impl Default for Limits {
    /// A context of 1024.
    fn default() -> Self {
        Self { context: 1024, longest_prompt: None, longest_response: None }
    }
}

/// What becomes of a prompt over its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongPrompt {
    /// Its pair is dropped and counted.
    #[default]
    Drop,
    /// Its begin-of-sequence token and its last tokens are kept.
    KeepEnd,
}

/// What becomes of a response over its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongResponse {
    /// Its start is kept, without an end-of-sequence token, and its pair counted.
    #[default]
    Cut,
    /// Its pair is dropped and counted.
    Drop,
}

/// What becomes of a response of white space alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyResponse {
    /// Its pair is dropped and counted.
    #[default]
    Drop,
    /// What is left of it, the end-of-sequence token at least, is scored.
    Keep,
}

/// What becomes of a pair whose label is ½.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tie {
    /// It stays, for losses that read soft labels.
    #[default]
    Keep,
    /// It is dropped and counted.
    Drop,
}

/// What becomes of pairs that are not as one would have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// A prompt over its limit.
    pub long_prompt: LongPrompt,
    /// A response over its limit.
    pub long_response: LongResponse,
    /// A response of white space alone.
    pub empty_response: EmptyResponse,
    /// A label of ½.
    pub tie: Tie,
}

/// What becomes of broken lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BadLines {
    /// All are looked for, and the run refused with the first `listed` of them.
    Refuse {
        /// How many are listed.
        listed: usize,
    },
    /// They are left out (`--skip-bad`), and counted and listed in the report.
    Skip {
        /// How many are listed.
        listed: usize,
    },
}

impl Default for BadLines {
    /// Refused, 20 listed.
    fn default() -> Self {
        Self::Refuse { listed: LISTED }
    }
}
