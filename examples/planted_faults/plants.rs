//! Healthy runs, and what is planted in the others.

use prefopt::{
    PreferenceLoss, Result,
    diagnostics::AlarmKind,
    loss::{Dpo, RewardDistillation},
};
use serde::Serialize;

use crate::world::{Pair, World};

pub const BETA: f64 = 0.1;
const LEARNING_RATE: f64 = 3e-4;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Plant {
    Dpo,
    Distillation,
    /// The mask of the policy's pass includes the prompt, that of the cached reference does not.
    PromptInPolicy,
    /// Both masks select the prompt in place of the response.
    PromptAlone,
    /// Both masks include the prompt.
    PromptInBoth,
    /// The cache holds the rejected response's log-probability where the chosen one's belongs.
    ReferenceSwapped,
    /// Chosen and rejected swap places, the reward models' scores do not.
    PairsSwapped,
    /// The reference is the policy of the moment.
    ReferenceTrained,
    RateTimes100,
    LabelsReversed,
    /// The same without reward models and without held-out labels.
    LabelsReversedUnseen,
    /// One chosen response in eight is empty.
    EmptyResponses,
    /// Every pair is there with the opposite label too.
    OpposedDuplicates,
}

/// Which tokens a pass scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    Response,
    PromptToo,
    PromptAlone,
}

impl Mask {
    /// Prompt, chosen and rejected as a pass under this mask takes them: what it scores counts as response.
    pub fn parts(self, pair: &Pair) -> [Vec<i64>; 3] {
        let (first, rest) = pair.opening.split_at(1);
        let scored = |response: &[i64]| match self {
            Self::Response => response.to_vec(),
            Self::PromptToo => [rest, response].concat(),
            Self::PromptAlone => rest.to_vec(),
        };
        let prompt = if self == Self::Response { pair.opening.clone() } else { first.to_vec() };
        [prompt, scored(&pair.chosen), scored(&pair.rejected)]
    }
}

impl Plant {
    pub const ALL: [Self; 13] = [
        Self::Dpo,
        Self::Distillation,
        Self::PromptInPolicy,
        Self::PromptAlone,
        Self::PromptInBoth,
        Self::ReferenceSwapped,
        Self::PairsSwapped,
        Self::ReferenceTrained,
        Self::RateTimes100,
        Self::LabelsReversed,
        Self::LabelsReversedUnseen,
        Self::EmptyResponses,
        Self::OpposedDuplicates,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dpo => "healthy: DPO",
            Self::Distillation => "healthy: d-DPO",
            Self::PromptInPolicy => "mask: prompt too, in the policy alone",
            Self::PromptAlone => "mask: prompt in place of the response",
            Self::PromptInBoth => "mask: prompt too, in both",
            Self::ReferenceSwapped => "swapped columns of the reference",
            Self::PairsSwapped => "swapped columns of the pair, not of the scores",
            Self::ReferenceTrained => "reference trained too",
            Self::RateTimes100 => "learning rate x 100",
            Self::LabelsReversed => "labels reversed",
            Self::LabelsReversedUnseen => "labels reversed, nothing to compare with",
            Self::EmptyResponses => "empty responses",
            Self::OpposedDuplicates => "duplicates with opposite labels",
        }
    }

    pub fn is_healthy(self) -> bool {
        matches!(self, Self::Dpo | Self::Distillation)
    }

    /// Alarms that name the fault; none where nothing that is computed can show it, or where it does no harm.
    pub fn expected(self) -> &'static [AlarmKind] {
        match self {
            Self::PromptInPolicy | Self::ReferenceSwapped => &[AlarmKind::ReferenceMismatch],
            Self::PromptAlone => &[AlarmKind::LossStuck],
            Self::PairsSwapped | Self::LabelsReversed => &[AlarmKind::LabelsReversed],
            Self::ReferenceTrained => &[AlarmKind::ReferenceIsPolicy],
            Self::RateTimes100 => &[
                AlarmKind::BothFall,
                AlarmKind::RunawayMargins,
                AlarmKind::BeyondTeachers,
                AlarmKind::NonFinite,
                AlarmKind::EntropyCollapse,
                AlarmKind::LengthDrift,
                AlarmKind::Repetition,
            ],
            Self::OpposedDuplicates => &[AlarmKind::OpposedLabels, AlarmKind::LossStuck],
            Self::Dpo | Self::Distillation | Self::PromptInBoth | Self::LabelsReversedUnseen | Self::EmptyResponses => {
                &[]
            }
        }
    }

    /// Whether there is something to catch: an alarm that names it, or a typed error.
    pub fn is_visible(self) -> bool {
        !self.expected().is_empty() || self == Self::EmptyResponses
    }

    /// Whether reward models and held-out labels are there to compare with.
    pub fn is_compared(self) -> bool {
        self != Self::LabelsReversedUnseen
    }

    pub fn loss(self) -> Result<Box<dyn PreferenceLoss>> {
        Ok(match self {
            Self::Distillation => Box::new(RewardDistillation::new(BETA)?),
            _ => Box::new(Dpo::new(BETA)?),
        })
    }

    pub fn learning_rate(self) -> f64 {
        if self == Self::RateTimes100 { 100.0 * LEARNING_RATE } else { LEARNING_RATE }
    }

    /// Of the policy's pass and of the cached reference's.
    pub fn masks(self) -> [Mask; 2] {
        match self {
            Self::PromptInPolicy => [Mask::PromptToo, Mask::Response],
            Self::PromptAlone => [Mask::PromptAlone; 2],
            Self::PromptInBoth => [Mask::PromptToo; 2],
            _ => [Mask::Response; 2],
        }
    }

    /// The pairs to train on, as many as the world's.
    pub fn training(self, world: &World) -> Vec<Pair> {
        let pairs = &world.training;
        match self {
            Self::LabelsReversed | Self::LabelsReversedUnseen => pairs.iter().map(Pair::reversed).collect(),
            Self::OpposedDuplicates => {
                let half = &pairs[..pairs.len() / 2];
                half.iter().cloned().chain(half.iter().map(Pair::reversed)).collect()
            }
            Self::EmptyResponses => {
                let emptied = |(i, pair): (usize, &Pair)| match i % 8 {
                    0 => Pair { chosen: vec![], ..pair.clone() },
                    _ => pair.clone(),
                };
                pairs.iter().enumerate().map(emptied).collect()
            }
            _ => pairs.clone(),
        }
    }
}
