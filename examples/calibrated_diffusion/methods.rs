//! What is compared: how pairs and their scores are made, and which loss tunes on them.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};
use prefopt::{
    PreferenceLoss, Result,
    diffusion::{Calibration, Frontier, SamplePair, TemperatureUnit, extremes, weighted_sum},
    loss::{Dpo, Ipo, PessimisticDistillation, RewardDistillation},
};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Method {
    #[serde(rename = "raw sum")]
    Raw,
    /// Control: each reward over its own deviation within prompts, then summed.
    #[serde(rename = "standardised sum")]
    Standardised,
    /// Control: one temperature for judges of any scale.
    #[serde(rename = "calibrated sum, T = 1")]
    CalibratedInRewards,
    #[serde(rename = "calibrated sum")]
    Calibrated,
    #[serde(rename = "frontier")]
    Frontier,
    #[serde(rename = "calibrated sum, DPO")]
    Dpo,
    #[serde(rename = "calibrated sum, IPO")]
    Ipo,
    /// The family of the judges' calibrated rewards.
    #[serde(rename = "calibrated sum, e-DPO")]
    Pessimistic,
}

/// The pair of a prompt: one for all steps, or drawn anew.
pub enum Pairs {
    Fixed(Vec<Option<SamplePair>>),
    Drawn(Vec<Frontier>),
}

impl Pairs {
    pub fn of(&self, prompt: usize, rng: &mut ChaCha8Rng) -> Option<SamplePair> {
        match self {
            Self::Fixed(pairs) => pairs[prompt],
            Self::Drawn(frontiers) => frontiers[prompt].draw(rng),
        }
    }
}

impl Method {
    pub const ALL: [Self; 8] = [
        Self::Raw,
        Self::Standardised,
        Self::CalibratedInRewards,
        Self::Calibrated,
        Self::Frontier,
        Self::Dpo,
        Self::Ipo,
        Self::Pessimistic,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw sum",
            Self::Standardised => "standardised sum",
            Self::CalibratedInRewards => "calibrated sum, T = 1",
            Self::Calibrated => "calibrated sum",
            Self::Frontier => "frontier",
            Self::Dpo => "calibrated sum, DPO",
            Self::Ipo => "calibrated sum, IPO",
            Self::Pessimistic => "calibrated sum, e-DPO",
        }
    }

    /// Whether it is one of the ways to make pairs, all tuned by distillation.
    pub fn selects(self) -> bool {
        !matches!(self, Self::Dpo | Self::Ipo | Self::Pessimistic)
    }

    pub fn loss(self, beta: f64) -> Result<Box<dyn PreferenceLoss>> {
        Ok(match self {
            Self::Dpo => Box::new(Dpo::new(beta)?),
            Self::Ipo => Box::new(Ipo::new(beta)?),
            Self::Pessimistic => Box::new(PessimisticDistillation::new(beta)?),
            _ => Box::new(RewardDistillation::new(beta)?),
        })
    }

    /// What the loss distils, `[members, prompts, samples]`, each member of unit deviation within prompts.
    pub fn scores(self, rewards: ArrayView3<f64>) -> Result<Array3<f64>> {
        if self == Self::Pessimistic {
            let mut family = calibration()?.per_model(rewards)?;
            for mut member in family.outer_iter_mut() {
                let deviation = deviation(member.view());
                member.mapv_inplace(|score| score / deviation);
            }
            return Ok(family);
        }
        let score = self.score(rewards)?;
        let deviation = deviation(score.view());
        Ok((score / deviation).insert_axis(Axis(0)))
    }

    /// One score a sample, `[prompts, samples]`.
    fn score(self, rewards: ArrayView3<f64>) -> Result<Array2<f64>> {
        match self {
            Self::Raw => weighted_sum(rewards, &vec![1.0; rewards.len_of(Axis(0))]),
            Self::Standardised => {
                let weights: Vec<f64> = rewards.outer_iter().map(|reward| deviation(reward).recip()).collect();
                weighted_sum(rewards, &weights)
            }
            Self::CalibratedInRewards => Calibration::new(1.0)?.average(rewards),
            _ => calibration()?.average(rewards),
        }
    }

    pub fn pairs(self, rewards: ArrayView3<f64>) -> Result<Pairs> {
        Ok(match self {
            Self::Frontier => Pairs::Drawn(Frontier::of_prompts(calibration()?.per_model(rewards)?.view())?),
            _ => Pairs::Fixed(extremes(self.score(rewards)?.view())?),
        })
    }
}

/// At a temperature of one deviation of each judge: the scales here are arbitrary.
fn calibration() -> Result<Calibration> {
    Ok(Calibration::new(1.0)?.with_unit(TemperatureUnit::Deviation))
}

/// Standard deviation within prompts.
fn deviation(scores: ArrayView2<f64>) -> f64 {
    let variances = scores.var_axis(Axis(1), 0.0);
    (variances.sum() / variances.len() as f64).sqrt()
}
