use tch::{Kind, Tensor};

use super::{PairLogps, check::Named};
use crate::{Error, Result, domain::KlBaseline};

/// A batch of single responses, each called desirable or not: log-probabilities, labels, and the baseline that KTO reads.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{pairs::UnpairedBatch, tch::Tensor};
///
/// let t = |x: [f32; 2]| Tensor::from_slice(&x);
/// let batch = UnpairedBatch::new(t([-12.0, -9.0]), t([-11.0, -14.0]), Tensor::from_slice(&[true, false]))?
///     .with_mismatched(&t([-20.0, -31.0]), &t([-21.0, -30.5]))?;
/// assert_eq!(batch.require_baseline("Kto")?.double_value(&[]), 0.25);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct UnpairedBatch {
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    baseline: Option<Tensor>,
}

impl UnpairedBatch {
    /// Checks that the three are `[batch]` of one length and device, log-probabilities (sums over tokens, nats) f32 or f64, and labels Bool. The
    /// reference's are detached.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Length`](Error::Length), [`Device`](Error::Device) or [`Kind`](Error::Kind), naming the
    /// tensor.
    pub fn new(logps: Tensor, ref_logps: Tensor, desirable: Tensor) -> Result<Self> {
        Named::vector("logps", &logps).rank(1)?.wide()?;
        Named::vector("ref_logps", &ref_logps).rank(1)?.like(&logps)?;
        let named = Named::vector("desirable", &desirable).rank(1)?;
        named.length(0, "batch", logps.size()[0])?.device(logps.device())?;
        if desirable.kind() != Kind::Bool {
            return Err(Error::Kind { tensor: "desirable", expected: "Bool", found: desirable.kind() });
        }
        Ok(Self { logps, ref_logps: ref_logps.detach(), desirable, baseline: None })
    }

    /// The responses of pairs: all chosen ones, desirable, then all rejected ones, not.
    #[must_use]
    pub fn of_pairs(pairs: &PairLogps) -> Self {
        let desirable = pairs.chosen().detach().ones_like().to_kind(Kind::Bool);
        let both = |chosen: &Tensor, rejected: &Tensor| Tensor::cat(&[chosen, rejected], 0);
        Self {
            logps: both(pairs.chosen(), pairs.rejected()),
            ref_logps: both(pairs.ref_chosen(), pairs.ref_rejected()),
            desirable: both(&desirable, &desirable.logical_not()),
            baseline: None,
        }
    }

    /// With a known baseline z, nats: 0, or what a tracker gives.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) for one that is negative or not finite.
    pub fn with_baseline(self, baseline: f64) -> Result<Self> {
        let baseline = Tensor::from(KlBaseline::new(baseline)?.get());
        let baseline = baseline.to_kind(self.logps.kind()).to_device(self.logps.device());
        Ok(Self { baseline: Some(baseline), ..self })
    }

    /// With z = max(0, mean of log π(y'|x) − log π_ref(y'|x)) over mismatched responses, `[n]` each, detached: y' to another prompt, as a stand-in
    /// for samples of the policy. TRL takes the batch's own responses, each with the next one's prompt.
    ///
    /// # Errors
    /// As [`new`](Self::new), but that n may be any number from 1.
    pub fn with_mismatched(self, logps: &Tensor, ref_logps: &Tensor) -> Result<Self> {
        const SHAPE: &str = "[mismatched]";
        let named = Named::matrix("mismatched_logps", SHAPE, logps).rank(1)?;
        named.device(self.logps.device())?.kind_of(&self.logps)?;
        let named = Named::matrix("mismatched_ref_logps", SHAPE, ref_logps).rank(1)?;
        named.length(0, "mismatched", logps.size()[0])?.device(self.logps.device())?.kind_of(&self.logps)?;
        let baseline = (logps.detach() - ref_logps.detach()).mean(self.logps.kind()).clamp_min(0.0);
        Ok(Self { baseline: Some(baseline), ..self })
    }

    /// Number of responses.
    #[allow(clippy::len_without_is_empty)] // never empty: refused at construction
    pub fn len(&self) -> i64 {
        self.logps.size()[0]
    }

    /// log π − log π_ref, `[batch]`.
    pub fn log_ratio(&self) -> Tensor {
        &self.logps - &self.ref_logps
    }

    /// Whether a response is desirable, `[batch]`, Bool.
    pub fn desirable(&self) -> &Tensor {
        &self.desirable
    }

    /// 1 for a desirable response and −1 for another one, `[batch]`, in the kind of the log-probabilities.
    pub fn signs(&self) -> Tensor {
        self.desirable.to_kind(self.logps.kind()) * 2.0 - 1.0
    }

    /// z, a scalar, or the error that `loss` needs it.
    ///
    /// # Errors
    /// [`Error::MissingUnpairedColumn`].
    pub fn require_baseline(&self, loss: &'static str) -> Result<&Tensor> {
        let missing =
            Error::MissingUnpairedColumn { loss, column: "baseline", method: "with_mismatched or with_baseline" };
        self.baseline.as_ref().ok_or(missing)
    }
}
