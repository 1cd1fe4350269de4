//! What stands around a loss of pairs: another divergence, token means, weights of pairs.

use anyhow::{Result, anyhow, bail, ensure};
use prefopt::{
    PreferenceLoss,
    domain::{TailWeight, Temperature},
    loss::{FDivergence, MarginLoss, Spread, UncertaintyWeighted, Wpo},
};

use super::{Needs, Objective, Rewards, Transform, parse::Given};

/// TRL's default order of the α-divergence.
const ORDER: f64 = 0.5;
const TEMPERATURE: f64 = 1.0;
const TAIL_WEIGHT: f64 = 0.5;

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Around {
    under: Option<FDivergence>,
    per_token: bool,
    weighted: Option<(Spread, Temperature)>,
    policy_weighted: bool,
}

impl Around {
    /// Of the keys that are left when the loss has taken its own.
    pub fn read(given: &mut Given) -> Result<Self> {
        let order = given.number("alpha");
        let under = match given.word("under").as_deref() {
            None => None,
            Some("reverse_kl") => Some(FDivergence::ReverseKl),
            Some("forward_kl") => Some(FDivergence::ForwardKl),
            Some("js_divergence") => Some(FDivergence::JensenShannon),
            Some(_) => Some(FDivergence::alpha(order.unwrap_or(ORDER))?),
        };
        let ordered = matches!(under, Some(FDivergence::Alpha { .. }));
        ensure!(order.is_none() || ordered, "`alpha` is the order of under=alpha_divergence, which is not given");
        let temperature = given.number("temperature");
        let spread = given.word("weighted").map(|word| match word.as_str() {
            "uncertainty" => Spread::Margin,
            _ => Spread::Responses,
        });
        ensure!(temperature.is_none() || spread.is_some(), "`temperature` is that of weighted=…, which is not given");
        let temperature = Temperature::new(temperature.unwrap_or(TEMPERATURE))?;
        Ok(Self {
            under,
            per_token: given.switch("per_token"),
            weighted: spread.map(|spread| (spread, temperature)),
            policy_weighted: given.switch("wpo"),
        })
    }

    /// The keys that [`read`](Self::read) takes, with their values.
    pub fn written(&self) -> Vec<(&'static str, String)> {
        let mut keys = Vec::new();
        if let Some(under) = self.under {
            let (word, order) = match under {
                FDivergence::ReverseKl => ("reverse_kl", None),
                FDivergence::ForwardKl => ("forward_kl", None),
                FDivergence::JensenShannon => ("js_divergence", None),
                FDivergence::Alpha { order } => ("alpha_divergence", Some(order)),
            };
            keys.push(("under", word.to_owned()));
            keys.extend(order.map(|order| ("alpha", order.get().to_string())));
        }
        if self.per_token {
            keys.push(("per_token", true.to_string()));
        }
        if let Some((spread, temperature)) = self.weighted {
            let word = if spread == Spread::Margin { "uncertainty" } else { "response_uncertainty" };
            keys.extend([("weighted", word.to_owned()), ("temperature", temperature.get().to_string())]);
        }
        if self.policy_weighted {
            keys.push(("wpo", true.to_string()));
        }
        keys
    }

    /// A loss of the margin, of the scores that are asked for.
    pub fn of_margin<L: MarginLoss + 'static>(&self, loss: L) -> Objective {
        Objective::Paired(match (self.under, self.per_token) {
            (None, false) => Box::new(loss),
            (None, true) => Box::new(loss.per_token()),
            (Some(divergence), false) => Box::new(loss.under(divergence)),
            (Some(divergence), true) => Box::new(loss.under(divergence).per_token()),
        })
    }

    /// The weights of pairs on any loss of them.
    pub fn weights(&self, loss: Box<dyn PreferenceLoss>) -> Result<Box<dyn PreferenceLoss>> {
        let loss: Box<dyn PreferenceLoss> = match self.weighted {
            None => loss,
            Some((spread, temperature)) => {
                Box::new(UncertaintyWeighted::new(loss, temperature.get())?.with_spread(spread))
            }
        };
        Ok(if self.policy_weighted { Box::new(Wpo::new(loss)) } else { loss })
    }

    pub fn needs(&self) -> Needs {
        let rewards = if self.weighted.is_some() { Rewards::Family } else { Rewards::None };
        Needs { rewards, policy_weights: self.policy_weighted, ..Needs::default() }
    }

    pub fn needs_sums(&self) -> bool {
        self.per_token
    }
}

impl Transform {
    pub(super) fn read(given: &mut Given) -> Result<Self> {
        let tail_weight = given.number("tail_weight");
        let transform = match given.word("transform").as_deref() {
            None => Self::None,
            Some("per_token") => Self::PerToken,
            Some("reference_free") => Self::ReferenceFree,
            Some(_) => {
                let weight = TailWeight::new(tail_weight.unwrap_or(TAIL_WEIGHT));
                return Ok(Self::LengthDesensitised(weight.map_err(|error| anyhow!("tail_weight: {error}"))?.get()));
            }
        };
        match tail_weight {
            None => Ok(transform),
            Some(_) => bail!("`tail_weight` is that of transform=length_desensitised, which is not given"),
        }
    }

    pub(super) fn written(self) -> Vec<(&'static str, String)> {
        let key = |word: &str| ("transform", word.to_owned());
        match self {
            Self::None => vec![],
            Self::PerToken => vec![key("per_token")],
            Self::ReferenceFree => vec![key("reference_free")],
            Self::LengthDesensitised(weight) => {
                vec![key("length_desensitised"), ("tail_weight", weight.to_string())]
            }
        }
    }
}
