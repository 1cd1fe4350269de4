//! The methods under comparison, each with one number.

use std::ops::Range;

use prefopt::{
    PreferenceBatch, PreferenceLoss, Result,
    loss::{Contrast, Dpo, Drdo, ForwardKl, PessimisticDistillation, from_fn},
};
use serde::Serialize;

/// β of DPO and e-DPO, α of DRDO: one grid for all.
pub const NUMBERS: [f64; 5] = [0.03, 0.1, 0.3, 1.0, 3.0];
/// The field's default β, and DRDO's default α, are both .1.
pub const DEFAULT: usize = 1;
/// Weight of the forward divergence in e-DPO.
const GAMMA: f64 = 0.01;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Dpo,
    /// e-DPO.
    Pessimistic,
    Drdo,
    /// DRDO in the form that the paper prints.
    Printed,
    /// −log π(y_w): is DRDO's stability more than that of imitation?
    Imitation,
}

impl Method {
    pub const ALL: [Self; 5] = [Self::Dpo, Self::Pessimistic, Self::Drdo, Self::Printed, Self::Imitation];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dpo => "DPO",
            Self::Pessimistic => "e-DPO",
            Self::Drdo => "DRDO",
            Self::Printed => "DRDO, printed",
            Self::Imitation => "likelihood of chosen",
        }
    }

    /// Whether its number and its budget are chosen: the printed form is shown at its defaults only.
    pub fn is_tuned(self) -> bool {
        self != Self::Printed
    }

    /// Which of [`NUMBERS`] it is run with; one where it has no number.
    pub fn numbers(self) -> Range<usize> {
        match self {
            Self::Dpo | Self::Pessimistic | Self::Drdo => 0..NUMBERS.len(),
            Self::Printed | Self::Imitation => DEFAULT..DEFAULT + 1,
        }
    }

    /// Its number in words.
    pub fn setting(self, number: usize) -> String {
        match self {
            Self::Dpo | Self::Pessimistic => format!("beta {}", NUMBERS[number]),
            Self::Drdo | Self::Printed => format!("alpha {}", NUMBERS[number]),
            Self::Imitation => String::new(),
        }
    }

    pub fn loss(self, number: usize) -> Result<Box<dyn PreferenceLoss>> {
        let number = NUMBERS[number];
        Ok(match self {
            Self::Dpo => Box::new(Dpo::new(number)?),
            Self::Pessimistic => {
                Box::new(PessimisticDistillation::new(number)?.plus(GAMMA, ForwardKl::ReferenceSamples))
            }
            Self::Drdo => Box::new(Drdo::new().with_contrast_weight(number)?),
            Self::Printed => Box::new(Drdo::new().with_contrast_weight(number)?.with_contrast(Contrast::Printed)),
            Self::Imitation => Box::new(from_fn(|batch: &PreferenceBatch| Ok(-batch.logps().chosen()))),
        })
    }
}
