use std::{io, path::PathBuf};

use tch::Kind;

pub(super) type Loaded<T> = Result<T, ModelError>;

/// Every way in which a model's files, its configuration or its use is refused. Each message names the file and the key or tensor.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that cannot be read.
    #[error("{file} cannot be read: {cause}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file that cannot be written. What was there before is still there.
    #[error("{file} cannot be written: {cause}")]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file, or the header of one, that is not the JSON it should be.
    #[error("{file} is malformed: {cause}")]
    Json {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
    /// A folder without weights.
    #[error("{folder} has neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file that is not as long as its header says: cut off, or not of this format at all.
    #[error("{file} is truncated or damaged: its header asks for {expected} bytes, it has {found}")]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// An index that names a shard outside its folder.
    #[error("{file} names the shard `{shard}`, which is not a file of its own folder")]
    Shard {
        /// The index.
        file: PathBuf,
        /// The name.
        shard: String,
    },
    /// A key that is not known, so that nobody can say whether it changes what the model computes.
    #[error("{file} has the key `{key}`, which is not known here and may change what the model computes")]
    UnsupportedKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// A known key with a value that is not implemented.
    #[error("{file} sets `{key}` to {value}; implemented is {supported}")]
    UnsupportedValue {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: Box<serde_json::Value>,
        /// What is implemented.
        supported: &'static str,
    },
    /// A key without which there is no model.
    #[error("{file} has no key `{key}`")]
    MissingKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// A tensor that the configuration asks for and the file lacks.
    #[error("{file} has no tensor `{tensor}`")]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor that the configuration has no place for: without it the model would compute something else.
    #[error("{file} has a tensor `{tensor}`, for which this configuration has no place")]
    UnexpectedTensor {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{file}: `{tensor}` must have shape {expected:?}, got {found:?}")]
    Shape {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// The shape by the configuration.
        expected: Vec<i64>,
        /// The shape in the file.
        found: Vec<i64>,
    },
    /// A tensor whose numbers are quantised or no floating-point numbers.
    #[error("{file}: `{tensor}` is of type {found}; implemented are F64, F32, BF16 and F16")]
    Dtype {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// The format's name of its type.
        found: String,
    },
    /// A kind in which no model is held.
    #[error("a model is held in Float, BFloat16 or Double, got {found:?}")]
    Kind {
        /// The kind asked for.
        found: Kind,
    },
    /// More tokens than the model has positions for.
    #[error("a sequence of {tokens} tokens does not fit the model's context of {context}")]
    Context {
        /// Tokens of the longest sequence.
        tokens: i64,
        /// Positions that there are.
        context: i64,
    },
    /// A model without an adapter, asked for the reference without it, for its file, or to fold it into the weights.
    #[error(
        "the model has no adapter to switch off, save or merge: a reference of a fully tuned model is a second model, or its log-probabilities"
    )]
    NoAdapter,
    /// A second adapter.
    #[error("the model has an adapter already")]
    SecondAdapter,
    /// A name of an adapter's targets that no linear layer of the blocks has.
    #[error("the adapter's target `{target}` is not the name of a linear layer in the model's blocks")]
    NoTarget {
        /// The name.
        target: String,
    },
    /// A padding token by which transformers would read a reward at another token than a response's last, or load no model at all.
    #[error("{token} cannot be the padding token of a reward model: {reason}")]
    Padding {
        /// The token.
        token: i64,
        /// Why not.
        reason: &'static str,
    },
    /// libtorch refused an operation.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
