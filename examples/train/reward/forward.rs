//! Scores of a batch of pairs, and what the data say of the pairs besides.

use anyhow::{Result, anyhow};
use prefopt::{
    data::{Column, DataError, gather},
    lm::RewardModel,
    reward::RewardBatch,
};
use tch::Tensor;

use super::Resample;
use crate::{
    pairs::Split,
    policy::numbered::{self, Numbered, wide},
};

/// Refuses a `margin` of some pairs alone, and says that those of all pairs are read.
pub(super) fn check_margins(pairs: &Numbered) -> Result<()> {
    let parts = pairs.parts();
    if !parts.iter().any(|(_, pairs)| pairs.has_some(Column::Margin)) {
        return Ok(());
    }
    for (part, pairs) in parts {
        pairs.column(Column::Margin).map_err(|error| match error {
            DataError::MissingColumn { pair, .. } => anyhow!(
                "pair {pair} of the {part} pairs has no `margin`, and other pairs have one: give it to all pairs or to none"
            ),
            error => error.into(),
        })?;
    }
    eprintln!("the pairs' `margin` is read: what the chosen response is to score above the other one");
    Ok(())
}

/// From numbers of pairs to their scores.
pub(super) struct Forward<'a> {
    model: &'a RewardModel,
    pairs: Numbered<'a>,
    /// Of all pairs by number, those that are held out behind those to train on.
    labels: Vec<f64>,
    /// By which a chosen response is to win, units of reward, where the data say it.
    margins: Option<Vec<f64>>,
    /// What they count for, for each head, with a mean of 1 over the pairs to train on and over those held out; none
    /// where all count alike.
    weights: Vec<Vec<f64>>,
}

impl<'a> Forward<'a> {
    pub(super) fn new(model: &'a RewardModel, split: &'a Split, heads: &[Resample]) -> Self {
        let pairs = Numbered::new(split);
        let (own, is_drawn) = (pairs.weights(), heads.iter().any(|head| head.pairs.is_some()));
        let members = if own.is_some() || is_drawn { model.members() as usize } else { 0 };
        let weights = (0..members).map(|member| {
            let mut weights = own.clone().unwrap_or_else(|| vec![1.0; pairs.len()]);
            let (train, held_out) = weights.split_at_mut(split.train.len());
            if let Some(head) = heads.get(member) {
                let times = head.weights(train.len());
                train.iter_mut().zip(times).for_each(|(weight, times)| *weight *= times);
            }
            to_mean_one(train);
            to_mean_one(held_out);
            weights
        });
        let weights = weights.collect();
        let margins = pairs.parts().into_iter().map(|(_, part)| part.column(Column::Margin).ok());
        // Of all pairs or of none: see `check_margins`.
        let margins = margins.collect::<Option<Vec<_>>>().map(|parts| parts.concat());
        Self { model, labels: pairs.labels(), margins, weights, pairs }
    }

    pub(super) fn batch(&self, numbers: &[usize]) -> prefopt::Result<RewardBatch> {
        let prompts = self.pairs.prompts(numbers)?;
        let mut responses = Vec::with_capacity(2 * numbers.len());
        for &number in numbers {
            let pair = self.pairs.pair(number)?;
            responses.extend([pair.chosen, pair.rejected].map(wide));
        }
        let row = numbered::row(&prompts, &responses, 2, self.model.device())?;
        let scores = self.model.scores(&row)?;
        let options = (scores.chosen().kind(), scores.chosen().device());
        let mut batch = RewardBatch::new(scores).with_soft_labels(gather(&self.labels, numbers, options)?)?;
        if let Some(margins) = &self.margins {
            batch = batch.with_margin(gather(margins, numbers, options)?)?;
        }
        if self.weights.is_empty() {
            return Ok(batch);
        }
        let weights = self.weights.iter().map(|weights| Ok::<_, prefopt::Error>(gather(weights, numbers, options)?));
        let weights = weights.collect::<prefopt::Result<Vec<_>>>()?;
        batch.with_member_weights(Tensor::f_stack(&weights, 0)?)
    }
}

fn to_mean_one(weights: &mut [f64]) {
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    weights.iter_mut().for_each(|weight| *weight /= mean);
}
