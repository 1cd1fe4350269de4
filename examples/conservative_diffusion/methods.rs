//! What is compared, and r̂ − ĝ of each.

use anyhow::Result;
use prefopt::diffusion::{EllipticalBonus, bootstrap_minimum};
use serde::Serialize;
use tch::Tensor;

use crate::{
    reward::{RewardNetwork, WIDTH},
    support::network::matrix,
    world::World,
};

/// λ of the bonus.
const RIDGE: f64 = 1.0;
/// α of the conservative methods, in units of reward per nat.
const ALPHA: f64 = 0.15;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Penalty {
    None,
    /// The elliptical one, at this c.
    Bonus(f64),
    Bootstrap,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Method {
    pub name: &'static str,
    pub kl_weight: f64,
    pub penalty: Penalty,
}

const fn method(name: &'static str, kl_weight: f64, penalty: Penalty) -> Method {
    Method { name, kl_weight, penalty }
}

pub const METHODS: [Method; 8] = [
    method("neither", 0.0, Penalty::None),
    method("KL only", ALPHA, Penalty::None),
    method("KL only, twice α", 2.0 * ALPHA, Penalty::None),
    method("KL only, four times α", 4.0 * ALPHA, Penalty::None),
    method("KL + bonus, c = 0.5", ALPHA, Penalty::Bonus(0.5)),
    method("KL + bonus, c = 1", ALPHA, Penalty::Bonus(1.0)),
    method("KL + bonus, c = 2", ALPHA, Penalty::Bonus(2.0)),
    method("KL + bootstrap minimum", ALPHA, Penalty::Bootstrap),
];

/// The yardstick: the divergence alone at the conservative methods' α.
pub const KL_ONLY: usize = 1;
/// The same at every α.
pub const KL_ONLY_AT_ANY: std::ops::Range<usize> = 1..4;
pub const CONSERVATIVE: std::ops::Range<usize> = 4..8;
/// The most cautious bonus, which the picture shows.
pub const MOST_CAUTIOUS: usize = 6;

/// A method's view of the reward in one world.
#[derive(Debug)]
pub struct Learned {
    network: RewardNetwork,
    lowered: Lowered,
}

#[derive(Debug)]
enum Lowered {
    Not,
    By(EllipticalBonus),
    ToTheLeast(Vec<RewardNetwork>),
}

impl Learned {
    pub fn new(world: &World, penalty: Penalty) -> Result<Self> {
        let network = RewardNetwork::new(&world.reward);
        let lowered = match penalty {
            Penalty::None => Lowered::Not,
            Penalty::Bonus(scale) => {
                let mut bonus = EllipticalBonus::new(WIDTH, RIDGE, scale)?;
                bonus.update(&network.features(&matrix(&world.scored, 2)))?;
                Lowered::By(bonus)
            }
            Penalty::Bootstrap => {
                Lowered::ToTheLeast(world.heads.iter().map(|weights| RewardNetwork::new(weights)).collect())
            }
        };
        Ok(Self { network, lowered })
    }

    /// r̂, `[n]`, of points `[n, 2]`: the same for every method of a world.
    pub fn score(&self, points: &Tensor) -> Tensor {
        self.network.score(points)
    }

    /// r̂ − ĝ, `[n]`.
    pub fn conservative(&self, points: &Tensor) -> Result<Tensor> {
        Ok(match &self.lowered {
            Lowered::Not => self.score(points),
            Lowered::By(bonus) => self.score(points) - bonus.penalty(&self.network.features(points))?,
            Lowered::ToTheLeast(heads) => {
                let scores: Vec<Tensor> = heads.iter().map(|head| head.score(points)).collect();
                bootstrap_minimum(&Tensor::stack(&scores, 0))?
            }
        })
    }
}
