//! What a batch says about the policy or the reward model, under the names that TRL's dashboards use.

use std::borrow::Cow;

use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{PreferenceBatch, Result, RewardScores, domain::Beta};

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
    const NAMES: [&str; 6] = [
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    ];
    let (_no_grad, beta) = (tch::no_grad_guard(), Beta::new(beta)?.get());
    let logps = batch.logps();
    let margin = logps.log_ratio_margin() * beta;
    let rows = [
        &(logps.chosen_log_ratio() * beta),
        &(logps.rejected_log_ratio() * beta),
        &wins(&margin),
        &margin,
        logps.chosen(),
        logps.rejected(),
    ];
    let means = host(&Tensor::stack(&rows, 0).mean_dim([1].as_slice(), false, margin.kind()))?;
    let metrics = NAMES.into_iter().zip(means).fold(Metrics::default(), |m, (name, value)| m.with(name, value));
    Ok(match batch.lengths() {
        Some(lengths) => {
            let tokens = (lengths.chosen() + lengths.rejected()).sum(Kind::Double).double_value(&[]);
            metrics.with("num_tokens", tokens)
        }
        None => metrics,
    })
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
    let kind = margins.kind();
    let values = [wins(&margins).mean(kind), margins.mean(kind), all.min(), all.mean(kind), all.max()];
    let values = host(&Tensor::stack(&values, 0))?;
    Ok(NAMES.into_iter().zip(values).fold(Metrics::default(), |m, (name, value)| m.with(name, value)))
}

fn wins(margins: &Tensor) -> Tensor {
    (margins.sign() + 1.0) / 2.0
}

fn host(values: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(values.to_kind(Kind::Double))?)
}
