//! Losses by name: `NAME:KEY=VALUE,… + WEIGHT*NAME:…` as an objective of the library, and what it needs.

mod around;
mod catalogue;
mod keys;
mod listing;
mod named;
mod parse;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use anyhow::{Result, anyhow, bail, ensure};
use prefopt::{
    PreferenceLoss,
    loss::{BcoPair, Gpo, PessimisticDistillation, UnpairedLoss, WinRate},
};
use serde::{Serialize, Serializer};
use serde_json::Value;

use around::Around;
pub use listing::listing;
use named::{Moved, Named};

/// β of the reward metrics where the loss has none.
const BETA: f64 = 0.1;

/// A loss or a sum of losses, with every number. Its text has every key that the loss has.
#[derive(Debug, Clone, PartialEq)]
pub struct LossSpec {
    /// The first has weight 1.
    terms: Vec<Term>,
    transform: Transform,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Term {
    weight: f64,
    named: Named,
    around: Around,
}

/// What is trained.
#[derive(Debug)]
pub enum Objective {
    Paired(Box<dyn PreferenceLoss>),
    Unpaired(Box<dyn UnpairedLoss>),
    SelfPlay(Gpo),
}

/// Reward models that a loss reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rewards {
    #[default]
    None,
    One,
    Family,
}

/// What a loss reads besides the policy's log-probabilities of the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Needs {
    pub rewards: Rewards,
    /// The reference's log-probabilities, of the pairs or of samples.
    pub reference: bool,
    pub reference_samples: bool,
    pub policy_samples: bool,
    /// A reward head of the policy's own.
    pub student_scores: bool,
    /// WPO's weights.
    pub policy_weights: bool,
    /// Responses to other prompts, for KTO's baseline.
    pub mismatched: bool,
    /// LD-DPO's α.
    pub tail_weight: Option<f64>,
}

/// What becomes of the log-probabilities before the loss.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Transform {
    #[default]
    None,
    PerToken,
    ReferenceFree,
    /// With what a token beyond the shorter response's length counts.
    LengthDesensitised(f64),
}

/// A number of the loss that follows the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moving {
    /// The member of a family that is best over the data set.
    DatasetMinimum,
    /// BCO's δ, a running mean of rewards.
    RewardShift,
}

impl Term {
    fn name(&self) -> String {
        match self.named.values().remove("name") {
            Some(Value::String(name)) => name,
            _ => String::new(),
        }
    }

    fn objective(&self, moved: Moved) -> Result<Objective> {
        let built = self.named.build(&self.around, moved).map_err(|error| anyhow!("{}: {error}", self.name()))?;
        Ok(match built {
            Objective::Paired(loss) => Objective::Paired(self.around.weights(loss)?),
            alone => alone,
        })
    }

    fn paired(&self, moved: Moved) -> Result<Box<dyn PreferenceLoss>> {
        match self.objective(moved)? {
            Objective::Paired(loss) => Ok(loss),
            Objective::Unpaired(_) => {
                bail!("{} is a loss of single responses: it stands alone, in no sum", self.name())
            }
            Objective::SelfPlay(_) => {
                bail!("{} is a loss of a prompt's samples: it stands alone, in no sum", self.name())
            }
        }
    }

    fn needs(&self) -> Needs {
        let (named, around) = (self.named.needs(), self.around.needs());
        // One reward model and a family do not go together: `LossSpec::check`.
        let rewards = if around.rewards == Rewards::None { named.rewards } else { around.rewards };
        Needs { rewards, policy_weights: around.policy_weights, ..named }
    }

    fn needs_sums(&self) -> bool {
        self.named.needs_sums() || self.around.needs_sums()
    }
}

impl LossSpec {
    pub fn needs(&self) -> Needs {
        let mut all = Needs::default();
        for term in &self.terms {
            let needs = term.needs();
            let sampled = needs.reference_samples || needs.policy_samples;
            all.rewards = if all.rewards == Rewards::None { needs.rewards } else { all.rewards };
            // Without a reference for the pairs, samples still have theirs.
            all.reference |= needs.reference && (sampled || self.transform != Transform::ReferenceFree);
            all.reference_samples |= needs.reference_samples;
            all.policy_samples |= needs.policy_samples;
            all.student_scores |= needs.student_scores;
            all.policy_weights |= needs.policy_weights;
            all.mismatched |= needs.mismatched;
        }
        if let Transform::LengthDesensitised(weight) = self.transform {
            all.tail_weight = Some(weight);
        }
        all
    }

    /// β of `rewards/…` among the metrics: the first loss's own, .1 where it has none. A τ is no β.
    pub fn beta(&self) -> f64 {
        self.terms[0].named.values().get("beta").and_then(Value::as_f64).unwrap_or(BETA)
    }

    pub fn transform(&self) -> Transform {
        self.transform
    }

    pub fn moving(&self) -> Option<Moving> {
        self.terms.iter().find_map(|term| term.named.moving())
    }

    /// Whether it couples the sorted pairs of a step, and so takes neither weights of pairs nor parts of a step.
    pub fn ranks(&self) -> bool {
        self.terms.iter().any(|term| matches!(term.named, Named::Aot(_) | Named::AotUnpaired(_)))
    }

    /// Whether it takes scores for win rates.
    pub fn reads_win_rates(&self) -> bool {
        self.terms.iter().any(|term| matches!(term.named, Named::Sppo { win_rate: WinRate::Rewards, .. }))
    }

    /// The objective; what moves starts at member 0, at shift 0.
    pub fn objective(&self) -> Result<Objective> {
        match self.terms.as_slice() {
            [alone] => alone.objective(Moved::default()),
            _ => Ok(Objective::Paired(self.paired(Moved::default())?)),
        }
    }

    /// The term whose minimum is over the data set, for its tracker.
    pub fn pessimistic(&self) -> Result<Option<PessimisticDistillation>> {
        let found = self.terms.iter().find_map(|term| match term.named {
            Named::EDpo { beta, .. } if term.named.moving().is_some() => Some(beta),
            _ => None,
        });
        Ok(found.map(|beta| PessimisticDistillation::new(beta.get())).transpose()?)
    }

    /// The objective at this member of the family.
    pub fn with_member(&self, member: i64) -> Result<Box<dyn PreferenceLoss>> {
        self.paired(Moved { member, ..Moved::default() })
    }

    /// The term whose δ is a running mean, for its tracker.
    pub fn bco(&self) -> Result<Option<BcoPair>> {
        let found = self.terms.iter().find_map(|term| match term.named {
            Named::Bco { beta, .. } if term.named.moving().is_some() => Some(beta),
            _ => None,
        });
        Ok(found.map(|beta| BcoPair::new(beta.get())).transpose()?)
    }

    /// The objective at this δ.
    pub fn with_shift(&self, shift: f64) -> Result<Box<dyn PreferenceLoss>> {
        self.paired(Moved { shift, ..Moved::default() })
    }

    fn paired(&self, moved: Moved) -> Result<Box<dyn PreferenceLoss>> {
        let mut sum = self.terms[0].paired(moved)?;
        for term in &self.terms[1..] {
            sum = Box::new(sum.plus(term.weight, term.paired(moved)?));
        }
        Ok(sum)
    }

    /// Refuses what can be read and not trained.
    fn check(&self) -> Result<()> {
        self.objective()?;
        let reads = |wanted: Rewards| {
            let of_term = |term: &&Term| term.named.needs().rewards == wanted || term.around.needs().rewards == wanted;
            self.terms.iter().find(of_term).map(Term::name)
        };
        if let (Some(one), Some(family)) = (reads(Rewards::One), reads(Rewards::Family)) {
            let family = if one == family { "its weight".to_owned() } else { family };
            bail!("{one} reads one reward model and {family} a family of them: they do not go together");
        }
        let moving = self.terms.iter().filter(|term| term.named.moving().is_some()).count();
        ensure!(
            moving <= 1,
            "at most one of minimum=dataset and shift=running can follow the run, and there are {moving}"
        );
        let transform = match self.transform {
            Transform::None | Transform::ReferenceFree => return Ok(()),
            Transform::PerToken => "per_token",
            Transform::LengthDesensitised(_) => "length_desensitised",
        };
        match self.terms.iter().find(|term| term.needs_sums()) {
            None => Ok(()),
            Some(term) => {
                bail!("{} divides by the responses' lengths: leave `transform={transform}` out", term.name())
            }
        }
    }
}

impl FromStr for LossSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let spec = parse::spec(text)?;
        spec.check()?;
        Ok(spec)
    }
}

impl fmt::Display for LossSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            if index > 0 {
                write!(f, " + {}*", term.weight)?;
            }
            let name = term.name();
            let values = term.named.values();
            let own = catalogue::entry(&name).into_iter().flat_map(|entry| entry.keys);
            let mut pairs: Vec<(&str, String)> =
                own.filter_map(|key| Some((key.name, shown(values.get(key.name)?)))).collect();
            pairs.extend(term.around.written());
            if index == 0 {
                pairs.extend(self.transform.written());
            }
            write!(f, "{name}")?;
            for (place, (key, value)) in pairs.iter().enumerate() {
                write!(f, "{}{key}={value}", if place == 0 { ':' } else { ',' })?;
            }
        }
        Ok(())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        number => number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string()),
    }
}

impl Serialize for LossSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
