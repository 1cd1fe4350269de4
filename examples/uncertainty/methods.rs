//! The methods, and the settings among which each is tuned: nine each.

use anyhow::Result;
use prefopt::{
    PreferenceLoss, RewardScores,
    loss::{Dpo, Spread, UncertaintyPenalised, UncertaintyWeighted},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::Tensor;

use crate::{
    family::Family,
    support::network::{indices, vector},
    world::World,
};

/// β of every method but DPO, which has no other number and gets nine.
const BETAS: [f64; 3] = [0.2, 0.4, 0.8];
const DPO_BETAS: [f64; 9] = [0.1, 0.14, 0.2, 0.28, 0.4, 0.57, 0.8, 1.13, 1.6];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Dpo,
    /// Additive, u of each response.
    Responses,
    /// Additive, u of the margin.
    Margin,
    /// Multiplicative, u of the margin.
    Weighted,
    /// A control: the multiplicative form with its weights dealt to the pairs at random.
    Shuffled,
    /// A control: the multiplicative form with the annotators' flip rate in place of u, which no learner knows.
    Informed,
    /// A control: DPO that takes every label to be flipped at one rate.
    Cdpo,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Setting {
    pub beta: f64,
    /// λ, τ or the flip rate; 0 where there is none.
    pub own: f64,
}

impl Method {
    pub const ALL: [Self; 7] =
        [Self::Dpo, Self::Responses, Self::Margin, Self::Weighted, Self::Shuffled, Self::Informed, Self::Cdpo];
    /// What the claim is about.
    pub const FORMS: [Self; 3] = [Self::Responses, Self::Margin, Self::Weighted];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dpo => "DPO",
            Self::Responses => "additive, responses",
            Self::Margin => "additive, margin",
            Self::Weighted => "weight, margin",
            Self::Shuffled => "weight, shuffled u",
            Self::Informed => "weight, true noise",
            Self::Cdpo => "cDPO",
        }
    }

    pub fn settings(self) -> Vec<Setting> {
        let own: [f64; 3] = match self {
            Self::Dpo => return DPO_BETAS.map(|beta| Setting { beta, own: 0.0 }).to_vec(),
            Self::Responses | Self::Margin => [0.25, 0.5, 1.0],
            Self::Weighted | Self::Shuffled => [0.5, 1.0, 2.0],
            Self::Informed => [0.1, 0.2, 0.4],
            Self::Cdpo => [0.05, 0.1, 0.2],
        };
        BETAS.iter().flat_map(|&beta| own.map(|own| Setting { beta, own })).collect()
    }

    pub fn loss(self, Setting { beta, own }: Setting) -> Result<Box<dyn PreferenceLoss>> {
        let dpo = Dpo::new(beta)?;
        Ok(match self {
            Self::Dpo => Box::new(dpo),
            Self::Responses => Box::new(UncertaintyPenalised::new(beta, own)?),
            Self::Margin => Box::new(UncertaintyPenalised::new(beta, own)?.with_spread(Spread::Margin)),
            Self::Weighted | Self::Shuffled | Self::Informed => Box::new(UncertaintyWeighted::new(dpo, own)?),
            Self::Cdpo => Box::new(dpo.with_flip_rate(own)?),
        })
    }

    /// The column of scores that the loss sees.
    pub fn scores(self, world: &World, family: &Family, seed: u64) -> Result<RewardScores> {
        let scores = family.training.centred()?;
        match self {
            Self::Shuffled => {
                let mut order: Vec<usize> = (0..world.training.chosen.len()).collect();
                order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
                Ok(scores.select(&indices(&order))?)
            }
            // Two members at ±ε have the standard deviation ε.
            Self::Informed => {
                let noise = vector(&world.training.noise);
                let opposed = Tensor::stack(&[&noise, &-&noise], 0);
                Ok(RewardScores::new(opposed.shallow_clone(), opposed.zeros_like())?)
            }
            _ => Ok(scores),
        }
    }
}
