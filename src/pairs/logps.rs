use tch::{Kind, Tensor};

use super::check::Named;
use crate::{Error, Result};

/// What a log-probability is of: a loss that divides by lengths itself must not do so twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Response,
    Token,
}

/// Log-probabilities of the chosen and the rejected response of each pair, under the policy and under the frozen reference.
///
/// Each is a sum over the response's tokens in nats (prompt masked, end-of-sequence token included), shape `[batch]`.
/// Gradients flow to the policy's two tensors; the reference's are detached here.
#[derive(Debug)]
pub struct PairLogps {
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    per: Per,
}

impl PairLogps {
    /// Checks that the four tensors are `[batch]`, of one length, one device and one kind, f32 or f64.
    ///
    /// # Errors
    /// [`Rank`](crate::Error::Rank), [`Empty`](crate::Error::Empty), [`Length`](crate::Error::Length),
    /// [`Device`](crate::Error::Device) or [`Kind`](crate::Error::Kind), naming the tensor.
    pub fn new(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Result<Self> {
        Named::vector("chosen_logps", &chosen).rank(1)?.wide()?;
        for (name, tensor) in
            [("rejected_logps", &rejected), ("ref_chosen_logps", &ref_chosen), ("ref_rejected_logps", &ref_rejected)]
        {
            Named::vector(name, tensor).rank(1)?.like(&chosen)?;
        }
        let (ref_chosen, ref_rejected) = (ref_chosen.detach(), ref_rejected.detach());
        Ok(Self { chosen, rejected, ref_chosen, ref_rejected, per: Per::Response })
    }

    /// log π(y_w), `[batch]`.
    pub fn chosen(&self) -> &Tensor {
        &self.chosen
    }

    /// log π(y_l), `[batch]`.
    pub fn rejected(&self) -> &Tensor {
        &self.rejected
    }

    /// log π_ref(y_w), `[batch]`.
    pub fn ref_chosen(&self) -> &Tensor {
        &self.ref_chosen
    }

    /// log π_ref(y_l), `[batch]`.
    pub fn ref_rejected(&self) -> &Tensor {
        &self.ref_rejected
    }

    /// log π(y_w) − log π_ref(y_w), `[batch]`.
    pub fn chosen_log_ratio(&self) -> Tensor {
        &self.chosen - &self.ref_chosen
    }

    /// log π(y_l) − log π_ref(y_l), `[batch]`.
    pub fn rejected_log_ratio(&self) -> Tensor {
        &self.rejected - &self.ref_rejected
    }

    /// h, the difference of the two log-ratios, `[batch]`: what every loss of the family is a function of.
    pub fn log_ratio_margin(&self) -> Tensor {
        self.chosen_log_ratio() - self.rejected_log_ratio()
    }

    pub(super) fn concatenated(parts: &[&Self]) -> Result<Self> {
        let side = |side: fn(&Self) -> &Tensor| cat(parts.iter().map(|part| side(part)));
        let averaged = parts.iter().filter(|part| part.per == Per::Token).count();
        if averaged != 0 && averaged != parts.len() {
            return Err(Error::UnevenColumn { column: "means over tokens" });
        }
        Ok(Self {
            chosen: side(Self::chosen)?,
            rejected: side(Self::rejected)?,
            ref_chosen: side(Self::ref_chosen)?,
            ref_rejected: side(Self::ref_rejected)?,
            per: if averaged == 0 { Per::Response } else { Per::Token },
        })
    }

    pub(super) fn detached(self) -> Self {
        Self { chosen: self.chosen.detach(), rejected: self.rejected.detach(), ..self }
    }

    /// Number of pairs.
    pub fn batch(&self) -> i64 {
        self.chosen.size()[0]
    }

    /// The same pairs against a uniform reference: log π_ref is 0 (SimPO, CPO, ORPO and others have no reference).
    #[must_use]
    pub fn reference_free(self) -> Self {
        let (ref_chosen, ref_rejected) = (self.ref_chosen.zeros_like(), self.ref_rejected.zeros_like());
        Self { ref_chosen, ref_rejected, ..self }
    }

    /// Means over tokens in place of sums: each log-probability is divided by its response's length.
    ///
    /// The choice belongs here, outside the losses: IPO averaged over tokens is
    /// `Ipo::new(tau)?` of `logps.per_token(&lengths)?`. Metrics then are of means too; [`MarginLoss::per_token`](crate::loss::MarginLoss::per_token)
    /// leaves them as they are. A loss that divides by lengths itself refuses the result, and so does this.
    ///
    /// # Errors
    /// [`TokenMeans`](Error::TokenMeans) the second time; [`Length`](crate::Error::Length) or [`Device`](crate::Error::Device) when the lengths
    /// are not this batch's.
    pub fn per_token(self, lengths: &ResponseLengths) -> Result<Self> {
        self.require_sums("PairLogps::per_token")?;
        Named::vector("chosen_lengths", &lengths.chosen)
            .length(0, "batch", self.batch())?
            .device(self.chosen.device())?;
        let [chosen, rejected] = lengths.averages([self.chosen, self.rejected]);
        let [ref_chosen, ref_rejected] = lengths.averages([self.ref_chosen, self.ref_rejected]);
        Ok(Self { chosen, rejected, ref_chosen, ref_rejected, per: Per::Token })
    }

    /// The refusal of `by`, which divides by lengths, where that has been done.
    pub(crate) fn require_sums(&self, by: &'static str) -> Result<()> {
        match self.per {
            Per::Response => Ok(()),
            Per::Token => Err(Error::TokenMeans { by }),
        }
    }
}

/// Lengths of both responses of each pair in tokens, `[batch]` of Int64, each at least 1.
#[derive(Debug)]
pub struct ResponseLengths {
    chosen: Tensor,
    rejected: Tensor,
}

impl ResponseLengths {
    /// Checks shapes, kind and that no response is empty (this waits for the device once).
    ///
    /// # Errors
    /// [`Element`](crate::Error::Element) names the row of an empty response; the rest as in [`PairLogps::new`].
    pub fn new(chosen: Tensor, rejected: Tensor) -> Result<Self> {
        for (name, tensor) in [("chosen_lengths", &chosen), ("rejected_lengths", &rejected)] {
            let named = Named::vector(name, tensor).rank(1)?;
            if tensor.kind() != Kind::Int64 {
                return Err(Error::Kind { tensor: name, expected: "Int64", found: tensor.kind() });
            }
            named.length(0, "batch", chosen.size()[0])?.device(chosen.device())?;
            named.elements("at least 1 token (an empty response has no mean)", &tensor.ge(1))?;
        }
        Ok(Self { chosen, rejected })
    }

    pub(super) fn concatenated(parts: &[&Self]) -> Result<Self> {
        Ok(Self {
            chosen: cat(parts.iter().map(|part| &part.chosen))?,
            rejected: cat(parts.iter().map(|part| &part.rejected))?,
        })
    }

    /// A number of each response divided by its length: of y_w, then of y_l, `[batch]`.
    pub(crate) fn averages(&self, [chosen, rejected]: [Tensor; 2]) -> [Tensor; 2] {
        let kind = chosen.kind();
        [chosen / self.chosen.to_kind(kind), rejected / self.rejected.to_kind(kind)]
    }

    /// Tokens of y_w, `[batch]`.
    pub fn chosen(&self) -> &Tensor {
        &self.chosen
    }

    /// Tokens of y_l, `[batch]`.
    pub fn rejected(&self) -> &Tensor {
        &self.rejected
    }
}

/// Log-probabilities of several responses to each prompt, under the policy and under the reference: `[batch, responses]`, nats.
///
/// Either samples of the reference or, where responses can be enumerated, all of them. The reference is detached.
#[derive(Debug)]
pub struct ResponseTable {
    policy: Tensor,
    reference: Tensor,
}

impl ResponseTable {
    /// Checks that both are `[batch, responses]`, of one shape, device and kind, f32 or f64.
    ///
    /// # Errors
    /// As [`PairLogps::new`].
    pub fn new(policy: Tensor, reference: Tensor) -> Result<Self> {
        const SHAPE: &str = "[batch, responses]";
        Named::matrix("policy_logps", SHAPE, &policy).rank(2)?.wide()?;
        let size = policy.size();
        let named = Named::matrix("reference_logps", SHAPE, &reference).rank(2)?;
        named.length(0, "batch", size[0])?.length(1, "responses", size[1])?.device(policy.device())?;
        if reference.kind() != policy.kind() {
            return Err(Error::Kind {
                tensor: "reference_logps",
                expected: "of the kind of policy_logps",
                found: reference.kind(),
            });
        }
        Ok(Self { policy, reference: reference.detach() })
    }

    pub(super) fn concatenated(parts: &[&Self]) -> Result<Self> {
        Ok(Self {
            policy: cat(parts.iter().map(|part| &part.policy))?,
            reference: cat(parts.iter().map(|part| &part.reference))?,
        })
    }

    /// log π(y), `[batch, responses]`.
    pub fn policy(&self) -> &Tensor {
        &self.policy
    }

    /// log π_ref(y), `[batch, responses]`.
    pub fn reference(&self) -> &Tensor {
        &self.reference
    }
}

/// One after the other along the batch.
fn cat<'a>(parts: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    Ok(Tensor::f_cat(&parts.collect::<Vec<_>>(), 0)?)
}
