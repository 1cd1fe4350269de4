//! What a loss reads: checked when it is built, trusted afterwards.

mod batch;
pub(crate) mod check;
mod logps;
mod scores;
mod tokens;
mod unpaired;

pub use batch::PreferenceBatch;
pub use logps::{PairLogps, ResponseLengths, ResponseTable};
pub use scores::RewardScores;
pub use tokens::TokenLogps;
pub use unpaired::UnpairedBatch;
