//! Grids of equal size, and the points that are chosen from them on seeds of their own.

use anyhow::{Context, Result};
use prefopt::loss::ReverseKl;
use serde::Serialize;

use crate::policy::{Anchor, Method, Outcome, Setting};

/// β or α where it is all there is to choose.
const ALONE: [f64; 12] = [0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 4.0];
/// β or α, and λ, where there are two.
const STRENGTHS: [f64; 4] = [0.05, 0.1, 0.2, 0.4];
const LAMBDAS: [f64; 3] = [0.1, 0.4, 1.6];
/// Share of the best gain without a divergence that a cautious choice has to keep.
pub const KEPT: f64 = 0.9;

/// What is tuned by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Family {
    pub method: Method,
    pub anchor: Anchor,
}

pub const FAMILIES: [Family; 6] = [
    Family { method: Method::Dpo, anchor: Anchor::None },
    Family { method: Method::Spo, anchor: Anchor::None },
    Family { method: Method::Dpo, anchor: Anchor::Pairs },
    Family { method: Method::Spo, anchor: Anchor::Pairs },
    Family { method: Method::Dpo, anchor: Anchor::Unlabelled },
    Family { method: Method::Spo, anchor: Anchor::Unlabelled },
];

impl Family {
    pub fn name(self) -> &'static str {
        match (self.method, self.anchor) {
            (Method::Dpo, Anchor::None) => "DPO",
            (Method::Spo, Anchor::None) => "SPO, λ = 0",
            (Method::Dpo, Anchor::Pairs) => "DPO + KL",
            (Method::Spo, Anchor::Pairs) => "SPO + KL",
            (Method::Dpo, Anchor::Unlabelled) => "DPO + wide KL",
            (Method::Spo, Anchor::Unlabelled) => "SPO + wide KL",
        }
    }

    fn grid(self) -> Vec<Setting> {
        let Self { method, anchor } = self;
        let at = |strength, lambda| Setting { method, anchor, strength, lambda, divergence: ReverseKl::Exact };
        match anchor {
            Anchor::None => ALONE.map(|strength| at(strength, 0.0)).to_vec(),
            _ => STRENGTHS.iter().flat_map(|&strength| LAMBDAS.map(|lambda| at(strength, lambda))).collect(),
        }
    }
}

/// All points of all grids, one in `thinning`.
pub fn grids(thinning: usize) -> Vec<Setting> {
    FAMILIES.iter().flat_map(|family| family.grid().into_iter().step_by(thinning)).collect()
}

/// A point of a grid with its means over the tuning seeds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Tuned {
    pub setting: Setting,
    /// Gold reward above the reference's on prompts of the training region.
    pub gain: f64,
    /// KL on shifted prompts, nats.
    pub drift: f64,
}

impl Tuned {
    pub fn new(setting: Setting, outcomes: &[Outcome]) -> Self {
        let mean = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64;
        Self { setting, gain: mean(|o| o.familiar.gain), drift: mean(|o| o.shifted.kl) }
    }

    pub fn is_of(&self, family: Family) -> bool {
        self.setting.method == family.method && self.setting.anchor == family.anchor
    }
}

/// How a point is chosen from its grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Choice {
    /// Largest gain.
    MostGain,
    /// Least drift among those that keep [`KEPT`] of the best gain without a divergence, of whichever method; where none does, the largest
    /// gain.
    LeastDrift,
}

impl Choice {
    pub fn of(self, tuned: &[Tuned], family: Family) -> Result<Setting> {
        let own = || tuned.iter().filter(move |t| t.is_of(family));
        let most = own().max_by(|a, b| a.gain.total_cmp(&b.gain)).context("a grid without points")?;
        let best = tuned.iter().filter(|t| t.setting.anchor == Anchor::None).map(|t| t.gain).fold(0.0, f64::max);
        let steady = own().filter(|t| t.gain >= KEPT * best).min_by(|a, b| a.drift.total_cmp(&b.drift));
        Ok(match self {
            Self::MostGain => most.setting,
            Self::LeastDrift => steady.unwrap_or(most).setting,
        })
    }
}

/// Gain and drift of the points of a family that no other point of it beats in both, by gain.
pub fn front(tuned: &[Tuned], family: Family) -> Vec<(f64, f64)> {
    let own: Vec<&Tuned> = tuned.iter().filter(|t| t.is_of(family)).collect();
    let beaten = |t: &Tuned| own.iter().any(|o| o.gain > t.gain && o.drift < t.drift);
    let mut front: Vec<_> = own.iter().filter(|t| !beaten(t)).map(|t| (t.gain, t.drift)).collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    front
}
