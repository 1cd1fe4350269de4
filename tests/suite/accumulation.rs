//! A step over the parts of a batch is the step over the whole of it.

use std::{cell::RefCell, num::NonZeroUsize, ops::Range, rc::Rc};

use prefopt::{
    Error, PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, ResponseTable, Result, RewardScores,
    diagnostics::Metrics,
    loss::{Dpo, ForwardKl, Minimum, PessimisticDistillation, RewardDistillation, UncertaintyWeighted},
    reward::{BradleyTerry, RewardBatch},
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, Flow, PolicyTrainer, RewardTrainer, StepReport, Trainer},
};

use crate::{
    all_close, close,
    columns::{Built, Columns},
    number, numbers,
    optimiser::{legible, moved, origin},
    oracle,
    table::{BETA, table},
};

const WHOLE: Range<i64> = 0..8;
const PARTS: [Range<i64>; 3] = [0..3, 3..4, 4..8];

fn built(members: usize, seed: u64) -> Result<Built> {
    Columns::random(WHOLE.end as usize, members, seed).build(Kind::Double, Device::Cpu)
}

/// Some of the pairs as a batch that leads back to the leaves of all. Pair i has responses of i + 1 and i + 2 tokens.
fn part(built: &Built, pairs: &Range<i64>) -> Result<PreferenceBatch> {
    let of = |tensor: &Tensor, axis: i64| tensor.narrow(axis, pairs.start, pairs.end - pairs.start);
    let (p, d) = (|i: usize| of(&built.policy[i], 0), |i: usize| of(&built.data[i].1, 0));
    let scores = |i: usize| of(&built.data[i].1, 1);
    let tokens = |more: i64| Tensor::arange_start(pairs.start + more, pairs.end + more, (Kind::Int64, Device::Cpu));
    PreferenceBatch::new(PairLogps::new(p(0), p(1), d(0), d(1))?)
        .with_rewards(RewardScores::new(scores(2), scores(3))?)?
        .with_soft_labels(d(4))?
        .with_weights(d(5))?
        .with_reference_samples(ResponseTable::new(p(2), d(6))?)?
        .with_all_responses(ResponseTable::new(p(3), d(7))?)?
        .with_lengths(ResponseLengths::new(tokens(1), tokens(2))?)?
        .with_student_scores(RewardScores::single(&p(4), &p(5))?)?
        .with_policy_samples(ResponseTable::new(p(6), d(8))?)?
        .with_gold(prefopt::logps::ResponseLogps { sums: p(1), lengths: tokens(3) })?
        .with_policy_weights(d(5))
}

/// A name, the size of the family that it takes, and a loss.
type Entry = (&'static str, usize, Box<dyn PreferenceLoss>);

/// The table, and what couples the pairs of a batch inside combinations.
fn losses() -> Result<Vec<Entry>> {
    let batch = PessimisticDistillation::new(BETA)?;
    let hull = batch.with_minimum(Minimum::Hull);
    let first_margin = |batch: &PreferenceBatch| batch.rewards().expect("has scores").margins().select(0, 0).abs();
    let combinations: [(&'static str, Box<dyn PreferenceLoss>); 6] = [
        ("minimum over the batch, anchored", Box::new(batch.plus(0.5, ForwardKl::Exact))),
        ("hull, anchored", Box::new(hull.plus(0.5, ForwardKl::ReferenceSamples))),
        ("dpo beside the hull", Box::new(Dpo::new(BETA)?.plus(0.5, hull))),
        ("weighted minimum over the batch", Box::new(batch.weighted_by(first_margin))),
        ("uncertainty-weighted minimum over the batch", Box::new(UncertaintyWeighted::new(batch, 1.5)?)),
        ("hull beside a weighted batch", Box::new(hull.plus(-0.25, batch.weighted_by(first_margin).plus(2.0, batch)))),
    ];
    let rows = table()?.into_iter().map(|row| (row.name, row.members, row.loss));
    Ok(rows.chain(combinations.map(|(name, loss)| (name, 3, loss))).collect())
}

#[test]
fn a_minimum_over_pairs_couples_them() -> Result<()> {
    for (name, _, loss) in losses()? {
        assert_eq!(loss.is_coupled(), name.contains("batch") || name.contains("hull"), "{name}");
    }
    Ok(())
}

#[test]
fn a_settled_loss_has_the_rows_of_the_whole() -> Result<()> {
    for ((name, members, loss), seed) in losses()?.iter().flat_map(|entry| (0..4).map(move |seed| (entry, seed))) {
        let built = built(*members, seed)?;
        let whole = part(&built, &WHOLE)?;
        let (settled, mut found) = (loss.settled(&whole)?, vec![]);
        for pairs in &PARTS {
            found.extend(numbers(&settled.per_pair(&part(&built, pairs)?)?));
        }
        all_close(&found, &numbers(&loss.per_pair(&whole)?), 1e-12, name);
    }
    Ok(())
}

/// The first four pairs suit one member and the last four the other, which is worse over all.
#[test]
fn parts_that_choose_for_themselves_choose_otherwise() -> Result<()> {
    let family = [[0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0], [3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0]];
    let columns = Columns::random(8, 2, 1).unweighted().at_reference().with_reward_margins(&family.map(Vec::from));
    let built = columns.build(Kind::Double, Device::Cpu)?;
    let (whole, last) = (part(&built, &WHOLE)?, part(&built, &PARTS[2])?);
    let batch = PessimisticDistillation::new(BETA)?;
    assert_eq!(numbers(&batch.per_pair(&last)?), [1.0; 4]);
    assert_eq!(numbers(&batch.settled(&whole)?.per_pair(&last)?), [4.0; 4]);
    // Residuals (1 − w)·r₀ + w·r₁ have the sum of squares 36w² + 4(2 − w)², smallest at w = 1/5.
    let hull = batch.with_minimum(Minimum::Hull);
    all_close(&numbers(&hull.per_pair(&last)?), &[1.0; 4], 1e-12, "hull of the part");
    all_close(&numbers(&hull.settled(&whole)?.per_pair(&last)?), &[1.8 * 1.8; 4], 1e-12, "hull of the whole");
    Ok(())
}

/// The same columns with the policy's numbers shifted by leaves that are 0.
fn shifted(built: Built) -> (Vec<Tensor>, Built) {
    let leaves: Vec<_> = built.policy.iter().map(|p| p.detach().zeros_like().set_requires_grad(true)).collect();
    let policy = built.policy.iter().zip(&leaves).map(|(p, leaf)| p.detach() + leaf).collect();
    (leaves, Built { policy, ..built })
}

#[test]
fn accumulated_parts_have_the_gradient_of_the_whole() -> Result<()> {
    for (name, members, loss) in losses()? {
        let (leaves, built) = shifted(built(members, 5)?);
        let whole = part(&built, &WHOLE)?;
        let (mean, settled) = (loss.mean(&whole)?, loss.settled(&whole)?);
        let slopes = Tensor::run_backward(&[&mean], &leaves, true, false);
        let slope = |(leaf, slope): (&Tensor, &Tensor)| {
            if slope.defined() { numbers(slope) } else { vec![0.0; leaf.numel()] }
        };
        let slopes: Vec<f64> = leaves.iter().zip(&slopes).flat_map(slope).collect();

        let mut descent = legible(&leaves)?.with_max_norm(None)?;
        for pairs in &PARTS {
            let batch = part(&built, pairs)?;
            descent.accumulate(&settled.mean(&batch)?, batch.total_weight())?;
        }
        let report = descent.finish()?;
        let found: Vec<f64> = leaves.iter().flat_map(numbers).collect();
        let expected: Vec<f64> = slopes.iter().copied().map(moved).collect();
        all_close(&found, &expected, 1e-12, name);
        close(report.loss, number(&mean), 1e-12, 1.0, format_args!("loss of {name}"));
        let norm = slopes.iter().map(|slope| slope * slope).sum::<f64>().sqrt();
        close(report.grad_norm, norm, 1e-12, 1.0, format_args!("norm of {name}"));
        assert_eq!(report.step, 1);
    }
    Ok(())
}

/// A small ε would make a sign of each gradient; the norm is one that clips.
fn descent(leaves: &[Tensor]) -> Result<Descent> {
    let leaves = leaves.iter().map(Tensor::shallow_clone).collect();
    let optimizer = AdamW::new(leaves, AdamWConfig::new((0.9, 0.99), 1e-2, 0.1)?)?;
    Descent::new(optimizer, 0.1)?.with_schedule(|step: u64| 1.0 / step as f64).with_max_norm(Some(0.1))
}

#[track_caller]
fn same(found: &StepReport, expected: &StepReport, what: &str) {
    assert_eq!((found.step, found.learning_rate), (expected.step, expected.learning_rate), "{what}");
    close(found.loss, expected.loss, 1e-12, 1.0, format_args!("loss of {what}"));
    close(found.grad_norm, expected.grad_norm, 1e-12, 1.0, format_args!("norm of {what}"));
    same_metrics(&found.metrics, &expected.metrics, what);
}

#[track_caller]
fn same_metrics(found: &Metrics, expected: &Metrics, what: &str) {
    let [found, expected] = [found, expected].map(|metrics| metrics.iter().unzip::<_, _, Vec<_>, Vec<_>>());
    assert_eq!(found.0, expected.0, "{what}");
    all_close(&found.1, &expected.1, 1e-12, what);
}

/// Three steps by the whole and three by its parts, from the same start.
#[track_caller]
fn same_steps<T: Trainer<Batch = Range<i64>>>(trainers: [(Vec<Tensor>, T); 2], what: &str) -> Result<()> {
    let [(by_whole, mut whole), (by_parts, mut parts)] = trainers;
    for _ in 0..3 {
        same(&parts.step_over(&PARTS)?, &whole.step(&WHOLE)?, what);
        for (found, expected) in by_parts.iter().zip(&by_whole) {
            all_close(&numbers(found), &numbers(expected), 1e-12, what);
        }
    }
    Ok(())
}

/// A policy of eight pairs whose log-probabilities are its parameters.
fn policy<L: PreferenceLoss>(loss: L, members: usize) -> Result<(Vec<Tensor>, impl Trainer<Batch = Range<i64>>)> {
    let built = built(members, 7)?;
    let leaves: Vec<_> = built.policy.iter().map(Tensor::shallow_clone).collect();
    let descent = descent(&leaves)?;
    Ok((leaves, PolicyTrainer::new(loss, move |pairs: &Range<i64>| part(&built, pairs), descent, BETA)?))
}

#[test]
fn a_policy_steps_over_parts_as_over_the_whole() -> Result<()> {
    for (name, members, loss) in losses()? {
        same_steps([policy(&loss, members)?, policy(&loss, members)?], name)?;
    }
    Ok(())
}

/// A reward model of eight pairs whose scores are its parameters.
fn scorer() -> Result<(Vec<Tensor>, impl Trainer<Batch = Range<i64>>)> {
    let columns = Columns::random(8, 3, 9);
    let [chosen, rejected] = [&columns.chosen_scores, &columns.rejected_scores]
        .map(|scores| Tensor::from_slice2(scores).set_requires_grad(true));
    let leaves = vec![chosen.shallow_clone(), rejected.shallow_clone()];
    let descent = descent(&leaves)?;
    let forward = move |pairs: &Range<i64>| {
        let of = |scores: &Tensor| scores.narrow(1, pairs.start, pairs.end - pairs.start);
        let margin = Tensor::arange_start(pairs.start, pairs.end, (Kind::Double, Device::Cpu)) * 0.1;
        RewardBatch::new(RewardScores::new(of(&chosen), of(&rejected))?).with_margin(margin)
    };
    Ok((leaves, RewardTrainer::new(BradleyTerry::new(0.1)?, forward, descent)))
}

#[test]
fn so_does_a_reward_model() -> Result<()> {
    same_steps([scorer()?, scorer()?], "reward model")
}

/// Also of a loss that couples the pairs of a batch, and of pairs of different weight.
#[test]
fn an_evaluation_over_parts_is_that_of_the_whole() -> Result<()> {
    for (name, members, loss) in losses()? {
        let (_, trainer) = policy(&loss, members)?;
        same_metrics(&trainer.evaluate_over(&PARTS)?, &trainer.evaluate(&WHOLE)?, name);
    }
    let (_, trainer) = scorer()?;
    same_metrics(&trainer.evaluate_over(&PARTS)?, &trainer.evaluate(&WHOLE)?, "reward model");
    let nothing = "is empty: shape [batch] needs at least one element";
    refused(policy(Dpo::new(BETA)?, 1)?.1.evaluate_over(&[]), &format!("chosen_logps {nothing}"));
    let nothing = "is empty: shape [members, batch] needs at least one element";
    refused(trainer.evaluate_over(&[]), &format!("chosen_scores {nothing}"));
    Ok(())
}

#[test]
fn tokens_are_counted_over_all_parts() -> Result<()> {
    let (_, mut trainer) = policy(Dpo::new(BETA)?, 1)?;
    assert_eq!(trainer.step_over(&PARTS)?.metrics.get("num_tokens"), Some(80.0));
    Ok(())
}

/// Whether the loss needs the whole or not; what the hook makes of the loss holds for every part.
#[test]
fn a_hook_sees_the_whole_once() -> Result<()> {
    let ensemble = PessimisticDistillation::new(BETA)?;
    for loss in [ensemble, ensemble.with_minimum(Minimum::Pair)] {
        let built = built(3, 11)?;
        let whole = part(&built, &WHOLE)?;
        let chosen = numbers(whole.logps().chosen());
        let second = number(&ensemble.with_minimum(Minimum::Dataset { member: 1 }).mean(&whole)?);
        let descent = descent(&built.policy)?;
        let told = Rc::new(RefCell::new(vec![]));
        let ear = Rc::clone(&told);
        let forward = move |pairs: &Range<i64>| part(&built, pairs);
        let mut trainer = PolicyTrainer::new(loss, forward, descent, BETA)?.before_loss(move |loss, batch| {
            assert!(!batch.logps().chosen().requires_grad());
            ear.borrow_mut().push(numbers(batch.logps().chosen()));
            *loss = loss.with_minimum(Minimum::Dataset { member: 1 });
            Ok(())
        });
        close(trainer.step_over(&PARTS)?.loss, second, 1e-13, 1.0, "the second member's loss");
        assert_eq!(*told.borrow(), [chosen]);
    }
    Ok(())
}

#[test]
fn a_loop_takes_so_many_batches_to_a_step() -> Result<()> {
    let (_, mut trainer) = policy(Dpo::new(BETA)?, 1)?;
    let mut tokens = vec![];
    let mut count = |report: &StepReport| {
        tokens.push((report.step, report.metrics.get("num_tokens").expect("has lengths")));
        Flow::Continue
    };
    let two = NonZeroUsize::new(2).expect("is not 0");
    let last = trainer.fit_over((0..5).map(|i| i..i + 1), two, &mut [&mut count])?.expect("took steps");
    assert_eq!(last.step, 3);
    assert_eq!(tokens, [(1, 3.0 + 5.0), (2, 7.0 + 9.0), (3, 11.0)]);
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

const NOTHING: &str = "there is nothing to update by: no part was accumulated since the last step";

#[test]
fn a_step_over_no_part_is_refused() -> Result<()> {
    refused(policy(Dpo::new(BETA)?, 1)?.1.step_over(&[]), NOTHING);
    refused(policy(PessimisticDistillation::new(BETA)?, 3)?.1.step_over(&[]), NOTHING);
    refused(scorer()?.1.step_over(&[]), NOTHING);
    let mut descent = descent(&[origin(1, Kind::Double)])?;
    refused(descent.finish(), NOTHING);
    Ok(())
}

fn sum(x: &Tensor) -> Tensor {
    x.sum(Kind::Double)
}

/// Weights that f32 does not hold, too.
#[test]
fn a_part_counts_by_its_weight() -> Result<()> {
    for [first, second] in [[1.0, 1.0], [1.0, 3.0], [0.1, 0.7], [300.0, 0.01]] {
        let x = origin(1, Kind::Double);
        let mut descent = legible([&x])?.with_max_norm(None)?;
        descent.accumulate(&sum(&(&x * 2.0 + 1.0)), first)?;
        descent.accumulate(&sum(&(&x * 6.0 - 5.0)), second)?;
        let report = descent.finish()?;
        let mean = |a: f64, b: f64| oracle::weighted_mean(&[a, b], &[first, second]);
        let what = format!("weights {first} and {second}");
        close(report.loss, mean(1.0, -5.0), 1e-14, 1.0, &what);
        close(report.grad_norm, mean(2.0, 6.0), 1e-14, 0.0, &what);
        close(number(&x), moved(mean(2.0, 6.0)), 1e-12, 0.0, &what);
    }
    Ok(())
}

/// Clipping is of the mean, not of a part.
#[test]
fn the_gradient_of_all_parts_is_clipped() -> Result<()> {
    let x = origin(1, Kind::Double);
    let mut descent = legible([&x])?;
    descent.accumulate(&sum(&(&x * 5.0)), 1.0)?;
    descent.accumulate(&sum(&(&x * -4.5)), 1.0)?;
    close(descent.finish()?.grad_norm, 0.25, 1e-15, 0.0, "norm");
    close(number(&x), moved(0.25), 1e-12, 0.0, "below the bound");
    Ok(())
}

#[test]
fn a_parameter_of_one_part_is_moved_by_it() -> Result<()> {
    let [first, second, neither] = [(); 3].map(|()| origin(1, Kind::Double));
    let mut descent = legible([&first, &second, &neither])?.with_max_norm(None)?;
    descent.accumulate(&sum(&(&first * 3.0)), 1.0)?;
    descent.accumulate(&sum(&(&second * 5.0)), 1.0)?;
    descent.finish()?;
    close(number(&first), moved(1.5), 1e-12, 0.0, "of the first part");
    close(number(&second), moved(2.5), 1e-12, 0.0, "of the second");
    assert_eq!(number(&neither), 0.0);
    Ok(())
}

/// What the engine hands out may be one tensor for two parameters, or one number for all elements, also where a part between two others
/// has nothing to add to it.
#[test]
fn sums_do_not_share_their_memory() -> Result<()> {
    type Part = fn(&Tensor, &Tensor) -> Tensor;
    let parts: [(Part, f64); 2] = [(|a, b| sum(&((a + b) * 3.0)), 3.0), (|a, b| sum(a) + sum(b), 1.0)];
    for (part, slope) in parts {
        let [a, b, other] = [(); 3].map(|()| origin(2, Kind::Double));
        let mut descent = legible([&a, &b, &other])?.with_max_norm(None)?;
        for loss in [part(&a, &b), sum(&other), part(&a, &b), part(&a, &b)] {
            descent.accumulate(&loss, 1.0)?;
        }
        descent.finish()?;
        for (x, gradient) in [(&a, 3.0 * slope), (&b, 3.0 * slope), (&other, 1.0)] {
            all_close(&numbers(x), &[moved(gradient / 4.0); 2], 1e-12, format_args!("slope {slope}"));
        }
    }
    Ok(())
}

type Poison = fn(&Tensor) -> Tensor;

/// The whole step is given up, and the next one is as if there had been none.
#[test]
fn a_part_that_is_not_finite_ends_its_step() -> Result<()> {
    // √ at 0 has the value 0 and an infinite slope.
    let poisons: [(Poison, &str); 3] = [
        (|x| sum(x) / 0.0, "loss is inf at step 1: no parameter was changed"),
        (|x| sum(x) * f64::NAN, "loss is NaN at step 1: no parameter was changed"),
        (|x| sum(&(x - x.detach()).sqrt()), "gradient norm is inf at step 1: no parameter was changed"),
    ];
    let start = || Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    for (poison, message) in poisons {
        let (poisoned, clean) = ([start()], [start()]);
        let (mut a, mut b) = (descent(&poisoned)?, descent(&clean)?);
        a.accumulate(&sum(&poisoned[0].square()), 1.0)?;
        let outcome = a.accumulate(&poison(&poisoned[0]), 1.0).and_then(|()| a.finish());
        assert!(matches!(outcome, Err(Error::NonFinite { step: 1, .. })));
        refused(outcome, message);
        refused(a.finish(), NOTHING);
        for _ in 0..2 {
            assert_eq!(numbers(&poisoned[0]), numbers(&clean[0]), "after {message}");
            for (descent, [x]) in [(&mut a, &poisoned), (&mut b, &clean)] {
                descent.accumulate(&sum(&x.square()), 1.0)?;
                descent.accumulate(&sum(&x.sin()), 2.0)?;
            }
            assert_eq!(a.finish()?, b.finish()?);
        }
    }
    Ok(())
}

#[test]
fn a_whole_step_forgets_parts_that_were_begun() -> Result<()> {
    let x = origin(1, Kind::Double);
    let mut descent = legible([&x])?.with_max_norm(None)?;
    descent.accumulate(&sum(&(&x * 100.0)), 1.0)?;
    close(descent.descend(&sum(&(&x * 2.0)))?, 2.0, 1e-15, 0.0, "norm");
    close(number(&x), moved(2.0), 1e-14, 0.0, "of the last loss alone");
    Ok(())
}

/// Every column of a batch that has them all.
fn every_column(batch: &PreferenceBatch) -> Result<Vec<Vec<f64>>> {
    let (logps, scores) = (batch.logps(), batch.require_rewards("a test")?);
    let (lengths, weights) = (batch.lengths().expect("has lengths"), batch.weights().expect("has weights"));
    let (samples, all) = (batch.require_reference_samples("a test")?, batch.require_all_responses("a test")?);
    let student = batch.require_student_margin("a test")?;
    let own = batch.require_policy_samples("a test")?;
    let columns = [
        &student,
        own.policy(),
        own.reference(),
        logps.chosen(),
        logps.rejected(),
        logps.ref_chosen(),
        logps.ref_rejected(),
        scores.chosen(),
        scores.rejected(),
        weights,
        batch.require_soft_labels("a test")?,
        lengths.chosen(),
        lengths.rejected(),
        samples.policy(),
        samples.reference(),
        all.policy(),
        all.reference(),
        &batch.require_gold("a test")?.sums,
        &batch.require_gold("a test")?.lengths,
        batch.require_policy_weights("a test")?,
    ];
    Ok(columns.into_iter().map(numbers).collect())
}

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Double, Device::Cpu))
}

/// Log-probabilities alone.
fn bare(pairs: i64) -> Result<PreferenceBatch> {
    let ones = || ones(&[pairs]);
    Ok(PreferenceBatch::new(PairLogps::new(ones(), ones(), ones(), ones())?))
}

#[test]
fn batches_are_put_together_column_by_column() -> Result<()> {
    let built = built(3, 13)?;
    let parts: Result<Vec<_>> = PARTS.iter().map(|pairs| part(&built, pairs)).collect();
    let whole = PreferenceBatch::concatenated(&parts?)?;
    assert_eq!(whole.len(), 8);
    assert_eq!(every_column(&whole)?, every_column(&part(&built, &WHOLE)?)?);
    // The path to the policy is kept.
    whole.logps().chosen().sum(Kind::Double).backward();
    assert_eq!(numbers(&built.policy[0].grad()), [1.0; 8]);
    whole.require_student_margin("a test")?.sum(Kind::Double).backward();
    assert_eq!(numbers(&built.policy[5].grad()), [-1.0; 8]);
    let bare = PreferenceBatch::concatenated(&[bare(2)?, bare(3)?])?;
    assert!(bare.rewards().is_none() && bare.weights().is_none() && bare.lengths().is_none());
    assert_eq!(bare.len(), 5);
    Ok(())
}

#[test]
fn batches_of_unlike_columns_are_not_put_together() -> Result<()> {
    type Add = fn(PreferenceBatch) -> Result<PreferenceBatch>;
    let columns: [(&str, Add); 10] = [
        ("gold", |b| {
            b.with_gold(prefopt::logps::ResponseLogps { sums: ones(&[2]), lengths: ones(&[2]).to_kind(Kind::Int64) })
        }),
        ("policy_weights", |b| b.with_policy_weights(ones(&[2]))),
        ("rewards", |b| b.with_rewards(RewardScores::new(ones(&[3, 2]), ones(&[3, 2]))?)),
        ("weights", |b| b.with_weights(ones(&[2]))),
        ("soft_labels", |b| b.with_soft_labels(ones(&[2]))),
        ("lengths", |b| {
            let tokens = || ones(&[2]).to_kind(Kind::Int64);
            b.with_lengths(ResponseLengths::new(tokens(), tokens())?)
        }),
        ("reference_samples", |b| b.with_reference_samples(ResponseTable::new(ones(&[2, 4]), ones(&[2, 4]))?)),
        ("student_scores", |b| b.with_student_scores(RewardScores::new(ones(&[1, 2]), ones(&[1, 2]))?)),
        ("policy_samples", |b| b.with_policy_samples(ResponseTable::new(ones(&[2, 4]), ones(&[2, 4]))?)),
        ("all_responses", |b| b.with_all_responses(ResponseTable::new(ones(&[2, 4]), ones(&[2, 4]))?)),
    ];
    for (column, add) in columns {
        let said = format!(
            "some of the batches have the column `{column}` and some do not: a whole needs it from all or none"
        );
        refused(PreferenceBatch::concatenated(&[bare(2)?, add(bare(2)?)?]), &said);
        refused(PreferenceBatch::concatenated(&[add(bare(2)?)?, bare(2)?, add(bare(2)?)?]), &said);
        assert_eq!(PreferenceBatch::concatenated(&[add(bare(2)?)?, add(bare(2)?)?])?.len(), 4);
    }
    let empty = "shape [batch] needs at least one element";
    refused(PreferenceBatch::concatenated(&[]), &format!("chosen_logps is empty: {empty}"));
    let families = [part(&built(2, 1)?, &WHOLE)?, part(&built(3, 1)?, &WHOLE)?];
    refused(
        PreferenceBatch::concatenated(&families),
        "chosen_scores must have shape [members, batch] with members = 2, got members = 3",
    );
    Ok(())
}

#[test]
fn a_batch_counts_for_its_weights_or_its_pairs() -> Result<()> {
    assert_eq!(bare(3)?.total_weight(), 3.0);
    assert_eq!(bare(3)?.with_weights(Tensor::from_slice(&[0.5, 1.5, 2.0]))?.total_weight(), 4.0);
    Ok(())
}

#[test]
fn a_mixture_is_one_model() -> Result<()> {
    let columns = Columns::random(5, 3, 17);
    let scores =
        RewardScores::new(Tensor::from_slice2(&columns.chosen_scores), Tensor::from_slice2(&columns.rejected_scores))?;
    let weights = [0.2, 0.3, 0.5];
    let mixed = scores.mixed(&Tensor::from_slice(&weights))?;
    assert_eq!((mixed.members(), mixed.batch()), (1, 5));
    all_close(&numbers(mixed.chosen()), &oracle::mix(&columns.chosen_scores, &weights), 1e-14, "chosen");
    all_close(&numbers(mixed.rejected()), &oracle::mix(&columns.rejected_scores, &weights), 1e-14, "rejected");
    // Of which distillation takes one, as it takes no family.
    assert_eq!(RewardDistillation::new(BETA)?.per_pair(&bare(5)?.with_rewards(mixed)?)?.size(), [5]);

    refused(scores.mixed(&ones(&[1, 3])), "weights must have shape [members], got [1, 3]");
    refused(scores.mixed(&ones(&[2])), "weights must have shape [members] with members = 3, got members = 2");
    refused(
        scores.mixed(&ones(&[3]).to_kind(Kind::Float)),
        "weights must be Double like the tensors it goes with, got Float",
    );
    Ok(())
}

/// In bf16 a sum of ones stops at 256, where one more is less than half a unit of it.
#[test]
fn many_parts_add_up_in_half_precision() -> Result<()> {
    let x = Tensor::from_slice(&[1.0_f32]).to_kind(Kind::BFloat16).set_requires_grad(true);
    let optimizer = AdamW::new(vec![x.shallow_clone()], AdamWConfig::default())?.with_masters();
    let mut descent = Descent::new(optimizer, 0.1)?.with_max_norm(None)?;
    for _ in 0..300 {
        descent.accumulate(&x.sum(Kind::Float), 1.0)?;
    }
    close(descent.finish()?.grad_norm, 1.0, 1e-3, 0.0, "norm of the mean of 300 equal gradients");
    Ok(())
}
