use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::PreferenceLoss;
use crate::{PreferenceBatch, Result};

/// Over the responses of a table `[batch, responses]`.
const LAST: &[i64] = &[-1];

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

/// Reverse divergence KL(π ‖ π_ref) of each pair's prompt, `[batch]`, nats: SPO's regulariser over the whole output distribution.
///
/// SPO is `Spo::new(alpha)?.plus(lambda, ReverseKl::PolicySamples)`. The direction is *reverse*: mass that the policy puts where
/// the reference has little is what costs. It is at most −log of the smallest π_ref, so it holds a policy near the reference but,
/// unlike [`ForwardKl`], does not by itself make a degenerate loss finite.
///
/// A row of the column need not be of its pair's prompt: with rows of unlabelled prompts the policy is held where there are no
/// pairs.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::loss::{PreferenceLoss, ReverseKl, Spo};
/// use prefopt::train::{AdamW, AdamWConfig, Descent};
/// use prefopt::{PairLogps, PreferenceBatch, ResponseTable, tch::{Device, Kind, Tensor}};
///
/// // One prompt with four responses, of which 0 was preferred to 1.
/// let logits = Tensor::zeros([4], (Kind::Double, Device::Cpu)).set_requires_grad(true);
/// let reference = logits.detach().log_softmax(-1, Kind::Double);
/// let mut descent = Descent::new(AdamW::new(vec![logits.shallow_clone()], AdamWConfig::default())?, 0.1)?;
/// let spo = Spo::new(0.5)?.plus(0.1, ReverseKl::PolicySamples);
/// let mut drawn = Tensor::new();
/// for step in 0..40 {
///     let policy = logits.log_softmax(-1, Kind::Double);
///     if step % 10 == 0 {
///         drawn = policy.detach().exp().multinomial(8, true); // anew every 10 steps
///     }
///     let one = |row: &Tensor, response: i64| row.narrow(0, response, 1);
///     let logps = PairLogps::new(one(&policy, 0), one(&policy, 1), one(&reference, 0), one(&reference, 1))?;
///     let sampled = |row: &Tensor| row.index_select(0, &drawn).unsqueeze(0);
///     let samples = ResponseTable::new(sampled(&policy), sampled(&reference))?;
///     descent.descend(&spo.mean(&PreferenceBatch::new(logps).with_policy_samples(samples)?)?)?;
/// }
/// assert!(logits.double_value(&[0]) > logits.double_value(&[1]));
/// # Ok(()) }
/// ```
///
/// Source: Sharifnassab et al. 2024, the regulariser and its estimate from samples that are drawn now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReverseKl {
    /// Σ_y π(y) k(y), k = log π − log π_ref, over the column `all_responses`. A response of no mass counts 0, also where its
    /// log-probability is −∞; mass where the reference has none makes it ∞.
    Exact,
    /// From n responses y_i drawn from π itself (temperature 1, no top-p), the column `policy_samples`: value mean_i k(y_i),
    /// gradient the score function mean_i (k(y_i) − b_i) ∇log π(y_i), its weight without a gradient. The value's own derivative
    /// would be 0 in expectation, so do not check one against the other.
    ///
    /// The baseline b_i is the mean of k over the **other** samples of the row; with one sample it is 0. As b_i does not depend
    /// on y_i, value and gradient are unbiased in both cases. It takes variance off where the k of a prompt share a level, as
    /// those of long responses do; where they scatter about 0 it may add some. With n ≥ 2 the gradient is that of half the
    /// samples' variance of k, Σ_i (k_i − k̄)² / 2(n−1) (VarGrad: Richter et al. 2020).
    ///
    /// Samples that are kept for several steps are draws of an older policy π': the value then estimates KL(π' ‖ π_ref) − KL(π' ‖
    /// π), the gradient that of ½ Var_π'\[k\] (n = 1: of ½ E_π'\[k²\]). The bias is 0 when they are fresh and grows with the
    /// total variation between π' and π; at π = π_ref the gradient is 0 however old they are, but what π' never gave is not held.
    PolicySamples,
}

impl PreferenceLoss for ReverseKl {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        match self {
            Self::Exact => {
                let all = batch.require_all_responses("ReverseKl::Exact")?;
                let (mass, log_ratio) = (all.policy().exp(), all.policy() - all.reference());
                // Before the product and not after it, or 0·∞ would still come down the gradient.
                let log_ratio = log_ratio.where_self(&mass.gt(0.0), &log_ratio.zeros_like());
                Ok((&mass * log_ratio).sum_dim_intlist(LAST, false, mass.kind()))
            }
            Self::PolicySamples => {
                let samples = batch.require_policy_samples("ReverseKl::PolicySamples")?;
                let (policy, kind) = (samples.policy(), samples.policy().kind());
                let log_ratio = (policy - samples.reference()).detach();
                let estimate = log_ratio.mean_dim(LAST, false, kind);
                let weight = match log_ratio.size()[1] {
                    1 => log_ratio,
                    // k_i less the mean of the others is n/(n−1) times k_i less the mean of all.
                    n => (&log_ratio - estimate.unsqueeze(-1)) * (n as f64 / (n - 1) as f64),
                };
                // Of value 0, with the gradient of log π.
                let score = policy - policy.detach();
                Ok(estimate + (weight * score).mean_dim(LAST, false, kind))
            }
        }
    }
}
