use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    Error, Result, RewardScores,
    domain::{Centring, LikelihoodWeight},
    pairs::check::Named,
};

/// Scores of a batch of pairs with a path to the reward model, and what some objectives read besides.
#[derive(Debug)]
pub struct RewardBatch {
    scores: RewardScores,
    margin: Option<Tensor>,
    chosen_logps: Option<Tensor>,
}

impl RewardBatch {
    /// Scores alone.
    pub fn new(scores: RewardScores) -> Self {
        Self { scores, margin: None, chosen_logps: None }
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

    /// Adds log π(y_w) of a language model on the same trunk, `[batch]`, nats (a sum, or a mean over tokens), with its gradient.
    ///
    /// # Errors
    /// As [`with_margin`](Self::with_margin).
    pub fn with_chosen_logps(mut self, logps: Tensor) -> Result<Self> {
        Named::vector("chosen_logps", &logps).rank(1)?.like(self.scores.chosen())?;
        self.chosen_logps = Some(logps);
        Ok(self)
    }

    /// The scores.
    pub fn scores(&self) -> &RewardScores {
        &self.scores
    }

    /// The margin by which y_w should beat y_l, `[batch]`, if the batch has it.
    pub fn margin(&self) -> Option<&Tensor> {
        self.margin.as_ref()
    }

    /// log π(y_w), `[batch]`, nats, if the batch has it.
    pub fn chosen_logps(&self) -> Option<&Tensor> {
        self.chosen_logps.as_ref()
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
}

/// What a reward model is trained by: [`BradleyTerry`], alone or beside a language-modelling term.
pub trait RewardObjective: Debug {
    /// Loss of each pair, `[batch]`; gradients flow to the reward model.
    ///
    /// # Errors
    /// [`MissingColumn`](Error::MissingColumn) when the batch lacks a column that this objective reads.
    fn per_pair(&self, batch: &RewardBatch) -> Result<Tensor>;

    /// Mean over the batch, a scalar.
    ///
    /// # Errors
    /// Those of [`per_pair`](Self::per_pair).
    fn mean(&self, batch: &RewardBatch) -> Result<Tensor> {
        let losses = self.per_pair(batch)?;
        Ok(losses.mean(losses.kind()))
    }
}

impl RewardObjective for BradleyTerry {
    fn per_pair(&self, batch: &RewardBatch) -> Result<Tensor> {
        let scores = &batch.scores;
        let margins = match &batch.margin {
            Some(margin) => scores.margins() - margin,
            None => scores.margins(),
        };
        let centring = (scores.chosen() + scores.rejected()).square() * self.centring.get();
        let losses = centring - margins.log_sigmoid();
        Ok(losses.mean_dim([0].as_slice(), false, losses.kind()))
    }
}

/// Bradley–Terry and, on the same trunk, language modelling of the response that won: L_BT − w·log π(y_w), `[batch]`, nats.
///
/// The second term keeps the trunk a language model while its head learns to judge. log π is the column
/// [`chosen_logps`](RewardBatch::with_chosen_logps); a mean over tokens or a sum, as it was put in.
///
/// Source: Nath et al. 2024 (DRDO), the oracle's objective, after Yang et al. 2024, "Regularizing hidden states". The weight is not given there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithLikelihood {
    objective: BradleyTerry,
    likelihood_weight: LikelihoodWeight,
}

impl WithLikelihood {
    /// # Errors
    /// [`Domain`](Error::Domain) for a weight that is negative or not finite.
    pub fn new(objective: BradleyTerry, likelihood_weight: f64) -> Result<Self> {
        Ok(Self { objective, likelihood_weight: LikelihoodWeight::new(likelihood_weight)? })
    }
}

impl RewardObjective for WithLikelihood {
    fn per_pair(&self, batch: &RewardBatch) -> Result<Tensor> {
        let missing = Error::MissingRewardColumn {
            objective: "WithLikelihood",
            column: "chosen_logps",
            method: "with_chosen_logps",
        };
        let logps = batch.chosen_logps.as_ref().ok_or(missing)?;
        Ok(self.objective.per_pair(batch)? - logps * self.likelihood_weight.get())
    }
}
