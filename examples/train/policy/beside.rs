//! What stands beside the policy's log-probabilities, for all pairs at once and on the policy's device.

use std::path::Path;

use anyhow::{Result, bail};
use prefopt::{
    RewardScores,
    data::{Cache, CacheKey, CacheKind, Column, DataError, Digest, PairDataset},
};
use tch::{Device, Kind, Tensor};

use super::{
    numbered::Numbered,
    reference::Frozen,
    samples::{Draw, ReferenceSamples},
};
use crate::{
    columns::{self, BATCH_TOKENS, Teachers},
    flags::PolicyFlags,
    loss::{Needs, Rewards, Transform},
    models, score,
};

/// Each of all pairs, in the order of their numbers.
pub struct Beside {
    /// log π_ref(y_w) and log π_ref(y_l), `[pairs]`, nats; as LD-DPO sums them where the loss does.
    pub reference: Option<[Tensor; 2]>,
    /// `[members, pairs]`.
    pub rewards: Option<RewardScores>,
    /// Probability that the chosen response is the better one, `[pairs]`.
    pub labels: Tensor,
    /// `[pairs]`.
    pub weights: Option<Tensor>,
    pub samples: Option<ReferenceSamples>,
}

/// What the columns are made from.
pub struct Source<'a> {
    pub flags: &'a PolicyFlags,
    pub needs: Needs,
    pub place: (Device, Kind),
    pub pairs: &'a Numbered<'a>,
    /// Of the caches.
    pub folder: &'a Path,
}

impl Source<'_> {
    pub fn columns(&self, frozen: &mut Frozen, draw: &Draw) -> Result<Beside> {
        let (needs, parts) = (self.needs, self.pairs.parts());
        // What is refused comes before what takes long.
        let weights = self.weights()?;
        let given = self.given_rewards()?;
        let members = models::family(&self.flags.teachers.rewards)?;
        for folder in &members {
            score::same_tokens(&self.flags.model.model, folder)?;
        }
        // A transform that takes the reference away leaves it to samples alone.
        let against = needs.reference && self.flags.loss.transform() != Transform::ReferenceFree;
        let digest = if against || needs.reference_samples { Some(frozen.digest()?) } else { None };
        let mut teachers = Vec::with_capacity(parts.len());
        for (part, pairs) in &parts {
            let reference = match digest.filter(|_| against) {
                Some(model) => Some(self.reference(frozen, model, part, pairs)?),
                None => None,
            };
            let scores = if members.is_empty() {
                None
            } else {
                let file = columns::file(self.folder, "scores", part);
                Some(columns::score_cache(&file, &members, pairs, self.place, BATCH_TOKENS)?)
            };
            teachers.push(Teachers { reference, scores });
        }
        let caches = |of: fn(&Teachers) -> Option<&Cache>| teachers.iter().filter_map(of).collect::<Vec<_>>();
        let scores = caches(|teachers| teachers.scores.as_ref());
        let rewards = if scores.is_empty() { given } else { Some(columns::rewards(&scores, &self.flags.teachers)?) };
        let samples = match digest.filter(|_| needs.reference_samples) {
            Some(digest) => Some(ReferenceSamples::of(self.pairs, frozen, digest, self.folder, draw, self.place.0)?),
            None => None,
        };
        Ok(Beside {
            reference: self.against(&caches(|teachers| teachers.reference.as_ref()))?,
            rewards: rewards.map(|rewards| self.as_the_loss_wants(rewards)).transpose()?,
            labels: self.vector(&parts.iter().flat_map(|(_, pairs)| pairs.labels()).copied().collect::<Vec<_>>()),
            weights: weights.map(|weights| self.vector(&weights)),
            samples,
        })
    }

    fn vector(&self, numbers: &[f64]) -> Tensor {
        Tensor::from_slice(numbers).to_kind(Kind::Float).to_device(self.place.0)
    }

    fn reference(&self, frozen: &mut Frozen, model: Digest, part: &str, pairs: &PairDataset) -> Result<Cache> {
        let data = pairs.digest();
        match self.needs.tail_weight {
            Some(_) => {
                let kind = CacheKind::Other("reference log-probabilities, whole and of the shared length");
                let (file, key) =
                    (columns::file(self.folder, "reference-shared", part), CacheKey { kind, data, model });
                columns::kept(&file, &key, || columns::shared_logps(frozen.model()?, pairs, BATCH_TOKENS))
            }
            None => {
                let kind = CacheKind::ReferenceLogps;
                let (file, key) = (columns::file(self.folder, "reference", part), CacheKey { kind, data, model });
                columns::kept(&file, &key, || columns::logps(frozen.model()?, pairs, BATCH_TOKENS))
            }
        }
    }

    /// The reference's log-probabilities as the loss sums them.
    fn against(&self, caches: &[&Cache]) -> Result<Option<[Tensor; 2]>> {
        if caches.is_empty() {
            return Ok(None);
        }
        let column = |name: &str| columns::column(caches, name, (Kind::Double, self.place.0));
        let side = |whole: &str, shared: &str| -> Result<Tensor> {
            let sums = match self.needs.tail_weight {
                // Shared tokens in full, the tail by its weight.
                Some(weight) => column(shared)? * (1.0 - weight) + column(whole)? * weight,
                None => column(whole)?,
            };
            Ok(sums.to_kind(Kind::Float))
        };
        Ok(Some([side("chosen", "chosen_shared")?, side("rejected", "rejected_shared")?]))
    }

    /// The scores that the data bring, where the loss reads scores and no reward model is given.
    fn given_rewards(&self) -> Result<Option<RewardScores>> {
        if self.needs.rewards == Rewards::None || !self.flags.teachers.rewards.is_empty() {
            return Ok(None);
        }
        let side = |column: Column| -> Result<Tensor> {
            let mut numbers = Vec::with_capacity(self.pairs.len());
            for (part, pairs) in self.pairs.parts() {
                match pairs.column(column) {
                    Ok(own) => numbers.extend_from_slice(own),
                    Err(DataError::MissingColumn { pair, .. }) => bail!(
                        "--loss {} reads rewards: give reward models with --rewards, or data of which every pair has `score_chosen` and `score_rejected` (pair {pair} of the {part} pairs has no `{}`)",
                        self.flags.loss,
                        column.name()
                    ),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(Tensor::from_slice(&numbers))
        };
        let scores = RewardScores::single(&side(Column::ScoreChosen)?, &side(Column::ScoreRejected)?)?;
        Ok(Some(columns::scaled(scores, &self.flags.teachers)?))
    }

    /// One member, the mean of all, where the loss takes one reward model.
    fn as_the_loss_wants(&self, rewards: RewardScores) -> Result<RewardScores> {
        let members = rewards.members();
        let rewards = if self.needs.rewards == Rewards::One && members > 1 {
            eprintln!("--loss {} reads one reward model: the mean of the {members} is taken", self.flags.loss);
            rewards.averaged()
        } else {
            rewards
        };
        let placed = |scores: &Tensor| scores.to_kind(Kind::Float).to_device(self.place.0);
        Ok(RewardScores::new(placed(rewards.chosen()), placed(rewards.rejected()))?)
    }

    /// The pairs' weights, where the data have them.
    fn weights(&self) -> Result<Option<Vec<f64>>> {
        let (mut numbers, mut some, mut lacking) = (Vec::with_capacity(self.pairs.len()), false, None);
        for (part, pairs) in self.pairs.parts() {
            match pairs.column(Column::Weight) {
                Ok(own) => {
                    numbers.extend_from_slice(own);
                    some = true;
                }
                Err(DataError::MissingColumn { pair, .. }) => {
                    // It is the first without one.
                    some |= pair > 0;
                    lacking = lacking.or(Some((part, pair)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        match lacking {
            None => Ok(Some(numbers)),
            Some(_) if !some => Ok(None),
            Some((part, pair)) => bail!("some pairs have a `weight`, but pair {pair} of the {part} pairs has none"),
        }
    }
}
