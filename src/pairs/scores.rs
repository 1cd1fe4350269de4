use tch::{Kind, Tensor};

use super::check::Named;
use crate::{Error, Result};

const SHAPE: &str = "[members, batch]";

/// Scores of both responses of each pair under a family of reward models: `[members, batch]`, in units of reward.
///
/// Gradients are kept (a reward model is trained on them); they end where the scores enter a
/// [`PreferenceBatch`](crate::pairs::PreferenceBatch).
#[derive(Debug)]
pub struct RewardScores {
    chosen: Tensor,
    rejected: Tensor,
}

impl RewardScores {
    /// Checks that both are `[members, batch]`, of one shape, device and kind, f32 or f64.
    ///
    /// # Errors
    /// As [`PairLogps::new`](crate::pairs::PairLogps::new).
    pub fn new(chosen: Tensor, rejected: Tensor) -> Result<Self> {
        Named::matrix("chosen_scores", SHAPE, &chosen).rank(2)?.wide()?;
        let named = Named::matrix("rejected_scores", SHAPE, &rejected).rank(2)?;
        named.length(0, "members", chosen.size()[0])?.like(&chosen)?;
        Ok(Self { chosen, rejected })
    }

    /// A family of one, from `[batch]`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn single(chosen: &Tensor, rejected: &Tensor) -> Result<Self> {
        Named::vector("chosen_scores", chosen).rank(1)?;
        Named::vector("rejected_scores", rejected).rank(1)?;
        Self::new(chosen.unsqueeze(0), rejected.unsqueeze(0))
    }

    /// r_m(y_w), `[members, batch]`.
    pub fn chosen(&self) -> &Tensor {
        &self.chosen
    }

    /// r_m(y_l), `[members, batch]`.
    pub fn rejected(&self) -> &Tensor {
        &self.rejected
    }

    /// Δr_m = r_m(y_w) − r_m(y_l), `[members, batch]`.
    pub fn margins(&self) -> Tensor {
        &self.chosen - &self.rejected
    }

    /// Number of reward models.
    pub fn members(&self) -> i64 {
        self.chosen.size()[0]
    }

    /// Number of pairs.
    pub fn batch(&self) -> i64 {
        self.chosen.size()[1]
    }

    /// One member's scores, `[1, batch]`.
    ///
    /// # Errors
    /// [`Error::MemberOutOfRange`].
    pub fn member(&self, index: i64) -> Result<Self> {
        let members = self.members();
        if !(0..members).contains(&index) {
            return Err(Error::MemberOutOfRange { index, members });
        }
        Ok(self.map(|scores| scores.narrow(0, index, 1)))
    }

    /// The mean over members as a family of one, `[1, batch]`: the control that any pessimistic method must beat.
    #[must_use]
    pub fn averaged(&self) -> Self {
        self.map(|scores| scores.mean_dim([0].as_slice(), true, scores.kind()))
    }

    /// Each member's scores divided by their standard deviation over all responses held here.
    ///
    /// A member of small margins wins a minimum by its scale alone; this takes the scale away. Call it on the scores of the
    /// whole data set, before they are cut into batches: the result would otherwise depend on the batch.
    #[must_use]
    pub fn standardised(&self) -> Self {
        let all = Tensor::cat(&[&self.chosen, &self.rejected], 1);
        let deviation = all.std_dim([1].as_slice(), false, true);
        // A constant member has no scale; its margins are 0 and stay 0.
        let scale = deviation.where_self(&deviation.gt(0.0), &deviation.ones_like());
        self.map(|scores| scores / &scale)
    }

    /// The pairs of several, one after the other.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) for none, [`Length`](Error::Length) when the number of members differs.
    pub fn concatenated(parts: &[Self]) -> Result<Self> {
        let members = parts.first().ok_or(Error::Empty { tensor: "chosen_scores", shape: SHAPE })?.members();
        for part in parts {
            Named::matrix("chosen_scores", SHAPE, part.chosen()).length(0, "members", members)?;
        }
        let side = |side: fn(&Self) -> &Tensor| Tensor::f_cat(&parts.iter().map(side).collect::<Vec<_>>(), 1);
        Ok(Self { chosen: side(Self::chosen)?, rejected: side(Self::rejected)? })
    }

    /// One mixture of the members, Σ_m w_m r_m, as a family of one, `[1, batch]`. `weights` `[members]` of the scores' kind.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Length`](Error::Length), [`Device`](Error::Device) or [`KindOf`](Error::KindOf).
    pub fn mixed(&self, weights: &Tensor) -> Result<Self> {
        let named = Named::matrix("weights", "[members]", weights).rank(1)?.length(0, "members", self.members())?;
        named.device(self.chosen.device())?.kind_of(&self.chosen)?;
        Ok(self.map(|scores| weights.unsqueeze(0).matmul(scores)))
    }

    /// Some of the pairs, by their indices `[n]` of Int64.
    ///
    /// # Errors
    /// libtorch's, for an index out of range.
    pub fn select(&self, pairs: &Tensor) -> Result<Self> {
        Ok(Self { chosen: self.chosen.f_index_select(1, pairs)?, rejected: self.rejected.f_index_select(1, pairs)? })
    }

    /// The same scores without a path to the reward model.
    #[must_use]
    pub fn detached(&self) -> Self {
        self.map(Tensor::detach)
    }

    /// r_m(y) − b_m: the scores relative to a zero of each member's own for the pair's prompt, `baseline` `[members, batch]`, in
    /// units of reward. Margins stay as they are.
    ///
    /// A reward model is identified up to an offset c_m(x), arbitrary in each member, which [`uncertainty`](Self::uncertainty) would
    /// count. A baseline that moves with the offset takes it away: each member's mean score over samples of the prompt, say. So
    /// does the mean of the pair's own two scores, but what it leaves is ±Δr_m/2, and u_w = u_l whatever the family knows.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Length`](Error::Length), [`Device`](Error::Device) or [`Kind`](Error::Kind) when the baseline does
    /// not fit the scores.
    pub fn relative_to(&self, baseline: &Tensor) -> Result<Self> {
        let named = Named::matrix("baseline", SHAPE, baseline).rank(2)?;
        named.length(0, "members", self.members())?.like(&self.chosen)?;
        Ok(self.map(|scores| scores - baseline))
    }

    /// \[u_w, u_l\], `[batch]` each: standard deviation over members (population form) of the chosen and of the rejected scores, in
    /// units of reward, detached; 0 for a family of one. Take the members' offsets away before: [`relative_to`](Self::relative_to).
    pub fn uncertainty(&self) -> [Tensor; 2] {
        [&self.chosen, &self.rejected].map(deviation)
    }

    /// u, `[batch]`: standard deviation over members (population form) of the margins, in units of reward, detached; offsets
    /// cancel in it. |u_w − u_l| ≤ u ≤ u_w + u_l.
    pub fn margin_uncertainty(&self) -> Tensor {
        deviation(&self.margins())
    }

    /// [`margin_uncertainty`](Self::margin_uncertainty) averaged over pairs: how much the family disagrees.
    pub fn margin_spread(&self) -> f64 {
        self.margin_uncertainty().mean(Kind::Double).double_value(&[])
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { chosen: f(&self.chosen), rejected: f(&self.rejected) }
    }
}

/// Over members, `[members, batch]` to `[batch]`.
fn deviation(scores: &Tensor) -> Tensor {
    scores.detach().std_dim([0].as_slice(), false, false)
}
