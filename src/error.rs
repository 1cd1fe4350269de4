use tch::{Device, Kind};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which the crate refuses its input. Each message names the tensor and its shape, or the parameter, its domain and the value.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// A tensor of the wrong rank.
    #[error("{tensor} must have shape {expected}, got {found:?}")]
    Rank {
        /// Name of the tensor.
        tensor: &'static str,
        /// The shape in symbols, such as `[members, batch]`.
        expected: &'static str,
        /// The shape it had.
        found: Vec<i64>,
    },
    /// A tensor whose size along one dimension does not fit the others.
    #[error("{tensor} must have shape {shape} with {dimension} = {expected}, got {dimension} = {found}")]
    Length {
        /// Name of the tensor.
        tensor: &'static str,
        /// The shape in symbols.
        shape: &'static str,
        /// The dimension that does not fit.
        dimension: &'static str,
        /// The size that the other tensors have.
        expected: i64,
        /// The size that this one has.
        found: i64,
    },
    /// Tensors on different devices.
    #[error("{tensor} is on {found:?}, expected {expected:?} like the tensors it goes with")]
    Device {
        /// Name of the tensor.
        tensor: &'static str,
        /// Device of the tensors it goes with.
        expected: Device,
        /// Its own device.
        found: Device,
    },
    /// A tensor of the wrong element kind.
    #[error("{tensor} must be {expected}, got {found:?}")]
    Kind {
        /// Name of the tensor.
        tensor: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it was.
        found: Kind,
    },
    /// A tensor of another element kind than the one it goes with.
    #[error("{tensor} must be {expected:?} like the tensors it goes with, got {found:?}")]
    KindOf {
        /// Name of the tensor.
        tensor: &'static str,
        /// Kind of the others.
        expected: Kind,
        /// Its own kind.
        found: Kind,
    },
    /// A tensor without elements.
    #[error("{tensor} is empty: shape {shape} needs at least one element")]
    Empty {
        /// Name of the tensor.
        tensor: &'static str,
        /// The shape in symbols.
        shape: &'static str,
    },
    /// A value of a tensor outside its domain.
    #[error("{tensor}[{index}] must be {domain}, got {value}")]
    Element {
        /// Name of the tensor.
        tensor: &'static str,
        /// Index into the flattened tensor.
        index: i64,
        /// What its elements may be.
        domain: &'static str,
        /// What this one was.
        value: f64,
    },
    /// A part of a sequence without tokens.
    #[error("the {part} of group {group} has no token: {reason}")]
    NoTokens {
        /// `prompt` or `response`.
        part: &'static str,
        /// Index of its group, from 0.
        group: usize,
        /// Why that cannot be.
        reason: &'static str,
    },
    /// A loss that reads a column which the batch lacks.
    #[error("{loss} needs the column `{column}`, which this batch lacks: add it with PreferenceBatch::{method}")]
    MissingColumn {
        /// Name of the loss.
        loss: &'static str,
        /// Name of the column.
        column: &'static str,
        /// The method that adds it.
        method: &'static str,
    },
    /// Means over tokens, given to what divides by the lengths itself.
    #[error(
        "{by} divides by the responses' lengths: give it sums over tokens, which these log-probabilities no longer are (PairLogps::per_token)"
    )]
    TokenMeans {
        /// What divides.
        by: &'static str,
    },
    /// Pair weights, given to a loss whose terms are not of pairs.
    #[error(
        "{loss} couples the sorted pairs of its batch, where a pair's weight would fall on another: give it a batch without weights"
    )]
    WeightedTransport {
        /// Name of the loss.
        loss: &'static str,
    },
    /// A step of several parts for a loss that cannot be taken apart.
    #[error(
        "{loss} couples each pair of its batch with another one, by ranks that move with the policy: give it the whole batch in one part"
    )]
    Unsettled {
        /// Name of the loss.
        loss: &'static str,
    },
    /// A loss of single responses that reads what the batch lacks.
    #[error("{loss} needs the column `{column}`, which this batch lacks: add it with UnpairedBatch::{method}")]
    MissingUnpairedColumn {
        /// Name of the loss.
        loss: &'static str,
        /// Name of the column.
        column: &'static str,
        /// The method that adds it.
        method: &'static str,
    },
    /// A reward objective that reads a column which the batch lacks.
    #[error("{objective} needs the column `{column}`, which this batch lacks: add it with RewardBatch::{method}")]
    MissingRewardColumn {
        /// Name of the objective.
        objective: &'static str,
        /// Name of the column.
        column: &'static str,
        /// The method that adds it.
        method: &'static str,
    },
    /// A loss for one reward model, given several.
    #[error(
        "{loss} takes one reward model, got {members}: choose one with RewardScores::member, or average with RewardScores::averaged"
    )]
    OneMember {
        /// Name of the loss.
        loss: &'static str,
        /// Number of reward models in the batch.
        members: i64,
    },
    /// A member index beyond the family.
    #[error("reward model {index} was asked for, but the batch has {members}, numbered from 0")]
    MemberOutOfRange {
        /// The index asked for.
        index: i64,
        /// How many there are.
        members: i64,
    },
    /// A tracker asked for its answer before it has seen a batch.
    #[error("the running minimum has seen no batch since its last reset")]
    NothingObserved,
    /// An update without a gradient.
    #[error("there is nothing to update by: no part was accumulated since the last step")]
    NothingAccumulated,
    /// Batches that are put together, of which only some have a column.
    #[error("some of the batches have the column `{column}` and some do not: a whole needs it from all or none")]
    UnevenColumn {
        /// Name of the column.
        column: &'static str,
    },
    /// Probabilities that do not sum to 1.
    #[error("row {row} of {name} must sum to 1, got {sum}")]
    Simplex {
        /// Name of the array.
        name: &'static str,
        /// Its row, from 0.
        row: usize,
        /// What the row sums to.
        sum: f64,
    },
    /// An annotator of whom nothing is known.
    #[error("annotator {annotator} has no vote: number those who voted from 0 without a gap")]
    NoVotes {
        /// The annotator, from 0.
        annotator: usize,
    },
    /// More latent types than annotators.
    #[error("{types} types were asked for, but there are only {annotators} annotators")]
    TooManyTypes {
        /// Types asked for.
        types: usize,
        /// Annotators there are.
        annotators: usize,
    },
    /// An embedding that does not consist of blocks of two.
    #[error("a general preference embedding consists of blocks of two, its size must be even and positive, got {size}")]
    OddEmbedding {
        /// The size it had.
        size: i64,
    },
    /// A table of transport costs for which the monotone coupling need not be optimal.
    #[error(
        "costs are not Monge: c[i,j] + c[i+1,j+1] exceeds c[i,j+1] + c[i+1,j] by {excess} at i = {row}, j = {column}"
    )]
    NotMonge {
        /// i, from 0.
        row: usize,
        /// j, from 0.
        column: usize,
        /// By how much the sum of the straight moves exceeds that of the crossing ones.
        excess: f64,
    },
    /// A vote for a category that there is not.
    #[error("vote {vote} is for category {category}, but there are {categories}, numbered from 0")]
    CategoryOutOfRange {
        /// Index of the vote, from 0.
        vote: usize,
        /// Its category.
        category: usize,
        /// How many there are.
        categories: usize,
    },
    /// A vote on a pair that there is not.
    #[error("vote {vote} is on pair {pair}, but there are {pairs}, numbered from 0")]
    VoteOutOfRange {
        /// Index of the vote, from 0.
        vote: usize,
        /// Its pair.
        pair: usize,
        /// How many there are.
        pairs: usize,
    },
    /// A loss or gradient that is not finite; nothing was updated.
    #[error("{quantity} is {value} at step {step}: no parameter was changed")]
    NonFinite {
        /// `loss` or `gradient norm`.
        quantity: &'static str,
        /// Index of the step, from 1.
        step: u64,
        /// Its value.
        value: f64,
    },
    /// An optimiser without parameters.
    #[error("there is nothing to train: {0} holds no tensor that requires a gradient")]
    NothingToTrain(&'static str),
    /// A parameter that the loss does not reach at all.
    #[error("no parameter received a gradient: the loss does not depend on the tensors that the optimiser holds")]
    Disconnected,
    /// A tensor that a backward pass needs is no longer what it was in the forward pass.
    #[error("{tensor} was written to in place between the forward and the backward pass")]
    Modified {
        /// Name of the tensor.
        tensor: &'static str,
    },
    /// A file or folder that could not be read or written: a full disk, say.
    #[cfg(feature = "run")]
    #[error(transparent)]
    File(#[from] crate::train::FileError),
    /// A checkpoint that cannot be made, is damaged, or does not fit.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Checkpoint(#[from] crate::train::CheckpointError),
    /// The system does not tell of Ctrl-C.
    #[cfg(feature = "run")]
    #[error("cannot listen for Ctrl-C: {0}")]
    Interrupt(#[from] ctrlc::Error),
    /// A model's files, configuration or use (feature `lm`).
    #[cfg(feature = "lm")]
    #[error(transparent)]
    Model(#[from] crate::lm::ModelError),
    /// Data that cannot be read, split or cached (feature `data`).
    #[cfg(feature = "data")]
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// libtorch refused an operation.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
