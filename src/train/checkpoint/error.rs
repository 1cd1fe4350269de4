use std::path::PathBuf;

use tch::Kind;

/// A checkpoint that cannot be made, is not what was saved, or does not fit.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file of another length than was written.
    #[error("{path} has {found} bytes, {expected} were written")]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes written.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// A file with other bytes than were written.
    #[error("{path} is damaged: its CRC-32C is {found:08x}, it was {expected:08x} when written")]
    Digest {
        /// The file.
        path: PathBuf,
        /// Digest when written.
        expected: u32,
        /// Digest now.
        found: u32,
    },
    /// A list of lengths and digests that cannot be read, or does not name a file.
    #[error("{path} does not say length and CRC-32C of {file}")]
    Unlisted {
        /// The list.
        path: PathBuf,
        /// The file that it should name.
        file: &'static str,
    },
    /// A file of tensors that is none.
    #[error("{path}: {source}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A record that is none.
    #[error("{path}: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A checkpoint of a later version of this crate.
    #[error("{path} is in format {found}, this version reads format {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// What is read here.
        known: u32,
    },
    /// Checkpoints, but none that is whole.
    #[error("none of the {count} checkpoints in {folder} can be read. The newest: {newest}")]
    NoneWhole {
        /// The folder of the run.
        folder: PathBuf,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        newest: Box<crate::Error>,
    },
    /// A tensor of a kind for which safetensors has no name.
    #[error("`{name}` is {kind:?}, which a checkpoint cannot hold")]
    Kind {
        /// Name of the tensor.
        name: String,
        /// Its kind.
        kind: Kind,
    },
    /// A parameter that is trained and would not be saved.
    #[error(
        "parameter {index} of the optimiser, of shape {shape:?}, is not among the named tensors of the model: its moments would be saved without it"
    )]
    Unnamed {
        /// Its index in the optimiser.
        index: usize,
        /// Its shape.
        shape: Vec<i64>,
    },
    /// A tensor that the model or the optimiser has and the checkpoint has not.
    #[error("the checkpoint has no tensor `{name}`")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor that the checkpoint has and the model or the optimiser has not.
    #[error("the checkpoint has a tensor `{name}`, for which there is no place")]
    NoPlace {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape.
    #[error("`{name}` must have shape {expected:?}, the checkpoint's has {found:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape in the model or the optimiser.
        expected: Vec<i64>,
        /// Its shape in the checkpoint.
        found: Vec<i64>,
    },
    /// A tensor of another kind.
    #[error("`{name}` must be {expected:?}, the checkpoint's is {found:?}")]
    KindOf {
        /// Its name.
        name: String,
        /// Its kind in the model or the optimiser.
        expected: Kind,
        /// Its kind in the checkpoint.
        found: Kind,
    },
    /// A value that was not saved.
    #[error("the checkpoint has no value `{name}`")]
    MissingValue {
        /// Its name.
        name: String,
    },
    /// A value that serde does not write, or does not read as what was asked for.
    #[error("value `{name}`: {source}")]
    Value {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}
