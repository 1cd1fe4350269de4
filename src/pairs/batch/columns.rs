//! Columns that a loss asks for: each is there, or the refusal names it and the method that adds it.

use tch::Tensor;

use super::PreferenceBatch;
use crate::{Error, ResponseLengths, ResponseTable, Result, RewardScores, logps::ResponseLogps};

impl PreferenceBatch {
    /// Scores, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_rewards(&self, loss: &'static str) -> Result<&RewardScores> {
        let missing = Error::MissingColumn { loss, column: "rewards", method: "with_rewards" };
        self.rewards.as_ref().ok_or(missing)
    }

    /// Δr of the only reward model, `[batch]`, or the error that `loss` needs exactly one.
    ///
    /// # Errors
    /// [`Error::MissingColumn`] or [`Error::OneMember`].
    pub fn require_reward_margin(&self, loss: &'static str) -> Result<Tensor> {
        match self.require_rewards(loss)? {
            scores if scores.members() == 1 => Ok(scores.margins().squeeze_dim(0)),
            scores => Err(Error::OneMember { loss, members: scores.members() }),
        }
    }

    /// r̂(y_w) − r̂(y_l) of the policy's own reward head with its gradient, `[batch]`, or the error that `loss` needs it.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_student_margin(&self, loss: &'static str) -> Result<Tensor> {
        let missing = Error::MissingColumn { loss, column: "student_scores", method: "with_student_scores" };
        Ok(self.student_scores.as_ref().ok_or(missing)?.margins().squeeze_dim(0))
    }

    /// Lengths, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_lengths(&self, loss: &'static str) -> Result<&ResponseLengths> {
        let missing = Error::MissingColumn { loss, column: "lengths", method: "with_lengths" };
        self.lengths.as_ref().ok_or(missing)
    }

    /// Soft labels, `[batch]`, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_soft_labels(&self, loss: &'static str) -> Result<&Tensor> {
        let missing = Error::MissingColumn { loss, column: "soft_labels", method: "with_soft_labels" };
        self.soft_labels.as_ref().ok_or(missing)
    }

    /// Samples of the reference, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_reference_samples(&self, loss: &'static str) -> Result<&ResponseTable> {
        let missing = Error::MissingColumn { loss, column: "reference_samples", method: "with_reference_samples" };
        self.reference_samples.as_ref().ok_or(missing)
    }

    /// Samples of the policy, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_policy_samples(&self, loss: &'static str) -> Result<&ResponseTable> {
        let missing = Error::MissingColumn { loss, column: "policy_samples", method: "with_policy_samples" };
        self.policy_samples.as_ref().ok_or(missing)
    }

    /// Gold responses, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_gold(&self, loss: &'static str) -> Result<&ResponseLogps> {
        let missing = Error::MissingColumn { loss, column: "gold", method: "with_gold" };
        self.gold.as_ref().ok_or(missing)
    }

    /// Factors of the pairs' losses, `[batch]`, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_policy_weights(&self, loss: &'static str) -> Result<&Tensor> {
        let missing = Error::MissingColumn { loss, column: "policy_weights", method: "with_policy_weights" };
        self.policy_weights.as_ref().ok_or(missing)
    }

    /// All responses, or the error that `loss` needs them.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn require_all_responses(&self, loss: &'static str) -> Result<&ResponseTable> {
        let missing = Error::MissingColumn { loss, column: "all_responses", method: "with_all_responses" };
        self.all_responses.as_ref().ok_or(missing)
    }
}
