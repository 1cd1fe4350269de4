mod columns;

use tch::{Kind, Tensor};

use super::{PairLogps, ResponseLengths, ResponseTable, RewardScores, check::Named};
use crate::{Error, Result, logps::ResponseLogps};

/// A batch of preference pairs: log-probabilities, and the columns that some losses read besides.
///
/// Everything is checked when it is put in, and trusted afterwards.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{PairLogps, PreferenceBatch, RewardScores, tch::Tensor};
///
/// let t = |x: [f32; 2]| Tensor::from_slice(&x);
/// let logps = PairLogps::new(t([-12.0, -9.0]), t([-11.0, -14.0]), t([-12.5, -9.5]), t([-10.5, -14.0]))?;
/// let scores = RewardScores::single(&t([0.4, 1.2]), &t([0.1, -0.3]))?;
/// let batch = PreferenceBatch::new(logps).with_rewards(scores)?;
/// assert_eq!(batch.len(), 2);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PreferenceBatch {
    logps: PairLogps,
    rewards: Option<RewardScores>,
    student_scores: Option<RewardScores>,
    weights: Option<Tensor>,
    soft_labels: Option<Tensor>,
    lengths: Option<ResponseLengths>,
    reference_samples: Option<ResponseTable>,
    policy_samples: Option<ResponseTable>,
    all_responses: Option<ResponseTable>,
    gold: Option<ResponseLogps>,
    policy_weights: Option<Tensor>,
}

impl PreferenceBatch {
    /// A batch of log-probabilities alone.
    pub fn new(logps: PairLogps) -> Self {
        Self {
            logps,
            rewards: None,
            student_scores: None,
            weights: None,
            soft_labels: None,
            lengths: None,
            reference_samples: None,
            policy_samples: None,
            all_responses: None,
            gold: None,
            policy_weights: None,
        }
    }

    /// Adds the scores of a family of reward models, `[members, batch]`, detached.
    ///
    /// # Errors
    /// [`Length`](Error::Length), [`Device`](Error::Device) or [`Kind`](Error::Kind) when they do not fit the log-probabilities.
    pub fn with_rewards(mut self, rewards: RewardScores) -> Result<Self> {
        Named::matrix("chosen_scores", "[members, batch]", rewards.chosen()).like(self.logps.chosen())?;
        self.rewards = Some(rewards.detached());
        Ok(self)
    }

    /// Adds the scores of the policy's own reward head, one member, `[1, batch]`: unlike [`rewards`](Self::rewards) they are part of what is
    /// trained, and keep their gradient.
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards); [`OneMember`](Error::OneMember) for a family.
    pub fn with_student_scores(mut self, scores: RewardScores) -> Result<Self> {
        Named::matrix("student_scores", "[1, batch]", scores.chosen()).like(self.logps.chosen())?;
        if scores.members() != 1 {
            return Err(Error::OneMember { loss: "with_student_scores", members: scores.members() });
        }
        self.student_scores = Some(scores);
        Ok(self)
    }

    /// Adds a weight for each pair, `[batch]`, at least 0 and not all 0: it enters every mean over the batch.
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards); [`Element`](Error::Element) for a negative or NaN weight.
    pub fn with_weights(mut self, weights: Tensor) -> Result<Self> {
        let named = Named::vector("weights", &weights).rank(1)?.like(self.logps.chosen())?;
        named.elements("at least 0 and finite", &(weights.ge(0.0).logical_and(&weights.isfinite())))?;
        if weights.sum(weights.kind()).double_value(&[]) == 0.0 {
            return Err(Error::Domain { parameter: "sum of weights", domain: "positive", value: 0.0 });
        }
        self.weights = Some(weights.detach());
        Ok(self)
    }

    /// Adds the probability that the response called chosen is the better one, `[batch]`, in [0, 1].
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards); [`Element`](Error::Element) outside [0, 1].
    pub fn with_soft_labels(mut self, labels: Tensor) -> Result<Self> {
        let named = Named::vector("soft_labels", &labels).rank(1)?.like(self.logps.chosen())?;
        named.elements("in [0, 1]", &labels.ge(0.0).logical_and(&labels.le(1.0)))?;
        self.soft_labels = Some(labels.detach());
        Ok(self)
    }

    /// Adds the lengths of both responses in tokens.
    ///
    /// # Errors
    /// [`Length`](Error::Length) or [`Device`](Error::Device).
    pub fn with_lengths(mut self, lengths: ResponseLengths) -> Result<Self> {
        Named::vector("chosen_lengths", lengths.chosen())
            .length(0, "batch", self.len())?
            .device(self.logps.chosen().device())?;
        self.lengths = Some(lengths);
        Ok(self)
    }

    /// Adds log-probabilities of responses drawn from the reference to each pair's prompt, `[batch, samples]`.
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards).
    pub fn with_reference_samples(mut self, samples: ResponseTable) -> Result<Self> {
        self.fits(&samples)?;
        self.reference_samples = Some(samples);
        Ok(self)
    }

    /// Adds log-probabilities of responses drawn from the policy to each pair's prompt, `[batch, samples]`. The policy's carry a gradient.
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards).
    pub fn with_policy_samples(mut self, samples: ResponseTable) -> Result<Self> {
        self.fits(&samples)?;
        self.policy_samples = Some(samples);
        Ok(self)
    }

    /// Adds log-probabilities of **every** response to each pair's prompt, `[batch, responses]`, where they can be enumerated.
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards).
    pub fn with_all_responses(mut self, responses: ResponseTable) -> Result<Self> {
        self.fits(&responses)?;
        self.all_responses = Some(responses);
        Ok(self)
    }

    /// Adds log π of a third, gold response to each pair's prompt, summed over its tokens, `[batch]`, and its tokens: what TPO is supervised on.
    /// It keeps its gradient.
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards); [`Element`](Error::Element) names the row of an empty response.
    pub fn with_gold(mut self, gold: ResponseLogps) -> Result<Self> {
        Named::vector("gold_logps", &gold.sums).rank(1)?.like(self.logps.chosen())?;
        let named = Named::vector("gold_lengths", &gold.lengths).rank(1)?.length(0, "batch", self.len())?;
        if gold.lengths.kind() != Kind::Int64 {
            return Err(Error::Kind { tensor: "gold_lengths", expected: "Int64", found: gold.lengths.kind() });
        }
        named
            .device(self.logps.chosen().device())?
            .elements("at least 1 token (an empty response has no mean)", &gold.lengths.ge(1))?;
        self.gold = Some(gold);
        Ok(self)
    }

    /// Adds the factor of each pair's loss in [`Wpo`](crate::loss::Wpo), `[batch]`, at least 0, detached. Unlike
    /// [`weights`](Self::weights) it does not enter a mean otherwise.
    ///
    /// # Errors
    /// As [`with_rewards`](Self::with_rewards); [`Element`](Error::Element) for a negative, infinite or NaN factor.
    pub fn with_policy_weights(mut self, weights: Tensor) -> Result<Self> {
        let named = Named::vector("policy_weights", &weights).rank(1)?.like(self.logps.chosen())?;
        named.elements("at least 0 and finite", &(weights.ge(0.0).logical_and(&weights.isfinite())))?;
        self.policy_weights = Some(weights.detach());
        Ok(self)
    }

    fn fits(&self, table: &ResponseTable) -> Result<()> {
        let named = Named::matrix("policy_logps", "[batch, responses]", table.policy());
        named.length(0, "batch", self.len())?.device(self.logps.chosen().device())?;
        if table.policy().kind() == self.logps.chosen().kind() {
            Ok(())
        } else {
            Err(Error::Kind {
                tensor: "policy_logps",
                expected: "of the kind of chosen_logps",
                found: table.policy().kind(),
            })
        }
    }

    /// The same batch with its log-probabilities transformed, for example by [`PairLogps::reference_free`].
    ///
    /// # Errors
    /// Whatever the transform returns; [`Length`](Error::Length), [`Device`](Error::Device) or [`Kind`](Error::Kind) when its result
    /// no longer fits the other columns.
    pub fn map_logps(mut self, transform: impl FnOnce(PairLogps) -> Result<PairLogps>) -> Result<Self> {
        let before = self.logps.chosen().detach();
        self.logps = transform(self.logps)?;
        Named::vector("chosen_logps", self.logps.chosen()).like(&before)?;
        Ok(self)
    }

    /// The pairs of several batches, one after the other.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) for none, [`UnevenColumn`](Error::UnevenColumn) when only some have a column,
    /// [`Length`](Error::Length) when families differ in size; libtorch's when devices or numbers of samples differ.
    pub fn concatenated(parts: &[Self]) -> Result<Self> {
        if parts.is_empty() {
            return Err(Error::Empty { tensor: "chosen_logps", shape: "[batch]" });
        }
        let rewards = column(parts, "rewards", |part| part.rewards.as_ref().map(RewardScores::detached))?;
        let student = column(parts, "student_scores", |part| part.student_scores.as_ref())?;
        let lengths = column(parts, "lengths", |part| part.lengths.as_ref())?;
        let samples = column(parts, "reference_samples", |part| part.reference_samples.as_ref())?;
        let own = column(parts, "policy_samples", |part| part.policy_samples.as_ref())?;
        let all = column(parts, "all_responses", |part| part.all_responses.as_ref())?;
        let gold = column(parts, "gold", |part| part.gold.as_ref())?;
        let vector = |found: Option<Vec<&Tensor>>| found.map(|found| Tensor::f_cat(&found, 0)).transpose();
        Ok(Self {
            logps: PairLogps::concatenated(&parts.iter().map(Self::logps).collect::<Vec<_>>())?,
            rewards: rewards.map(|found| RewardScores::concatenated(&found)).transpose()?,
            student_scores: student.map(|found| side_by_side(&found)).transpose()?,
            weights: vector(column(parts, "weights", |part| part.weights.as_ref())?)?,
            soft_labels: vector(column(parts, "soft_labels", |part| part.soft_labels.as_ref())?)?,
            lengths: lengths.map(|found| ResponseLengths::concatenated(&found)).transpose()?,
            reference_samples: samples.map(|found| ResponseTable::concatenated(&found)).transpose()?,
            policy_samples: own.map(|found| ResponseTable::concatenated(&found)).transpose()?,
            all_responses: all.map(|found| ResponseTable::concatenated(&found)).transpose()?,
            gold: gold.map(|found| one_after_the_other(&found)).transpose()?,
            policy_weights: vector(column(parts, "policy_weights", |part| part.policy_weights.as_ref())?)?,
        })
    }

    /// What metrics read, without a path to the policy: log-probabilities, lengths, rewards and soft labels.
    pub(crate) fn measured(self) -> Self {
        let Self { logps, lengths, rewards, soft_labels, .. } = self;
        Self { lengths, rewards, soft_labels, ..Self::new(logps.detached()) }
    }

    /// Σ w over the pairs, or their number without weights: what a mean over this batch counts for in a mean over several.
    pub fn total_weight(&self) -> f64 {
        match &self.weights {
            Some(weights) => weights.sum(Kind::Double).double_value(&[]),
            None => self.len() as f64,
        }
    }

    /// Number of pairs.
    #[allow(clippy::len_without_is_empty)] // never empty: refused at construction
    pub fn len(&self) -> i64 {
        self.logps.batch()
    }

    /// Log-probabilities.
    pub fn logps(&self) -> &PairLogps {
        &self.logps
    }

    /// Scores, if the batch has them.
    pub fn rewards(&self) -> Option<&RewardScores> {
        self.rewards.as_ref()
    }

    /// Pair weights, `[batch]`, if the batch has them.
    pub fn weights(&self) -> Option<&Tensor> {
        self.weights.as_ref()
    }

    /// Lengths, if the batch has them.
    pub fn lengths(&self) -> Option<&ResponseLengths> {
        self.lengths.as_ref()
    }

    /// Mean over the last axis of `[.., batch]` under the pair weights: Σ w x / Σ w, or the plain mean without weights.
    pub fn weighted_mean(&self, values: &Tensor) -> Tensor {
        match &self.weights {
            Some(w) => (values * w).sum_dim_intlist([-1].as_slice(), false, values.kind()) / w.sum(w.kind()),
            // The same number, for fewer operations forward and backward.
            None if values.dim() == 1 => values.mean(values.kind()),
            None => values.mean_dim([-1].as_slice(), false, values.kind()),
        }
    }
}

/// With their path to the policy, which families of reward models do not have.
fn side_by_side(parts: &[&RewardScores]) -> Result<RewardScores> {
    let side = |side: fn(&RewardScores) -> &Tensor| {
        Tensor::f_cat(&parts.iter().map(|scores| side(scores)).collect::<Vec<_>>(), 1)
    };
    RewardScores::new(side(RewardScores::chosen)?, side(RewardScores::rejected)?)
}

fn one_after_the_other(parts: &[&ResponseLogps]) -> Result<ResponseLogps> {
    let column =
        |of: fn(&ResponseLogps) -> &Tensor| Tensor::f_cat(&parts.iter().map(|logps| of(logps)).collect::<Vec<_>>(), 0);
    Ok(ResponseLogps { sums: column(|logps| &logps.sums)?, lengths: column(|logps| &logps.lengths)? })
}

/// A column of all parts, `None` when none has it.
fn column<'a, T>(
    parts: &'a [PreferenceBatch],
    column: &'static str,
    of: impl Fn(&'a PreferenceBatch) -> Option<T>,
) -> Result<Option<Vec<T>>> {
    let found: Vec<T> = parts.iter().filter_map(of).collect();
    match found.len() {
        0 => Ok(None),
        n if n == parts.len() => Ok(Some(found)),
        _ => Err(Error::UnevenColumn { column }),
    }
}
