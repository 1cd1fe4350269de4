use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Result, RewardScores, domain::Centring, pairs::check::Named};

/// Scores of a batch of pairs with a path to the reward model, and optionally by how much the chosen one should win.
#[derive(Debug)]
pub struct RewardBatch {
    scores: RewardScores,
    margin: Option<Tensor>,
}

impl RewardBatch {
    /// Scores alone.
    pub fn new(scores: RewardScores) -> Self {
        Self { scores, margin: None }
    }

    /// Adds the margin by which y_w should beat y_l, `[batch]`, in units of reward.
    ///
    /// # Errors
    /// [`Rank`](crate::Error::Rank), [`Length`](crate::Error::Length), [`Device`](crate::Error::Device) or
    /// [`Kind`](crate::Error::Kind) when it does not fit the scores.
    pub fn with_margin(mut self, margin: Tensor) -> Result<Self> {
        Named::vector("margin", &margin).rank(1)?.like(self.scores.chosen())?;
        self.margin = Some(margin.detach());
        Ok(self)
    }

    /// The scores.
    pub fn scores(&self) -> &RewardScores {
        &self.scores
    }
}

/// Bradley–Terry likelihood with an optional margin m and centring weight c:
/// −log σ(r(y_w) − r(y_l) − m) + c·(r(y_w) + r(y_l))², `[batch]`, averaged over members; nats.
///
/// Only differences of scores are identified; centring fixes the level near 0.
///
/// Source: Bradley and Terry 1952; the margin from Touvron et al. 2023 (Llama 2), eq. 2; centring from Eisenstein et al. 2023, eq. 2. TRL:
/// `RewardTrainer`, `margin` column, `center_rewards_coefficient`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BradleyTerry {
    centring: Centring,
}

impl BradleyTerry {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a centring weight that is negative or not finite.
    pub fn new(centring: f64) -> Result<Self> {
        Ok(Self { centring: Centring::new(centring)? })
    }

    /// Loss of each pair, `[batch]`, the mean over members.
    pub fn per_pair(&self, batch: &RewardBatch) -> Tensor {
        let scores = &batch.scores;
        let margins = match &batch.margin {
            Some(margin) => scores.margins() - margin,
            None => scores.margins(),
        };
        let centring = (scores.chosen() + scores.rejected()).square() * self.centring.get();
        let losses = centring - margins.log_sigmoid();
        losses.mean_dim([0].as_slice(), false, losses.kind())
    }

    /// Mean over the batch, a scalar.
    pub fn mean(&self, batch: &RewardBatch) -> Tensor {
        let losses = self.per_pair(batch);
        losses.mean(losses.kind())
    }
}
