use tch::{Kind, Tensor};

use super::{PairLogps, ResponseLengths, check::Named};
use crate::{Error, Result, domain::TailWeight};

const SHAPE: &str = "[batch, time]";
const ROW: &[i64] = &[1];

/// Log-probabilities of the tokens of one response a pair, all chosen or all rejected ones, under policy and reference, `[batch, time]`, nats: for
/// what treats a response's tokens differently. One mask holds for both models.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{PairLogps, PreferenceBatch, pairs::TokenLogps, tch::Tensor};
///
/// let (policy, reference) = (Tensor::from_slice2(&[[-1.0, -2.0, 0.0]]), Tensor::from_slice2(&[[-1.5, -1.5, 0.0]]));
/// let chosen = TokenLogps::new(&policy, &reference, Tensor::from_slice2(&[[true, true, false]]))?;
/// let rejected = TokenLogps::new(&policy, &reference, Tensor::from_slice2(&[[true, true, true]]))?;
/// // LD-DPO: Dpo or another loss on these log-probabilities.
/// let logps = PairLogps::length_desensitised(&chosen, &rejected, 0.3)?;
/// let batch = PreferenceBatch::new(logps).with_lengths(TokenLogps::pair_lengths(&chosen, &rejected)?)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct TokenLogps {
    /// 0 off the response.
    policy: Tensor,
    reference: Tensor,
    response: Tensor,
}

impl TokenLogps {
    /// From `policy` and `reference` `[batch, time]` and `response` `[batch, time]` (Bool), true at the response's tokens and its end-of-sequence
    /// token. What lies elsewhere is not read. The reference is detached.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Length`](Error::Length), [`Device`](Error::Device), [`Kind`](Error::Kind) or
    /// [`KindOf`](Error::KindOf), naming the tensor.
    pub fn new(policy: &Tensor, reference: &Tensor, response: Tensor) -> Result<Self> {
        Named::matrix("token_logps", SHAPE, policy).rank(2)?.wide()?;
        let size = policy.size();
        for (name, tensor) in [("ref_token_logps", reference), ("response", &response)] {
            let named = Named::matrix(name, SHAPE, tensor).rank(2)?;
            named.length(0, "batch", size[0])?.length(1, "time", size[1])?.device(policy.device())?;
        }
        Named::matrix("ref_token_logps", SHAPE, reference).kind_of(policy)?;
        if response.kind() != Kind::Bool {
            return Err(Error::Kind { tensor: "response", expected: "Bool", found: response.kind() });
        }
        let elsewhere = response.logical_not();
        let [policy, reference] = [policy, &reference.detach()].map(|logps| logps.masked_fill(&elsewhere, 0.0));
        Ok(Self { policy, reference, response })
    }

    /// Chosen and rejected responses from the tokens of a row of [pairs](crate::packed::PackedRow::pairs), `[tokens]` each, and the lengths of its
    /// responses, `[2 · pairs]` (Int64), as [`response_scores_of`](crate::logps::response_scores_of) gives them. Waits for the device.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Element`](Error::Element) for a response without a token.
    pub fn of_packed_pairs(policy: &Tensor, reference: &Tensor, lengths: &Tensor) -> Result<[Self; 2]> {
        let named = Named::matrix("lengths", "[2 · pairs]", lengths).rank(1)?.device(policy.device())?;
        if lengths.kind() != Kind::Int64 {
            return Err(Error::Kind { tensor: "lengths", expected: "Int64", found: lengths.kind() });
        }
        named.elements("at least 1 token", &lengths.ge(1))?;
        let (responses, tokens) = (lengths.size()[0], lengths.sum(Kind::Int64).int64_value(&[]));
        named.length(0, "responses", responses + responses % 2)?;
        for (name, tensor) in [("token_logps", policy), ("ref_token_logps", reference)] {
            Named::matrix(name, "[tokens]", tensor).rank(1)?.length(0, "tokens", tokens)?.device(policy.device())?;
        }
        let time = Tensor::arange(lengths.max().int64_value(&[]), (Kind::Int64, lengths.device()));
        let response = time.unsqueeze(0).lt_tensor(&lengths.unsqueeze(1));
        let first = lengths.cumsum(0, Kind::Int64) - lengths;
        // Beyond a response's length lies the next one, which the mask keeps out.
        let index = (first.unsqueeze(1) + time.unsqueeze(0)).clamp_max(tokens - 1);
        let table = |tokens: &Tensor| tokens.index_select(0, &index.flatten(0, -1)).view_as(&index);
        let (policy, reference) = (table(policy), table(reference));
        let side = |offset: i64| {
            let of = |table: &Tensor| table.slice(0, offset, None::<i64>, 2);
            Self::new(&of(&policy), &of(&reference), of(&response))
        };
        Ok([side(0)?, side(1)?])
    }

    /// Tokens of each response, `[batch]`, Int64; 0 where the mask selects none.
    pub fn lengths(&self) -> Tensor {
        self.response.sum_dim_intlist(ROW, false, Kind::Int64)
    }

    /// Lengths of both responses of each pair.
    ///
    /// # Errors
    /// [`Element`](Error::Element) names the row of an empty response; [`Length`](Error::Length) or [`Device`](Error::Device) when the two do not
    /// go together.
    pub fn pair_lengths(chosen: &Self, rejected: &Self) -> Result<ResponseLengths> {
        ResponseLengths::new(chosen.lengths(), rejected.lengths())
    }

    /// w(y) = e^{mean over the response's tokens of log π(y_t) − a_t}, `[batch]`, without a gradient: WPO's weight of a response. A pair's, the column
    /// of [`with_policy_weights`](crate::PreferenceBatch::with_policy_weights), is the product of the two.
    ///
    /// `alignment` a_t `[batch, time]` is log Σ_v π(v)², the log of the probability that a draw of π has on average
    /// ([`log_collision`](crate::logps::log_collision)): the paper's sampled alignment and TRL's. The mode's log-probability is the greedy one, and
    /// zeros are none.
    ///
    /// Source: Zhou et al. 2024 (WPO), arXiv 2406.11827, eq. 2. TRL: `use_weighting`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn policy_weight(&self, alignment: &Tensor) -> Result<Tensor> {
        let (named, size) = (Named::matrix("alignment", SHAPE, alignment).rank(2)?, self.policy.size());
        named.length(0, "batch", size[0])?.length(1, "time", size[1])?.device(self.policy.device())?;
        named.kind_of(&self.policy)?;
        let _no_grad = tch::no_grad_guard();
        let aligned = &self.policy - alignment.masked_fill(&self.response.logical_not(), 0.0);
        let tokens = self.lengths().clamp_min(1).to_kind(aligned.kind());
        Ok((aligned.sum_dim_intlist(ROW, false, aligned.kind()) / tokens).exp())
    }

    /// Σ_t log π(y_t) up to token `shared`, and `tail_weight` times the rest, `[batch]`, of one model.
    fn weighted_sum(&self, logps: &Tensor, shared: &Tensor, tail_weight: TailWeight) -> Tensor {
        let position = self.response.cumsum(1, Kind::Int64);
        let within = position.le_tensor(&shared.unsqueeze(1)).to_kind(logps.kind());
        let weight = within * (1.0 - tail_weight.get()) + tail_weight.get();
        (logps * weight).sum_dim_intlist(ROW, false, logps.kind())
    }
}

impl PairLogps {
    /// Length-desensitised sums (LD-DPO): Σ_t log π(y_t) over the first min(|y_w|, |y_l|) tokens of each response, and α times the rest.
    ///
    /// α = 1 is the plain sum, α = 0 reads the shared length alone; for responses of equal length α says nothing. Any loss may follow, also one that
    /// divides by the whole length, as in TRL.
    ///
    /// Source: Liu et al. 2024, "Length desensitization in directed preference optimization", arXiv 2409.06411. TRL: `ld_alpha`.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless α is in \[0, 1\]; [`Element`](Error::Element) names the row of an empty response; [`Length`](Error::Length),
    /// [`Device`](Error::Device) or [`Kind`](Error::Kind) when the two sides do not go together.
    pub fn length_desensitised(chosen: &TokenLogps, rejected: &TokenLogps, alpha: f64) -> Result<Self> {
        let (alpha, lengths) = (TailWeight::new(alpha)?, TokenLogps::pair_lengths(chosen, rejected)?);
        let shared = lengths.chosen().minimum(lengths.rejected());
        let sum = |side: &TokenLogps, logps: &Tensor| side.weighted_sum(logps, &shared, alpha);
        Self::new(
            sum(chosen, &chosen.policy),
            sum(rejected, &rejected.policy),
            sum(chosen, &chosen.reference),
            sum(rejected, &rejected.reference),
        )
    }
}
