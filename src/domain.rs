//! Numbers that are checked when they are made: by `new`, and again by serde, so that no configuration file walks around `new`.
//!
//! Each parameter is a type of its own, so that a refusal names it (`beta must be positive and finite, got -1`) from
//! wherever the number came.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

macro_rules! parameter {
    ($(#[$doc:meta])* $name:ident, $parameter:literal, $domain:literal, $holds:expr) => {
        $(#[$doc])*
        #[doc = concat!("\n\nDomain: ", $domain, ".")]
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// Checks the domain.
            ///
            /// # Errors
            /// [`Error::Domain`] outside it.
            pub fn new(value: f64) -> Result<Self> {
                let holds: fn(f64) -> bool = $holds;
                if holds(value) {
                    Ok(Self(value))
                } else {
                    Err(Error::Domain { parameter: $parameter, domain: $domain, value })
                }
            }

            /// The number.
            #[must_use]
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = Error;
            fn try_from(value: f64) -> Result<Self> {
                Self::new(value)
            }
        }

        impl From<$name> for f64 {
            fn from(number: $name) -> f64 {
                number.0
            }
        }
    };
}

parameter!(
    /// β of DPO and of reward distillation: nats of log-ratio are worth β units of reward each.
    Beta, "beta", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// τ of IPO: the regression target of the log-ratio margin is 1/(2τ) nats.
    Tau, "tau", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// Probability that a label is flipped.
    FlipRate, "flip_rate", "at least 0 and below 0.5", |x| (0.0..0.5).contains(&x)
);
parameter!(
    /// Weight of a term in a sum of losses. Negative weights are allowed.
    Weight, "weight", "finite", f64::is_finite
);
parameter!(
    /// What a part of a step counts for.
    PartWeight, "weight of a part", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// Weight of (r_w + r_l)², which keeps a reward model's scores near zero.
    Centring, "centring", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// What logits are multiplied with: the inverse of a temperature.
    LogitScale, "logit_scale", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// Bound of softly capped logits.
    SoftCap, "soft_cap", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// Peak learning rate.
    LearningRate, "learning_rate", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// Largest global gradient norm.
    MaxNorm, "max_norm", "positive", |x| x > 0.0
);
parameter!(
    /// Decay rate of a running moment of the gradient.
    Decay, "decay", "at least 0 and below 1", |x| (0.0..1.0).contains(&x)
);
parameter!(
    /// Decoupled weight decay, a share of the parameter for each unit of learning rate.
    WeightDecay, "weight_decay", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// Addend that keeps a division from overflowing.
    Epsilon, "epsilon", "positive and finite", |x| x > 0.0 && x.is_finite()
);

parameter!(
    /// λ of an uncertainty penalty: how many standard deviations of the family a score is lowered by.
    Pessimism, "pessimism", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// What an exponent or a score is divided by.
    Temperature, "temperature", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// α of SPO: its tabular minimiser is softmax(r/α).
    Alpha, "alpha", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// α of DRDO: weight of the preference term beside the regression.
    ContrastWeight, "contrast_weight", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// γ of DRDO: how strongly pairs that are told apart already are left alone.
    Focus, "focus", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// By how much a preference score should exceed 0.
    PreferenceMargin, "margin", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// κ of a Dirichlet prior: how many votes it counts for.
    Concentration, "concentration", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// Weight of a language-modelling term beside a reward objective.
    LikelihoodWeight, "likelihood_weight", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// Power of a pair's probability mass in its weight.
    MassPower, "mass_power", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// Power of the distance in a transport cost.
    CostPower, "cost_power", "at least 1 and finite", |x| x >= 1.0 && x.is_finite()
);

parameter!(
    /// Change of a log-likelihood in one round, in nats a vote, at which an iteration ends.
    Tolerance, "tolerance", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);

parameter!(
    /// What logits are divided by when a token is drawn; 0 takes the most likely one.
    SamplingTemperature, "temperature", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// Mass of the most likely tokens from which one is drawn.
    NucleusMass, "top_p", "above 0 and at most 1", |x| x > 0.0 && x <= 1.0
);
parameter!(
    /// α of a low-rank adapter: its change is multiplied with α/rank.
    LoraAlpha, "lora_alpha", "positive and finite", |x| x > 0.0 && x.is_finite()
);

impl Default for Tolerance {
    /// Ends at a fixed point.
    fn default() -> Self {
        Self(0.0)
    }
}

parameter!(
    /// λ of a density ratio, in units of the risk: how dear it is to leave the data's distribution.
    Lambda, "lambda", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// α of an α-divergence.
    DivergencePower, "alpha", "above 1 and finite", |x| x > 1.0 && x.is_finite()
);
parameter!(
    /// Share of rows that is accepted.
    Coverage, "coverage", "above 0 and at most 1", |x| x > 0.0 && x <= 1.0
);
parameter!(
    /// τ of a density ratio: rows below it are rejected.
    RatioThreshold, "threshold", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// What a rejection costs where an error costs 1.
    RejectionCost, "cost", "in [0, 1]", |x| (0.0..=1.0).contains(&x)
);
parameter!(
    /// The largest class probability below which a prediction is rejected.
    Confidence, "confidence", "in [0, 1]", |x| (0.0..=1.0).contains(&x)
);
parameter!(
    /// b of a denoising weight σ(−λ + b): the log-SNR at which it is ½, in nats.
    LogSnrShift, "shift", "finite", f64::is_finite
);

parameter!(
    /// λ of a Gram matrix, in units of a squared feature.
    Ridge, "ridge", "positive and finite", |x| x > 0.0 && x.is_finite()
);
parameter!(
    /// c of an elliptical bonus, in units of reward.
    BonusScale, "scale", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// α of conservative fine-tuning: what a nat of divergence to the pretrained model costs, in units of reward.
    KlWeight, "kl_weight", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);

parameter!(
    /// ε of EXO: the probability that the label is the wrong way round.
    Smoothing, "label_smoothing", "above 0 and below 0.5", |x| x > 0.0 && x < 0.5
);
parameter!(
    /// λ of DPO-Positive: what a nat that the chosen response has lost costs on top.
    Penalty, "penalty", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// δ of BCO: the reward at which a response is neither good nor bad.
    RewardShift, "shift", "finite", f64::is_finite
);
parameter!(
    /// α of AlphaPO: how the reward bends in a token's probability.
    RewardCurvature, "alpha", "finite", f64::is_finite
);
parameter!(
    /// α of the α-divergence.
    DivergenceOrder, "order", "finite", f64::is_finite
);
parameter!(
    /// λ_D of KTO.
    DesirableWeight, "desirable_weight", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// λ_U of KTO.
    UndesirableWeight, "undesirable_weight", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// z of KTO: the log-ratio, in nats, at which a response is neither a gain nor a loss.
    KlBaseline, "baseline", "at least 0 and finite", |x| x >= 0.0 && x.is_finite()
);
parameter!(
    /// α of LD-DPO: what a token beyond the shorter response's length counts.
    TailWeight, "ld_alpha", "at least 0 and at most 1", |x| (0.0..=1.0).contains(&x)
);
parameter!(
    /// α of TR-DPO: the policy's share in an updated reference.
    ReferenceShare, "share of the policy", "above 0 and at most 1", |x| x > 0.0 && x <= 1.0
);
parameter!(
    /// Share of what a running mean has seen that one further batch leaves.
    Retention, "retention", "above 0 and at most 1", |x| x > 0.0 && x <= 1.0
);
parameter!(
    /// A number that enters a running mean.
    Observation, "observation", "finite", f64::is_finite
);
parameter!(
    /// Mean number of tokens of a response.
    TokenCount, "tokens", "positive and finite", |x| x > 0.0 && x.is_finite()
);

impl Default for FlipRate {
    /// Every label is right.
    fn default() -> Self {
        Self(0.0)
    }
}

impl Decay {
    pub(crate) const FIRST_MOMENT: Self = Self(0.9);
    pub(crate) const SECOND_MOMENT: Self = Self(0.999);
}

impl Epsilon {
    pub(crate) const ADAM: Self = Self(1e-8);
}

impl WeightDecay {
    pub(crate) const NONE: Self = Self(0.0);
}

impl Default for RewardShift {
    /// The reference's own responses are the boundary.
    fn default() -> Self {
        Self(0.0)
    }
}

impl Default for DesirableWeight {
    /// As much as another response.
    fn default() -> Self {
        Self(1.0)
    }
}

impl Default for UndesirableWeight {
    /// As much as a desirable response.
    fn default() -> Self {
        Self(1.0)
    }
}

impl Default for Retention {
    /// Nothing is forgotten.
    fn default() -> Self {
        Self(1.0)
    }
}

impl Default for SamplingTemperature {
    /// The model's own distribution.
    fn default() -> Self {
        Self(1.0)
    }
}
