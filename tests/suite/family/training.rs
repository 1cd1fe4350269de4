//! Families trained on member weights and soft labels.

use std::ops::Range;

use prefopt::{
    Result, RewardScores,
    reward::{BradleyTerry, RewardBatch},
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, RewardTrainer, Trainer},
};

use super::case::{Built, Case, PAIRS};
use crate::{
    all_close, close, numbers,
    optimiser::{legible, moved},
};

const WHOLE: Range<i64> = 0..PAIRS as i64;
const PARTS: [Range<i64>; 3] = [0..3, 3..4, 4..PAIRS as i64];

/// A family whose scores of all pairs are its parameters.
fn scorer() -> Result<([Tensor; 2], impl Trainer<Batch = Range<i64>>)> {
    let Built { batch, scores, .. } = Case::partly_drawn(10).build()?;
    let descent = legible(&scores)?.with_max_norm(None)?;
    let forward = move |pairs: &Range<i64>| {
        let at = |tensor: &Tensor| tensor.narrow(tensor.dim() as i64 - 1, pairs.start, pairs.end - pairs.start);
        let column = |column: Option<&Tensor>| at(column.expect("has every column"));
        RewardBatch::new(RewardScores::new(at(batch.scores().chosen()), at(batch.scores().rejected()))?)
            .with_margin(column(batch.margin()))?
            .with_soft_labels(column(batch.soft_labels()))?
            .with_member_weights(column(batch.member_weights()))
    };
    Ok((scores, RewardTrainer::new(BradleyTerry::new(0.3)?, forward, descent)))
}

/// Also over a part that moves nothing, whose loss is 0.
#[test]
fn a_step_over_parts_is_the_step_over_the_whole() -> Result<()> {
    let ((whole, mut over_the_whole), (parts, mut over_parts)) = (scorer()?, scorer()?);
    let (one, many) = (over_the_whole.step(&WHOLE)?, over_parts.step_over(&PARTS)?);
    let (case, shown) =
        (Case::partly_drawn(10), |scores: &[Tensor; 2]| scores.iter().flat_map(numbers).collect::<Vec<_>>());
    let start = case.scores.iter().flatten().flatten();
    let slopes = case.central_differences(0.3);
    let expected: Vec<f64> = start.zip(&slopes).map(|(score, &slope)| score + moved(slope)).collect();
    all_close(&shown(&whole), &expected, 1e-7, "the whole");
    all_close(&shown(&parts), &shown(&whole), 1e-13, "parts");
    close(one.loss, case.mean(0.3), 1e-13, 0.0, "loss of the whole");
    close(many.loss, one.loss, 1e-13, 0.0, "loss of the parts");
    close(many.grad_norm, one.grad_norm, 1e-13, 0.0, "norm");
    assert_eq!(many.metrics.get("accuracy"), one.metrics.get("accuracy"));
    let [after_the_whole, after_parts] = [over_the_whole.evaluate(&WHOLE)?, over_parts.evaluate(&WHOLE)?]
        .map(|metrics| metrics.get("eval_loss").expect("measured"));
    close(after_parts, after_the_whole, 1e-13, 0.0, "loss afterwards");
    Ok(())
}

/// Two members, each of one margin for every pair, and two pairs, of label .8 and .3: each learns from one, or from both,
/// the second three times from the first.
#[test]
fn each_member_learns_from_its_own_pairs() -> Result<()> {
    let labels = [0.8, 0.3];
    for (weights, shares) in [([[1.0, 0.0], [0.0, 1.0]], labels), ([[1.0, 1.0], [3.0, 1.0]], [0.55, 0.675])] {
        let free = Tensor::zeros([2, 1], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let leaf = free.shallow_clone();
        let forward = move |(): &()| {
            let none = Tensor::zeros([2, 2], (Kind::Double, Device::Cpu));
            RewardBatch::new(RewardScores::new(&none + &free, none)?)
                .with_soft_labels(Tensor::from_slice(&labels))?
                .with_member_weights(Tensor::from_slice2(&weights))
        };
        let descent = Descent::new(AdamW::new(vec![leaf.shallow_clone()], AdamWConfig::default())?, 0.05)?;
        let mut trainer = RewardTrainer::new(BradleyTerry::new(0.0)?, forward, descent);
        trainer.fit(std::iter::repeat_n((), 400), &mut [])?;
        all_close(&numbers(&leaf), &shares.map(|p: f64| (p / (1.0 - p)).ln()), 1e-6, "margins");
    }
    Ok(())
}
