use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{PreferenceBatch, Result};

/// Forward divergence KL(π_ref ‖ π) of each pair's prompt, `[batch]`, nats: the anchor that makes p-DPO and dp-DPO finite.
///
/// p-DPO is `Dpo::new(beta)?.plus(gamma, ForwardKl::ReferenceSamples)`, dp-DPO the same from
/// [`RewardDistillation`](super::RewardDistillation). The direction is *forward*: mass of the reference that the policy
/// gives up is what costs.
///
/// Source: Fisch et al. 2024, eq. 7 and eq. 12; estimators after Schulman 2020, "Approximating KL divergence".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardKl {
    /// Σ_y π_ref(y) \[log π_ref(y) − log π(y)\] over the column `all_responses`.
    Exact,
    /// mean of −log(π/π_ref) over the column `reference_samples` (drawn at temperature 1, no top-p). Unbiased in value and gradient;
    /// may be negative.
    ReferenceSamples,
    /// mean of π/π_ref − 1 − log(π/π_ref) over `reference_samples` (k3): unbiased and never negative, but heavy-tailed: a sample that
    /// became likelier by 20 nats counts 5·10⁸.
    ReferenceSamplesK3,
    /// −½ \[log-ratio of y_w + log-ratio of y_l\]: the pair's own responses in place of samples, which is the gradient of supervised
    /// training on both. Unbiased only if both are untruncated draws of π_ref and no pair was selected; mass on responses
    /// outside the data is not held.
    OwnResponses,
}

impl PreferenceLoss for ForwardKl {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        const LAST: &[i64] = &[-1];
        match self {
            Self::Exact => {
                let all = batch.require_all_responses("ForwardKl::Exact")?;
                let mass = all.reference().exp();
                // A response that the reference never gives costs nothing, not 0·∞.
                let terms = (&mass * (all.reference() - all.policy())).where_self(&mass.gt(0.0), &mass.zeros_like());
                Ok(terms.sum_dim_intlist(LAST, false, mass.kind()))
            }
            Self::ReferenceSamples => {
                let samples = batch.require_reference_samples("ForwardKl::ReferenceSamples")?;
                Ok((samples.reference() - samples.policy()).mean_dim(LAST, false, samples.policy().kind()))
            }
            Self::ReferenceSamplesK3 => {
                let samples = batch.require_reference_samples("ForwardKl::ReferenceSamplesK3")?;
                let log_ratio = samples.policy() - samples.reference();
                Ok((log_ratio.expm1() - &log_ratio).mean_dim(LAST, false, log_ratio.kind()))
            }
            Self::OwnResponses => Ok((batch.logps().chosen_log_ratio() + batch.logps().rejected_log_ratio()) * -0.5),
        }
    }
}
