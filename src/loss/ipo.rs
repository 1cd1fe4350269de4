use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{MarginLoss, PreferenceLoss};
use crate::{PreferenceBatch, Result, domain::Tau};

/// Identity preference optimization: (h − 1/(2τ))², `[batch]`, nats².
///
/// h is a difference of **sums** over tokens here, as in the authors' equation, OpenRLHF and NeMo-Aligner; TRL, HALOs and
/// LLaMA-Factory average over tokens, which is `Ipo::new(tau)?.per_token()`, or this loss after
/// [`PairLogps::per_token`](crate::PairLogps::per_token).
///
/// Source: Azar et al. 2023, eq. 17. TRL: `loss_type="ipo"`, where τ is `beta`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipo {
    tau: Tau,
}

impl Ipo {
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless τ is positive and finite.
    pub fn new(tau: f64) -> Result<Self> {
        Ok(Self { tau: Tau::new(tau)? })
    }
}

impl MarginLoss for Ipo {
    fn of_margin(&self, margin: &Tensor) -> Tensor {
        (margin - 0.5 / self.tau.get()).square()
    }
}

impl PreferenceLoss for Ipo {
    fn per_pair(&self, batch: &PreferenceBatch) -> Result<Tensor> {
        Ok(self.of_margin(&batch.logps().log_ratio_margin()))
    }
}
