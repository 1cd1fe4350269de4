use std::borrow::Cow;

use serde::Serialize;
use tch::{Kind, Tensor};

use super::{
    calibration::calibration,
    columns::Columns,
    displacement::displacement,
    margins::{lengths, margins, teachers},
    statistics::{mean, win},
};
use crate::{PreferenceBatch, Result, RewardScores};

/// Named numbers, in the order in which they were measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Metrics(Vec<(Cow<'static, str>, f64)>);

impl Metrics {
    /// Adds a number.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.0.push((name.into(), value));
        self
    }

    /// The number of this name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// Names and numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// The same numbers with a prefix before each name, such as `eval_`.
    #[must_use]
    pub fn prefixed(self, prefix: &str) -> Self {
        Self(self.0.into_iter().map(|(name, value)| (format!("{prefix}{name}").into(), value)).collect())
    }

    /// These numbers, then those.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// Rewards and log-probabilities of a batch of pairs.
///
/// `rewards/chosen`, `rewards/rejected`, `rewards/margins`: β·(log π − log π_ref), whatever the loss; `rewards/accuracies`: share of
/// pairs with a positive margin, a tie counting ½ (TRL counts it as wrong, so its accuracy is 0 at step 0 and ours ½);
/// `logps/chosen`, `logps/rejected`: sums over tokens in nats; `num_tokens` where the batch has lengths. All are plain means
/// over pairs. One copy to the host.
///
/// # Errors
/// [`Domain`](crate::Error::Domain) for a β that is not positive and finite.
pub fn preference_metrics(batch: &PreferenceBatch, beta: f64) -> Result<Metrics> {
    Ok(preferences(&Columns::of(batch, beta)?))
}

/// [`preference_metrics`], `num_pairs`, and what tells a policy that learns from one that degenerates. One copy to the host, whatever
/// the columns; plain means over pairs where nothing else is said.
///
/// | where the batch has | names |
/// | --- | --- |
/// | a reference | `displacement/chosen`, `displacement/rejected`: log π − log π_ref of y_w, of y_l, nats; `displacement/both_fall`: share of pairs where both are below −.01; `displacement/absolute`: mean of both absolute values, nats |
/// | | `margins/q10`, `margins/q50`, `margins/q90`: quantiles of βh; `margins/certain`: share of pairs with \|βh\| > 24 ln 2 = 16.6 |
/// | `rewards` | `ensemble/accuracy`: share of pairs that the members' mean margin calls right; `ensemble/agreement`: share where its sign is that of βh; `ensemble/disagreement`: standard deviation over members of Δr (population form); `ensemble/range`: max − min over members; `ensemble/outside`: share of pairs where βh is outside \[min Δr, max Δr\]; `ensemble/excess`: mean (\|βh\| − max_i \|Δr_i\|)₊ / mean max_i \|Δr_i\| |
/// | lengths | `lengths/chosen`, `lengths/rejected`: tokens; `lengths/correlation`: of βh with \|y_w\| − \|y_l\|, left out where one of them does not vary |
/// | `soft_labels` | `calibration/overconfidence`: mean of σ(\|βh\|) less the label's share for the response that the policy prefers; `calibration/brier`: mean (σ(βh) − p)² |
///
/// Beyond 24 ln 2 σ(βh) is 0 or 1 in f32: the policy takes the label for certain, which no finite reward margin is. The displacement is
/// since the start where the policy started from the reference; if it did not, give the start's log-probabilities in place of the
/// reference's. Without a reference ([`reference_free`](crate::PairLogps::reference_free)) it is left out.
///
/// # Errors
/// [`Domain`](crate::Error::Domain) for a β that is not positive and finite.
pub fn batch_metrics(batch: &PreferenceBatch, beta: f64) -> Result<Metrics> {
    let columns = Columns::of(batch, beta)?;
    Ok(preferences(&columns)
        .with("num_pairs", columns.pairs() as f64)
        .and(displacement(&columns))
        .and(margins(&columns))
        .and(teachers(&columns))
        .and(lengths(&columns))
        .and(calibration(&columns)))
}

fn preferences(columns: &Columns) -> Metrics {
    let of = |values: &[f64]| mean(values.iter().copied());
    let metrics = Metrics::default()
        .with("rewards/chosen", columns.beta * of(&columns.log_ratios[0]))
        .with("rewards/rejected", columns.beta * of(&columns.log_ratios[1]))
        .with("rewards/accuracies", mean(columns.margins.iter().map(|&margin| win(margin))))
        .with("rewards/margins", of(&columns.margins))
        .with("logps/chosen", of(&columns.logps[0]))
        .with("logps/rejected", of(&columns.logps[1]));
    match &columns.lengths {
        Some(lengths) => metrics.with("num_tokens", lengths.iter().flatten().sum()),
        None => metrics,
    }
}

/// Accuracy, margin and range of reward scores: `accuracy` (a tie counts ½), `margin`, `min_reward`, `mean_reward`,
/// `max_reward`, over all members and both responses.
///
/// # Errors
/// libtorch's, if it refuses an operation.
pub fn reward_metrics(scores: &RewardScores) -> Result<Metrics> {
    const NAMES: [&str; 5] = ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"];
    let _no_grad = tch::no_grad_guard();
    let (margins, all) = (scores.margins(), Tensor::cat(&[scores.chosen(), scores.rejected()], 1));
    let (kind, wins) = (margins.kind(), (margins.sign() + 1.0) / 2.0);
    let values = [wins.mean(kind), margins.mean(kind), all.min(), all.mean(kind), all.max()];
    let values = Vec::<f64>::try_from(Tensor::stack(&values, 0).to_kind(Kind::Double))?;
    Ok(NAMES.into_iter().zip(values).fold(Metrics::default(), |m, (name, value)| m.with(name, value)))
}
