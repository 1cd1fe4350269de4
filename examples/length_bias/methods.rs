//! The methods that are compared, each a loss of the library.

use prefopt::{
    PreferenceLoss, Result,
    loss::{Dpo, ForwardKl, Ipo, Minimum, PessimisticDistillation, RewardDistillation},
};
use serde::{Deserialize, Serialize};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Method {
    #[serde(rename = "DPO")]
    Dpo,
    #[serde(rename = "IPO")]
    Ipo,
    #[serde(rename = "d-DPO")]
    Distillation,
    #[serde(rename = "e-DPO")]
    Pessimistic,
    #[serde(rename = "p-DPO")]
    AnchoredDpo,
    #[serde(rename = "dp-DPO")]
    AnchoredDistillation,
    /// Control: d-DPO on the members' mean.
    #[serde(rename = "d-DPO, mean of family")]
    MeanOfFamily,
    /// Control: the minimum over the convex hull.
    #[serde(rename = "e-DPO, hull")]
    Hull,
    /// Control: members standardised before they compete.
    #[serde(rename = "e-DPO, standardised")]
    Standardised,
    /// Control: DPO on the pooled data of all biases.
    #[serde(rename = "DPO, pooled data")]
    Pooled,
}

/// Which reward scores a method reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    None,
    /// The model trained on the same biased data.
    Own,
    Mean,
    Family,
    Standardised,
}

impl Method {
    pub const ALL: [Self; 10] = [
        Self::Dpo,
        Self::Ipo,
        Self::Distillation,
        Self::Pessimistic,
        Self::AnchoredDpo,
        Self::AnchoredDistillation,
        Self::MeanOfFamily,
        Self::Hull,
        Self::Standardised,
        Self::Pooled,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dpo => "DPO",
            Self::Ipo => "IPO",
            Self::Distillation => "d-DPO",
            Self::Pessimistic => "e-DPO",
            Self::AnchoredDpo => "p-DPO",
            Self::AnchoredDistillation => "dp-DPO",
            Self::MeanOfFamily => "d-DPO, mean of family",
            Self::Hull => "e-DPO, hull",
            Self::Standardised => "e-DPO, standardised",
            Self::Pooled => "DPO, pooled data",
        }
    }

    pub fn scores(self) -> Scores {
        match self {
            Self::Dpo | Self::Ipo | Self::AnchoredDpo | Self::Pooled => Scores::None,
            Self::Distillation | Self::AnchoredDistillation => Scores::Own,
            Self::MeanOfFamily => Scores::Mean,
            Self::Pessimistic | Self::Hull => Scores::Family,
            Self::Standardised => Scores::Standardised,
        }
    }

    /// Whether the loss reads samples of the reference.
    pub fn anchored(self) -> bool {
        !matches!(self, Self::Dpo | Self::Ipo | Self::Distillation | Self::MeanOfFamily | Self::Pooled)
    }

    /// Whether the loss chooses among members.
    pub fn pessimistic(self) -> bool {
        matches!(self, Self::Pessimistic | Self::Hull | Self::Standardised)
    }

    /// The loss at a β (IPO's τ), with weight γ of the forward divergence where the method has one.
    pub fn loss(self, beta: f64, gamma: f64) -> Result<Box<dyn PreferenceLoss>> {
        let kl = ForwardKl::ReferenceSamples;
        Ok(match self {
            Self::Dpo | Self::Pooled => Box::new(Dpo::new(beta)?),
            Self::Ipo => Box::new(Ipo::new(beta)?),
            Self::Distillation | Self::MeanOfFamily => Box::new(RewardDistillation::new(beta)?),
            Self::AnchoredDpo => Box::new(Dpo::new(beta)?.plus(gamma, kl)),
            Self::AnchoredDistillation => Box::new(RewardDistillation::new(beta)?.plus(gamma, kl)),
            Self::Pessimistic | Self::Standardised => Box::new(PessimisticDistillation::new(beta)?.plus(gamma, kl)),
            Self::Hull => {
                let hull = PessimisticDistillation::new(beta)?.with_minimum(Minimum::Hull);
                Box::new(hull.plus(gamma, kl))
            }
        })
    }
}
