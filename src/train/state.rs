use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What [`AdamW`](super::AdamW) remembers of one parameter.
#[derive(Debug)]
pub struct Moments {
    /// m, of the parameter's shape; in f32 beside a master, else of the parameter's kind.
    pub first: Tensor,
    /// v, likewise.
    pub second: Tensor,
    /// t, a scalar of f32.
    pub steps: Tensor,
    /// The parameter in f32, of an optimiser [with masters](super::AdamW::with_masters).
    pub master: Option<Tensor>,
}

impl Moments {
    /// With the names of the parts, always in this order.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> + Clone {
        let always = [("first_moment", &self.first), ("second_moment", &self.second), ("steps", &self.steps)];
        always.into_iter().chain(self.master.as_ref().map(|master| ("master", master)))
    }
}

/// What a [`Descent`](super::Descent) and its optimiser remember between steps.
#[derive(Debug)]
pub struct DescentState {
    /// Steps taken, by which the schedule goes.
    pub steps: u64,
    /// One for each parameter.
    pub moments: Vec<Moments>,
}

/// Where in the data a run is: the batch that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Passes over the data that are behind it.
    pub epoch: u64,
    /// Batches of this pass that are behind it.
    pub batch: u64,
}
