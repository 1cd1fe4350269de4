//! Losses of two distributions over the batch instead of its pairs: each quantile of one against the same quantile of the other.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PreferenceLoss, logistic::logistic};
use crate::{
    Error, PreferenceBatch, Result,
    domain::{Beta, FlipRate},
};

/// Indices that sort, ascending, `[batch]`; equal values keep their order.
fn order(values: &Tensor) -> Tensor {
    values.argsort_stable(true, 0, false)
}

/// For each value x_i, the entry of `others` that has x_i's rank, `[batch]`: the coupling of least cost, for a cost convex in the difference.
fn of_equal_rank(values: &Tensor, others: &Tensor) -> Tensor {
    let rank = order(&order(&values.detach()));
    others.index_select(0, &order(&others.detach()).index_select(0, &rank))
}

/// A pair's loss is that of a rank: weighted, the two distributions would no longer meet rank for rank.
fn refuse_weights(batch: &PreferenceBatch, loss: &'static str) -> Result<()> {
    if batch.weights().is_some() { Err(Error::WeightedTransport { loss }) } else { Ok(()) }
}

/// Alignment by optimal transport (AOT), paired: the distribution of log π(y_w) − log π(y_l) over the batch shall dominate that of
/// log π_ref(y_w) − log π_ref(y_l) at every quantile.
///
/// −(1−ε) log σ(βd) − ε log σ(−βd), `[batch]`, nats, d = (log π(y_w) − log π(y_l)) − the reference's difference **of the same rank**, which is in
/// general another pair's. It stands where the policy's pair does, and the mean is TRL's, which sorts both. One pair: [`Dpo`](super::Dpo).
///
/// Every pair is coupled with another one, by a rank that moves with the policy. So it takes batches without pair weights, and a step of several
/// parts is refused: [`settled`](PreferenceLoss::settled) is an error. TRL sorts each device's part of a step alone, which is
/// `descent.accumulate(&aot.mean(&part)?, part.total_weight())` here.
///
/// Source: Melnyk et al. 2024, "Distributional preference alignment of LLMs via optimal transport", arXiv 2406.05882. TRL: `loss_type="aot"`,
/// `label_smoothing`.
#[doc(alias = "aot")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aot {
    beta: Beta,
    #[serde(default)]
    flip_rate: FlipRate,
}

impl Aot {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, flip_rate: FlipRate::default() })
    }

    /// With labels flipped at a rate in [0, ½): TRL's `label_smoothing`.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) outside it.
    pub fn with_flip_rate(self, flip_rate: f64) -> Result<Self> {
        Ok(Self { flip_rate: FlipRate::new(flip_rate)?, ..self })
    }
}

impl PreferenceLoss for Aot {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        refuse_weights(batch, "Aot")?;
        let logps = batch.logps();
        let (policy, reference) = (logps.chosen() - logps.rejected(), logps.ref_chosen() - logps.ref_rejected());
        let excess = &policy - of_equal_rank(&policy, &reference);
        Ok(logistic(&(excess * self.beta.get()), self.flip_rate))
    }

    fn is_coupled(&self) -> bool {
        true
    }

    /// # Errors
    /// [`Unsettled`](Error::Unsettled), always.
    fn settled<'a>(&'a self, _whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        Err(Error::Unsettled { loss: "Aot" })
    }
}

/// Alignment by optimal transport (AOT), unpaired: the distribution of the chosen responses' log-ratios over the batch shall dominate that of the
/// rejected ones' at every quantile.
///
/// −(1−ε) log σ(βd) − ε log σ(−βd), `[batch]`, nats, d = the log-ratio of y_w − that of the rejected response **of the same rank**, which is in
/// general another prompt's: the pairing of the batch is not read. It stands where the chosen response does. One pair: [`Dpo`](super::Dpo).
///
/// Refuses pair weights and steps of several parts, as [`Aot`] does.
///
/// Source: Melnyk et al. 2024, arXiv 2406.05882. TRL: `loss_type="aot_unpaired"`, `label_smoothing`.
#[doc(alias = "aot_unpaired")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AotUnpaired {
    beta: Beta,
    #[serde(default)]
    flip_rate: FlipRate,
}

impl AotUnpaired {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless β is positive and finite.
    pub fn new(beta: f64) -> Result<Self> {
        Ok(Self { beta: Beta::new(beta)?, flip_rate: FlipRate::default() })
    }

    /// With labels flipped at a rate in [0, ½): TRL's `label_smoothing`.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) outside it.
    pub fn with_flip_rate(self, flip_rate: f64) -> Result<Self> {
        Ok(Self { flip_rate: FlipRate::new(flip_rate)?, ..self })
    }
}

impl PreferenceLoss for AotUnpaired {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        refuse_weights(batch, "AotUnpaired")?;
        let (chosen, rejected) = (batch.logps().chosen_log_ratio(), batch.logps().rejected_log_ratio());
        let excess = &chosen - of_equal_rank(&chosen, &rejected);
        Ok(logistic(&(excess * self.beta.get()), self.flip_rate))
    }

    fn is_coupled(&self) -> bool {
        true
    }

    /// # Errors
    /// [`Unsettled`](Error::Unsettled), always.
    fn settled<'a>(&'a self, _whole: &PreferenceBatch) -> Result<Box<dyn PreferenceLoss + 'a>> {
        Err(Error::Unsettled { loss: "AotUnpaired" })
    }
}
