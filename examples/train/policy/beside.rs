//! What stands beside the policy's log-probabilities, for all pairs at once and on the policy's device.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use prefopt::{
    RewardScores,
    data::{Cache, Digest, PairDataset},
};
use tch::{Device, Kind, Tensor};

use super::{
    numbered::Numbered,
    reference::Frozen,
    samples::{Draw, ReferenceSamples},
};
use crate::{
    columns::{self, BATCH_TOKENS, Kept, Teachers},
    flags::PolicyFlags,
    loss::{Needs, Rewards, Transform},
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
    /// Folders of the reward models.
    pub members: &'a [PathBuf],
    /// Of the caches.
    pub folder: &'a Path,
}

impl Source<'_> {
    pub fn columns(&self, frozen: &mut Frozen, draw: &Draw) -> Result<Beside> {
        let (needs, parts, members) = (self.needs, self.pairs.parts(), self.members);
        // What is refused comes before what takes long.
        let given = if needs.rewards != Rewards::None && members.is_empty() {
            Some(self.rewards(columns::given_rewards(&self.flags.loss, &parts)?)?)
        } else {
            None
        };
        ensure!(
            given.is_some() || !members.is_empty() || !columns::are_scaled(&self.flags.teachers),
            "--standardise and --reward-scale change scores, and --loss {} reads none: give reward models with --rewards, or leave them out",
            self.flags.loss
        );
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
                Some(columns::score_cache(&file, members, pairs, self.place, BATCH_TOKENS)?)
            };
            teachers.push(Teachers { reference, scores });
        }
        let caches = |of: fn(&Teachers) -> Option<&Cache>| teachers.iter().filter_map(of).collect::<Vec<_>>();
        let scores = caches(|teachers| teachers.scores.as_ref());
        let rewards = if scores.is_empty() { given } else { Some(self.rewards(columns::rewards(&scores)?)?) };
        let samples = match digest.filter(|_| needs.reference_samples) {
            Some(digest) => Some(ReferenceSamples::of(self.pairs, frozen, digest, self.folder, draw, self.place)?),
            None => None,
        };
        Ok(Beside {
            reference: self.against(&caches(|teachers| teachers.reference.as_ref()))?,
            rewards,
            labels: self.vector(&self.pairs.labels()),
            weights: self.pairs.weights().map(|weights| self.vector(&weights)),
            samples,
        })
    }

    fn vector(&self, numbers: &[f64]) -> Tensor {
        Tensor::from_slice(numbers).to_kind(Kind::Float).to_device(self.place.0)
    }

    fn reference(&self, frozen: &mut Frozen, model: Digest, part: &str, pairs: &PairDataset) -> Result<Cache> {
        let shared = self.needs.tail_weight.is_some();
        let (what, kept) = if shared { ("reference-shared", Kept::Shared) } else { ("reference", Kept::Reference) };
        let pass = if shared { columns::shared_logps } else { columns::logps };
        let (file, key) = (columns::file(self.folder, what, part), kept.key(self.place.1, pairs, model));
        columns::kept(&file, &key, || pass(frozen.model()?, pairs, BATCH_TOKENS))
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

    /// As the flags and the loss want them, on the policy's device.
    fn rewards(&self, scores: RewardScores) -> Result<RewardScores> {
        let scores = columns::scaled(scores, &self.flags.teachers)?;
        let scores = columns::as_the_loss_wants(&self.flags.loss, scores)?;
        let placed = |scores: &Tensor| scores.to_kind(Kind::Float).to_device(self.place.0);
        Ok(RewardScores::new(placed(scores.chosen()), placed(scores.rejected()))?)
    }
}
