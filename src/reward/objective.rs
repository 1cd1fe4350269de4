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
    soft_labels: Option<Tensor>,
    member_weights: Option<Tensor>,
    chosen_logps: Option<Tensor>,
}

impl RewardBatch {
    /// Scores alone.
    pub fn new(scores: RewardScores) -> Self {
        Self { scores, margin: None, soft_labels: None, member_weights: None, chosen_logps: None }
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

    /// Adds p, the probability that the response called chosen is the better one, `[batch]`, in \[0, 1\], detached: a
    /// share of votes, or 1 − ε for labels smoothed by ε. Without it p = 1.
    ///
    /// # Errors
    /// As [`with_margin`](Self::with_margin); [`Element`](Error::Element) outside \[0, 1\].
    pub fn with_soft_labels(mut self, labels: Tensor) -> Result<Self> {
        let named = Named::vector("soft_labels", &labels).rank(1)?.like(self.scores.chosen())?;
        named.elements("in [0, 1]", &labels.ge(0.0).logical_and(&labels.le(1.0)))?;
        self.soft_labels = Some(labels.detach());
        Ok(self)
    }

    /// Adds w_m, what each pair counts for in the loss of member m, `[members, batch]`, at least 0, detached: how often
    /// the member's bootstrap resample has it, or 1 where it is in the member's part of the data and 0 where it is not.
    /// Without it all count 1.
    ///
    /// The weights are factors, **not** divided by their sum in a batch, which differs from batch to batch: that way
    /// the parts of a step, each counting for its number of pairs, have the gradient of the whole. Bootstrap counts sum
    /// to the number of pairs, so that the mean over the data is the mean over members of each one's loss on its
    /// resample; weights of another sum scale a member's loss.
    ///
    /// # Errors
    /// As [`with_margin`](Self::with_margin), [`Length`](Error::Length) also for another number of members;
    /// [`Element`](Error::Element) for a weight that is negative or not finite.
    pub fn with_member_weights(mut self, weights: Tensor) -> Result<Self> {
        let named = Named::matrix("member_weights", "[members, batch]", &weights).rank(2)?;
        let named = named.length(0, "members", self.scores.members())?.like(self.scores.chosen())?;
        named.elements("at least 0 and finite", &weights.ge(0.0).logical_and(&weights.isfinite()))?;
        self.member_weights = Some(weights.detach());
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

    /// Probability that the response called chosen is the better one, `[batch]`, if the batch has it.
    pub fn soft_labels(&self) -> Option<&Tensor> {
        self.soft_labels.as_ref()
    }

    /// What each pair counts for in each member's loss, `[members, batch]`, if the batch has it.
    pub fn member_weights(&self) -> Option<&Tensor> {
        self.member_weights.as_ref()
    }

    /// log π(y_w), `[batch]`, nats, if the batch has it.
    pub fn chosen_logps(&self) -> Option<&Tensor> {
        self.chosen_logps.as_ref()
    }
}

/// Bradley–Terry likelihood, the mean over members of
/// w·{−p log σ(Δr − m) − (1 − p) log σ(m − Δr) + c·(r(y_w) + r(y_l))²}, `[batch]`, nats,
/// of a member's scores r and Δr = r(y_w) − r(y_l), with centring weight c.
///
/// Of the batch, each where it has it: the [margin](RewardBatch::with_margin) m (else 0),
/// [soft labels](RewardBatch::with_soft_labels) p (else 1, which leaves −log σ(Δr − m)) and
/// [member weights](RewardBatch::with_member_weights) w (else 1), which are not divided by their sum.
///
/// Only differences of scores are identified; centring fixes the level near 0. With c = 0 the minimiser is
/// Δr = m + log(p/(1 − p)). Swapping a pair (y_w with y_l, p with 1 − p, m with −m) changes nothing.
///
/// Source: Bradley and Terry 1952; the margin from Touvron et al. 2023 (Llama 2), eq. 2; centring from Eisenstein et
/// al. 2023, eq. 2; counts as weights from Efron 1979. TRL: `RewardTrainer`, `margin` column,
/// `center_rewards_coefficient`.
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
        let likelihood = match &batch.soft_labels {
            Some(labels) => margins.log_sigmoid() * labels + (-margins).log_sigmoid() * (1.0 - labels),
            None => margins.log_sigmoid(),
        };
        let centring = (scores.chosen() + scores.rejected()).square() * self.centring.get();
        let losses = match &batch.member_weights {
            Some(weights) => (centring - likelihood) * weights,
            None => centring - likelihood,
        };
        Ok(losses.mean_dim([0].as_slice(), false, losses.kind()))
    }
}

/// Bradley–Terry and, on the same trunk, language modelling of the response that won: L_BT − w·log π(y_w), `[batch]`, nats.
///
/// The second term keeps the trunk a language model while its head learns to judge. log π is the column
/// [`chosen_logps`](RewardBatch::with_chosen_logps); a mean over tokens or a sum, as it was put in. Soft labels and
/// member weights are of L_BT alone.
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
