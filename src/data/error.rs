use std::path::PathBuf;

use super::{BadLine, Column, Faults};

/// `std::result::Result` with [`DataError`].
pub type Result<T> = std::result::Result<T, DataError>;

/// Every way in which files, texts and caches are refused.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refused a file, or its compression is broken.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A broken line, as a reader meets it.
    #[error(transparent)]
    Line(#[from] BadLine),
    /// All broken lines of a run.
    #[error("{0}")]
    Broken(Faults),
    /// A parquet file, without the feature that reads it.
    #[error("{file} is a parquet file: build with the feature `parquet`")]
    NeedsParquet {
        /// The file.
        file: PathBuf,
    },
    /// A parquet file that cannot be read.
    #[cfg(feature = "parquet")]
    #[error("{file}: {source}")]
    Parquet {
        /// The file.
        file: PathBuf,
        /// What its reader said.
        source: parquet::errors::ParquetError,
    },
    /// A JSON file of a tokenizer that is none.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A tokenizer.json that is none, or an encoding that failed.
    #[error("tokenizer: {0}")]
    Tokenizer(#[source] tokenizers::Error),
    /// A chat template that cannot be compiled or filled in.
    #[error("chat template: {0}")]
    Template(#[from] minijinja::Error),
    /// Conversations without a template to write them with.
    #[error(
        "conversations need a chat template: the tokenizer's folder has neither chat_template.jinja nor `chat_template` in tokenizer_config.json"
    )]
    NoTemplate,
    /// A tokenizer without an end-of-sequence token.
    #[error("the tokenizer names no end-of-sequence token (`eos_token` in tokenizer_config.json)")]
    NoEnd,
    /// A special token that the vocabulary lacks.
    #[error("{role} is {token:?}, which the tokenizer's vocabulary lacks")]
    UnknownToken {
        /// Its name, such as `eos_token`.
        role: &'static str,
        /// Its text.
        token: String,
    },
    /// A tokenizer of another model.
    #[error(
        "the tokenizer has token ids up to {largest}, the model a vocabulary of {model}: they do not belong together"
    )]
    Vocabulary {
        /// The largest id.
        largest: usize,
        /// The model's vocabulary.
        model: usize,
    },
    /// A limit that leaves no room for a response.
    #[error("{limit} must be at least {least} tokens, got {value}")]
    Limit {
        /// Its name.
        limit: &'static str,
        /// The least that makes sense.
        least: usize,
        /// What it was.
        value: usize,
    },
    /// A pair with an empty part.
    #[error("the {part} of pair {pair} has no token")]
    EmptyPart {
        /// `prompt`, `chosen` or `rejected`.
        part: &'static str,
        /// Index of the pair.
        pair: usize,
    },
    /// A column that a pair lacks.
    #[error("the column `{}` was asked for, but pair {pair} has none", .column.name())]
    MissingColumn {
        /// The column.
        column: Column,
        /// The first pair without it.
        pair: usize,
    },
    /// A pair that there is not.
    #[error("pair {pair} was asked for, but there are {pairs}, numbered from 0")]
    NoPair {
        /// The index asked for.
        pair: usize,
        /// How many there are.
        pairs: usize,
    },
    /// A number outside the domain of its parameter.
    #[error("{parameter} must be {domain}, got {value}")]
    Domain {
        /// Name of the parameter.
        parameter: &'static str,
        /// What it may be.
        domain: &'static str,
        /// What it was.
        value: f64,
    },
    /// A share that leaves one part without a pair for certain.
    #[error("the held-out share must be above 0 and below 1, got {0}")]
    Share(f64),
    /// A data set without a pair.
    #[error("there is no pair in {0}")]
    NoPairs(&'static str),
    /// A pair that no batch has room for.
    #[error(
        "pair {pair} has {tokens} tokens, more than the budget of {budget} for a batch: raise it, or tokenise with a shorter context"
    )]
    Budget {
        /// Index of the pair.
        pair: usize,
        /// Its tokens.
        tokens: usize,
        /// The budget.
        budget: usize,
    },
    /// A cache of other data, of another model, or of another kind.
    #[error("{file} is stale: {what} is {found}, expected {expected}; delete it to compute it again")]
    Stale {
        /// The cache.
        file: PathBuf,
        /// What differs: `format`, `kind`, `data digest` or `model digest`.
        what: &'static str,
        /// As it should be.
        expected: String,
        /// As the file has it.
        found: String,
    },
    /// A cache that is no safetensors file, or was cut off.
    #[error("{file}: {source}")]
    Cache {
        /// The cache.
        file: PathBuf,
        /// What its reader said.
        source: safetensors::SafeTensorError,
    },
    /// A column that the cache lacks.
    #[error("the cache has no column `{name}`, only: {}", .names.join(", "))]
    NoCached {
        /// The column asked for.
        name: String,
        /// Those there are.
        names: Vec<String>,
    },
    /// A cached column of the wrong shape, kind or content.
    #[error("cached column `{name}` must be {expected}, got {found}")]
    Cached {
        /// The column.
        name: String,
        /// What it may be.
        expected: &'static str,
        /// What it was.
        found: String,
    },
}
