//! Trainers and the loop: what a step reports, who is told, and what an evaluation leaves alone.

use std::{cell::RefCell, rc::Rc};

use prefopt::{
    Error, PairLogps, PreferenceBatch, PreferenceLoss, Result, RewardScores,
    loss::{Dpo, Minimum, PessimisticDistillation, from_fn},
    tch::{Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, Flow, Observer, PolicyTrainer, RunningMinimum, StepReport, Trainer, Warmup},
};

use crate::{close, columns::Columns, number, numbers, oracle};

/// The policy's log-probabilities of one pair are its parameters; a batch is the pair's Δr under each of two members.
struct Policy(Tensor);

impl Policy {
    fn new() -> Self {
        Self(Tensor::from_slice(&[-2.0, -3.0]).set_requires_grad(true))
    }

    fn descent(&self, rate: f64) -> Result<Descent> {
        Descent::new(AdamW::new(vec![self.0.shallow_clone()], AdamWConfig::default())?, rate)
    }

    fn forward(&self) -> impl Fn(&[f64; 2]) -> Result<PreferenceBatch> + use<> {
        let leaf = self.0.shallow_clone();
        move |margins| {
            let reference = Tensor::from_slice(&[-2.5]);
            let logps =
                PairLogps::new(leaf.narrow(0, 0, 1), leaf.narrow(0, 1, 1), reference.shallow_clone(), reference)?;
            let margins = Tensor::from_slice(margins).unsqueeze(1);
            PreferenceBatch::new(logps).with_rewards(RewardScores::new(margins.shallow_clone(), margins.zeros_like())?)
        }
    }
}

#[test]
fn a_step_reports_what_was_before_it() -> Result<()> {
    let policy = Policy::new();
    let descent = policy.descent(0.01)?.with_schedule(Warmup::new(4));
    let mut trainer = PolicyTrainer::new(Dpo::new(0.1)?, policy.forward(), descent, 0.5)?;
    let report = trainer.step(&[0.0, 0.0])?;
    close(report.loss, oracle::dpo(0.1, 0.0), 1e-14, 0.0, "loss");
    close(report.grad_norm, 2.0_f64.sqrt() * 0.1 * oracle::sigmoid(-0.1), 1e-13, 0.0, "norm");
    assert_eq!((report.step, report.learning_rate), (1, 0.0025));
    // The metrics' own β, whatever the loss's.
    assert_eq!(report.metrics.get("rewards/margins"), Some(0.5));
    assert!(numbers(&policy.0)[0] > -2.0, "the chosen response became likelier");
    assert_eq!(trainer.step(&[0.0, 0.0])?.step, 2);
    Ok(())
}

#[test]
fn an_evaluation_changes_nothing() -> Result<()> {
    let policy = Policy::new();
    let mut trainer = PolicyTrainer::new(Dpo::new(0.1)?, policy.forward(), policy.descent(0.01)?, 0.1)?;
    let before = numbers(&policy.0);
    let metrics = trainer.evaluate(&[0.0, 0.0])?;
    assert!(metrics.iter().all(|(name, _)| name.starts_with("eval_")));
    close(metrics.get("eval_loss").expect("measured"), oracle::dpo(0.1, 0.0), 1e-14, 0.0, "loss");
    assert!(metrics.get("eval_rewards/accuracies") == Some(1.0) && !policy.0.grad().defined());
    assert_eq!((numbers(&policy.0), trainer.step(&[0.0, 0.0])?.step), (before, 1));
    Ok(())
}

/// As a run that goes on has to, whose loss had moved.
#[test]
fn a_loss_that_is_put_back_is_what_evaluates() -> Result<()> {
    let policy = Policy::new();
    let mut trainer = PolicyTrainer::new(Dpo::new(0.1)?, policy.forward(), policy.descent(0.01)?, 0.1)?;
    *trainer.loss_mut() = Dpo::new(0.5)?;
    let loss = trainer.evaluate(&[0.0, 0.0])?.get("eval_loss").expect("measured");
    close(loss, oracle::dpo(0.5, 0.0), 1e-14, 0.0, "loss");
    Ok(())
}

#[derive(Default)]
struct Diary {
    steps: Vec<u64>,
    ends: usize,
}

impl Observer for Diary {
    fn on_step(&mut self, report: &StepReport) -> Flow {
        self.steps.push(report.step);
        Flow::Continue
    }

    fn on_end(&mut self) {
        self.ends += 1;
    }
}

#[test]
fn the_loop_ends_with_the_batches_or_at_a_word() -> Result<()> {
    let policy = Policy::new();
    let mut trainer = PolicyTrainer::new(Dpo::new(0.1)?, policy.forward(), policy.descent(0.01)?, 0.1)?;
    let mut diary = Diary::default();
    assert_eq!(trainer.fit([], &mut [&mut diary])?, None);
    assert_eq!((diary.steps.len(), diary.ends), (0, 1));

    let last = trainer.fit([[0.0; 2]; 3], &mut [&mut diary])?.expect("took steps");
    assert_eq!((last.step, diary.ends), (3, 2));

    let mut stop = |report: &StepReport| if report.step == 5 { Flow::Stop } else { Flow::Continue };
    // The diary stands behind the one who says stop, and hears of the step all the same.
    let last = trainer.fit([[0.0; 2]; 9], &mut [&mut stop, &mut diary])?.expect("took steps");
    assert_eq!((last.step, diary.steps.as_slice(), diary.ends), (5, [1, 2, 3, 4, 5].as_slice(), 3));
    Ok(())
}

#[test]
fn observers_hear_of_the_end_after_an_error() -> Result<()> {
    let policy = Policy::new();
    // The scores carry the poison: an infinite margin in the third batch.
    let loss = from_fn(|b| Ok(b.logps().chosen() * b.rewards().expect("scores").margins().get(0)));
    let mut trainer = PolicyTrainer::new(loss, policy.forward(), policy.descent(0.01)?, 0.1)?;
    let (mut diary, mut before) = (Diary::default(), vec![]);
    let mut keep = |_: &StepReport| {
        before = numbers(&policy.0);
        Flow::Continue
    };
    let error = trainer.fit([[1.0; 2], [1.0; 2], [f64::INFINITY; 2], [1.0; 2]], &mut [&mut diary, &mut keep]);
    assert!(matches!(error, Err(Error::NonFinite { quantity: "loss", step: 3, .. })));
    assert_eq!((diary.steps, diary.ends), (vec![1, 2], 1));
    assert_eq!(numbers(&policy.0), before);
    Ok(())
}

/// The hook hands the loss the member that is best over all data so far, though each batch alone may prefer another.
#[test]
fn a_tracker_hands_the_loss_its_member() -> Result<()> {
    let policy = Policy::new();
    let mut tracker = RunningMinimum::new();
    let told = Rc::new(RefCell::new(vec![]));
    let ear = Rc::clone(&told);
    let mut trainer =
        PolicyTrainer::new(PessimisticDistillation::new(0.1)?, policy.forward(), policy.descent(0.0)?, 0.1)?
            .before_loss(move |loss, batch| {
                tracker.observe(loss, batch)?;
                ear.borrow_mut().push(tracker.member()?);
                *loss = loss.with_minimum(Minimum::Dataset { member: tracker.member()? });
                Ok(())
            });
    // βh = .1 throughout, as the rate is 0: residuals of the two members in each batch.
    let last = trainer.fit([[0.2, 3.1], [2.1, 1.1], [9.1, 0.3]], &mut [])?.expect("took steps");
    assert_eq!(*told.borrow(), [0, 0, 1], "sums (.01, 9), (4.01, 10), (85.01, 10.04)");
    close(last.loss, 0.04, 1e-12, 0.0, "the second member's loss on the last batch");
    assert_eq!(*trainer.loss(), PessimisticDistillation::new(0.1)?.with_minimum(Minimum::Dataset { member: 1 }));
    Ok(())
}

/// Over batches of any size and weight, the running means are those of one large batch; a reset forgets them.
#[test]
fn running_means_are_those_of_all_pairs() -> Result<()> {
    let loss = PessimisticDistillation::new(0.3)?;
    let parts = [(2, 1), (5, 2), (3, 3)].map(|(size, seed)| Columns::random(size, 3, seed));
    let mut tracker = RunningMinimum::new();
    for part in &parts {
        tracker.observe(&loss, &part.batch())?;
    }
    let total: f64 = parts.iter().flat_map(|c| &c.weights).sum();
    let found = numbers(&tracker.means()?);
    for (m, found) in found.iter().enumerate() {
        let of = |c: &Columns| -> Result<f64> {
            let losses = loss.with_minimum(Minimum::Dataset { member: m as i64 }).per_pair(&c.batch())?;
            Ok((losses * Tensor::from_slice(&c.weights)).sum(Kind::Double).double_value(&[]))
        };
        let sum: f64 = parts.iter().map(of).sum::<Result<f64>>()?;
        close(*found, sum / total, 1e-12, 0.0, "running mean");
    }
    let other = Columns::random(2, 2, 4).batch();
    assert!(matches!(tracker.observe(&loss, &other), Err(Error::Torch(_))), "a family of another size");
    tracker.reset();
    assert!(matches!(tracker.member(), Err(Error::NothingObserved)));
    tracker.observe(&loss, &parts[0].batch())?;
    let alone = parts[0].batch().weighted_mean(&loss.per_member(&parts[0].batch())?);
    close(number(&tracker.means()?), number(&alone), 1e-14, 0.0, "after a reset");
    Ok(())
}
