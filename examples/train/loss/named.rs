//! The library's losses as one enum, which serde reads from a name and numbers; the library's types check the numbers.

use anyhow::{Result, anyhow, ensure};
use prefopt::{
    Error, PreferenceBatch, PreferenceLoss,
    domain::{Alpha, Beta, DesirableWeight, KlBaseline, MassPower, Tau, UndesirableWeight},
    loss::{
        AlphaPo, Aot, AotUnpaired, ApoDown, ApoZero, Average, Bco, BcoPair, Cpo, DiscoPop, Dpo, DpoPositive, Drdo,
        ExoPair, ForwardKl, Gpo, Hinge, Ipo, Kto, Minimum, NcaPair, OddsRatio, PairWeight, PessimisticDistillation,
        ProbabilityMatching, ReverseKl, RewardDistillation, RobustDpo, Sft, SimPo, Spo, Sppo, Target,
        UncertaintyPenalised, UnpairedLoss, WinRate, from_fn,
    },
    pairs::UnpairedBatch,
    tch::{Kind, Tensor},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Moving, Needs, Objective, Rewards, around::Around, keys::Entry, parse::Given};

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Named {
    Dpo(Dpo),
    RobustDpo(RobustDpo),
    Ipo(Ipo),
    Hinge(Hinge),
    Exo(ExoPair),
    #[serde(rename = "discopop")]
    DiscoPop {
        beta: Beta,
        tau: Tau,
    },
    DDpo(RewardDistillation),
    Matching {
        beta: Beta,
        target: Target,
    },
    EDpo {
        beta: Beta,
        minimum: Smallest,
    },
    #[serde(rename = "updpo")]
    UncertaintyPenalised(UncertaintyPenalised),
    Drdo(Drdo),
    Spo {
        alpha: Alpha,
        mass_power: MassPower,
    },
    Nca(NcaPair),
    Sppo {
        beta: Beta,
        win_rate: WinRate,
    },
    Bco {
        beta: Beta,
        shift: NumberOr<Running>,
    },
    ApoZero(ApoZero),
    ApoDown(ApoDown),
    #[serde(rename = "dpop")]
    DpoPositive(DpoPositive),
    Aot(Aot),
    AotUnpaired(AotUnpaired),
    CpoPreference(Cpo),
    #[serde(rename = "simpo")]
    SimPo(SimPo),
    #[serde(rename = "alphapo")]
    AlphaPo(AlphaPo),
    OddsRatio,
    Sft(Sft),
    ForwardKl {
        estimator: ForwardKl,
    },
    ReverseKl {
        estimator: ReverseKl,
    },
    Kto {
        beta: Beta,
        desirable_weight: DesirableWeight,
        undesirable_weight: UndesirableWeight,
        baseline: NumberOr<Mismatched>,
    },
    BcoUnpaired(Bco),
    Gpo(Gpo),
}

/// [`Minimum`] before a tracker has found its member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smallest {
    Batch,
    Pair,
    Hull,
    Dataset,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOr<W> {
    Number(f64),
    Word(W),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Running {
    Running,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mismatched {
    Mismatched,
}

/// Where what moves between steps has come to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    pub member: i64,
    pub shift: f64,
}

fn pair(loss: impl PreferenceLoss + 'static) -> Objective {
    Objective::Paired(Box::new(loss))
}

impl Named {
    /// Takes the keys of `entry` out of those that are given; what is not given has its default.
    pub fn read(entry: &Entry, given: &mut Given) -> Result<Self> {
        let both = given.has("ratio") && given.has("margin");
        ensure!(!both, "{} has `margin`, or `ratio` for margin/beta, and not both", entry.name);
        let mut map = Map::from_iter([("name".to_owned(), Value::from(entry.name))]);
        for key in entry.keys {
            let default = || key.default.map(|text| key.read(entry.name, text)).transpose();
            let value = given.take(key.name).map_or_else(default, |value| Ok(Some(value)))?;
            map.extend(value.map(|value| (key.name.to_owned(), value)));
        }
        if let Some(ratio) = map.remove("ratio") {
            let product = map["beta"].as_f64().zip(ratio.as_f64()).map(|(beta, ratio)| Value::from(beta * ratio));
            map.entry("margin").or_insert(product.unwrap_or_default());
        }
        serde_json::from_value(Value::Object(map)).map_err(|error| anyhow!("{}: {error}", entry.name))
    }

    /// The tag `name` and the numbers and words under their keys.
    pub fn values(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            other => unreachable!("a tagged loss is an object, got {other:?}"),
        }
    }

    pub fn build(self, around: &Around, moved: Moved) -> Result<Objective> {
        Ok(match self {
            Self::Dpo(loss) => around.of_margin(loss),
            Self::RobustDpo(loss) => around.of_margin(loss),
            Self::Ipo(loss) => around.of_margin(loss),
            Self::Hinge(loss) => around.of_margin(loss),
            Self::Exo(loss) => around.of_margin(loss),
            Self::DiscoPop { beta, tau } => around.of_margin(DiscoPop::new(beta.get())?.with_temperature(tau.get())?),
            Self::DDpo(loss) => pair(loss),
            Self::Matching { beta, target: Target::Rewards } => pair(ProbabilityMatching::to_rewards(beta.get())?),
            Self::Matching { beta, target: Target::SoftLabels } => {
                pair(ProbabilityMatching::to_soft_labels(beta.get())?)
            }
            Self::EDpo { beta, minimum } => {
                let minimum = match minimum {
                    Smallest::Batch => Minimum::Batch,
                    Smallest::Pair => Minimum::Pair,
                    Smallest::Hull => Minimum::Hull,
                    Smallest::Dataset => Minimum::Dataset { member: moved.member },
                };
                pair(PessimisticDistillation::new(beta.get())?.with_minimum(minimum))
            }
            Self::UncertaintyPenalised(loss) => pair(loss),
            Self::Drdo(loss) => pair(loss),
            Self::Spo { alpha, mass_power } => {
                let none = mass_power.get() == 0.0;
                let weight = if none { PairWeight::Equal } else { PairWeight::Mass { power: mass_power } };
                pair(Spo::new(alpha.get())?.with_pair_weight(weight))
            }
            Self::Nca(loss) => pair(loss),
            Self::Sppo { beta, win_rate: WinRate::Hard } => pair(Sppo::hard(beta.get())?),
            Self::Sppo { beta, win_rate: WinRate::SoftLabels } => pair(Sppo::to_soft_labels(beta.get())?),
            Self::Sppo { beta, win_rate: WinRate::Rewards } => pair(to_win_rates(Sppo::to_rewards(beta.get())?)),
            Self::Bco { beta, shift } => {
                let shift = match shift {
                    NumberOr::Number(shift) => shift,
                    NumberOr::Word(Running::Running) => moved.shift,
                };
                pair(BcoPair::new(beta.get())?.with_shift(shift)?)
            }
            Self::ApoZero(loss) => pair(loss),
            Self::ApoDown(loss) => pair(loss),
            Self::DpoPositive(loss) => pair(loss),
            Self::Aot(loss) => pair(loss),
            Self::AotUnpaired(loss) => pair(loss),
            Self::CpoPreference(loss) => pair(loss),
            Self::SimPo(loss) => pair(loss),
            Self::AlphaPo(loss) => pair(loss),
            Self::OddsRatio => pair(OddsRatio),
            Self::Sft(loss) => pair(loss),
            Self::ForwardKl { estimator } => pair(estimator),
            Self::ReverseKl { estimator } => pair(estimator),
            Self::Kto { beta, desirable_weight, undesirable_weight, baseline } => {
                let kto = Kto::new(beta.get())?.with_weights(desirable_weight.get(), undesirable_weight.get())?;
                Objective::Unpaired(match baseline {
                    NumberOr::Word(Mismatched::Mismatched) => Box::new(kto),
                    NumberOr::Number(baseline) => Box::new(AtBaseline { kto, baseline: KlBaseline::new(baseline)? }),
                })
            }
            Self::BcoUnpaired(loss) => Objective::Unpaired(Box::new(loss)),
            Self::Gpo(loss) => Objective::SelfPlay(loss),
        })
    }

    /// What it reads, of log-probabilities that are not transformed.
    pub fn needs(&self) -> Needs {
        let (free, against) = (Needs::default(), Needs { reference: true, ..Needs::default() });
        match self {
            Self::DDpo(_) | Self::Matching { target: Target::Rewards, .. } => {
                Needs { rewards: Rewards::One, ..against }
            }
            Self::Sppo { win_rate: WinRate::Rewards, .. } => Needs { rewards: Rewards::One, ..against },
            Self::EDpo { .. } | Self::UncertaintyPenalised(_) => Needs { rewards: Rewards::Family, ..against },
            Self::Drdo(_) => Needs { rewards: Rewards::One, student_scores: true, ..free },
            Self::ForwardKl { estimator: ForwardKl::ReferenceSamples | ForwardKl::ReferenceSamplesK3 } => {
                Needs { reference_samples: true, ..against }
            }
            Self::ReverseKl { .. } => Needs { policy_samples: true, ..against },
            Self::Kto { baseline: NumberOr::Word(Mismatched::Mismatched), .. } => Needs { mismatched: true, ..against },
            Self::Gpo(_) => Needs { rewards: Rewards::One, policy_samples: true, ..free },
            Self::Spo { .. }
            | Self::CpoPreference(_)
            | Self::SimPo(_)
            | Self::AlphaPo(_)
            | Self::OddsRatio
            | Self::Sft(_) => free,
            Self::Dpo(_)
            | Self::RobustDpo(_)
            | Self::Ipo(_)
            | Self::Hinge(_)
            | Self::Exo(_)
            | Self::DiscoPop { .. }
            | Self::Matching { .. }
            | Self::Nca(_)
            | Self::Sppo { .. }
            | Self::Bco { .. }
            | Self::ApoZero(_)
            | Self::ApoDown(_)
            | Self::DpoPositive(_)
            | Self::Aot(_)
            | Self::AotUnpaired(_)
            | Self::ForwardKl { .. }
            | Self::Kto { .. }
            | Self::BcoUnpaired(_) => against,
        }
    }

    pub fn moving(&self) -> Option<Moving> {
        match self {
            Self::EDpo { minimum: Smallest::Dataset, .. } => Some(Moving::DatasetMinimum),
            Self::Bco { shift: NumberOr::Word(Running::Running), .. } => Some(Moving::RewardShift),
            _ => None,
        }
    }

    /// Whether it divides by the responses' lengths, and so refuses means.
    pub fn needs_sums(&self) -> bool {
        match self {
            Self::SimPo(_) | Self::AlphaPo(_) | Self::OddsRatio => true,
            Self::Sft(loss) => *loss != Sft::new().with_average(Average::None),
            Self::Drdo(_) => self.values()["likelihood"] == "token_mean",
            _ => false,
        }
    }
}

/// KTO at a baseline of its own, whatever the batch's.
#[derive(Debug)]
struct AtBaseline {
    kto: Kto,
    baseline: KlBaseline,
}

impl UnpairedLoss for AtBaseline {
    fn per_response(&self, batch: &UnpairedBatch) -> prefopt::Result<Tensor> {
        let log_ratio = batch.log_ratio();
        let (zeros, desirable) = (log_ratio.zeros_like(), batch.desirable().shallow_clone());
        self.kto.per_response(&UnpairedBatch::new(log_ratio, zeros, desirable)?.with_baseline(self.baseline.get())?)
    }
}

/// SPPO on scores that are win rates: those of most reward models are not, and would be taken for huge ones.
fn to_win_rates(sppo: Sppo) -> impl PreferenceLoss {
    from_fn(move |batch: &PreferenceBatch| {
        let scores = batch.require_rewards("sppo")?;
        within("chosen_scores", scores.chosen())?;
        within("rejected_scores", scores.rejected())?;
        sppo.per_pair(batch)
    })
}

fn within(tensor: &'static str, scores: &Tensor) -> prefopt::Result<()> {
    let scores: Vec<f64> = Vec::try_from(scores.flatten(0, -1).to_kind(Kind::Double))?;
    match scores.iter().position(|score| !(0.0..=1.0).contains(score)) {
        None => Ok(()),
        Some(index) => Err(Error::Element {
            tensor,
            index: index as i64,
            domain: "in [0, 1]: sppo with win_rate=rewards takes scores for win rates",
            value: scores[index],
        }),
    }
}
