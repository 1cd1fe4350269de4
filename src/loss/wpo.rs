use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{PreferenceBatch, Result};

/// Weighted preference optimization (WPO): w·ℓ for any loss ℓ, `[batch]`, w the column `policy_weights`.
///
/// w = w(y_w)·w(y_l), how likely the policy would have been to give the two responses itself, each by
/// [`TokenLogps::policy_weight`](crate::pairs::TokenLogps::policy_weight), without a gradient. Unlike
/// [`weights`](PreferenceBatch::weights) they are not divided by their sum: where the data leave the policy, the loss shrinks.
///
/// On [`Aot`](super::Aot) and its unpaired form, which TRL refuses to weight, w(i) meets the rank of pair i's policy difference or chosen response.
///
/// Source: Zhou et al. 2024, "WPO: enhancing RLHF with weighted preference optimization", arXiv 2406.11827, eq. 2. TRL: `use_weighting=True`.
#[doc(alias = "use_weighting")]
#[doc(alias = "WPO")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wpo<L> {
    loss: L,
}

impl<L: PreferenceLoss> Wpo<L> {
    /// Of this loss.
    pub fn new(loss: L) -> Self {
        Self { loss }
    }
}

impl<L: PreferenceLoss> PreferenceLoss for Wpo<L> {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.loss.per_pair(batch)? * batch.require_policy_weights("Wpo")?)
    }

    fn is_coupled(&self) -> bool {
        self.loss.is_coupled()
    }

    fn settled<'a>(&'a self, whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        Ok(Box::new(Wpo { loss: self.loss.settled(whole)? }))
    }
}
