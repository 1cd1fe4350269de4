use tch::{
    Tensor,
    nn::{self, Module},
};

use crate::{Result, RewardScores, pairs::check::Named};

/// Scores of responses under one reward model or a family of them.
pub trait RewardScorer {
    /// Number of reward models.
    fn members(&self) -> i64;

    /// Scores of each response, `[members, batch]`, from the hidden state of its last token, `[batch, width]`.
    ///
    /// Take the last token of the *response*: where the padding token equals the end-of-sequence token, the first match is not it.
    ///
    /// # Errors
    /// [`Rank`](crate::Error::Rank) or [`Length`](crate::Error::Length) when the hidden states do not fit the head.
    fn scores(&self, hidden: &Tensor) -> Result<Tensor>;

    /// Scores of the chosen and the rejected response of each pair, from their hidden states, `[batch, width]` each.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    fn pair_scores(&self, chosen: &Tensor, rejected: &Tensor) -> Result<RewardScores> {
        RewardScores::new(self.scores(chosen)?, self.scores(rejected)?)
    }
}

/// One linear score: r = w·hidden + b.
#[derive(Debug)]
pub struct ScalarHead(nn::Linear);

impl ScalarHead {
    /// A head on hidden states of this width. It starts at 0, so that an untrained reward model is indifferent.
    pub fn new(vs: &nn::Path, width: i64) -> Self {
        Self(indifferent(vs, width, 1))
    }
}

impl RewardScorer for ScalarHead {
    fn members(&self) -> i64 {
        1
    }

    fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        project(&self.0, hidden)
    }
}

/// A family on one trunk: M linear scores of the same hidden state, each from its own random layer of features.
///
/// r_m = w_m·tanh(A_m hidden + b_m). The A_m are drawn at random and trained, so that members which see the same data still
/// differ where the data say little.
#[derive(Debug)]
pub struct EnsembleHead {
    features: nn::Linear,
    readout: Tensor,
}

impl EnsembleHead {
    /// `members` heads of `features` units each on hidden states of this width.
    pub fn new(vs: &nn::Path, width: i64, members: i64, features: i64) -> Self {
        let layer = nn::linear(vs / "features", width, members * features, nn::LinearConfig::default());
        Self { features: layer, readout: vs.zeros("readout", &[members, features]) }
    }
}

impl RewardScorer for EnsembleHead {
    fn members(&self) -> i64 {
        self.readout.size()[0]
    }

    fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        fits(hidden, self.features.ws.size()[1])?;
        let size = self.readout.size();
        let features = self.features.forward(hidden).tanh().view([-1, size[0], size[1]]);
        Ok((features * &self.readout).sum_dim_intlist([2].as_slice(), false, hidden.kind()).tr())
    }
}

fn indifferent(vs: &nn::Path, width: i64, outputs: i64) -> nn::Linear {
    let config = nn::LinearConfig { ws_init: nn::Init::Const(0.0), bs_init: Some(nn::Init::Const(0.0)), bias: true };
    nn::linear(vs, width, outputs, config)
}

fn project(layer: &nn::Linear, hidden: &Tensor) -> Result<Tensor> {
    fits(hidden, layer.ws.size()[1])?;
    Ok(layer.forward(hidden).tr())
}

fn fits(hidden: &Tensor, width: i64) -> Result<()> {
    Named::matrix("hidden", "[batch, width]", hidden).rank(2)?.length(1, "width", width)?;
    Ok(())
}
