//! Alarms in training: quiet on healthy runs, raised on planted faults, told to observers.

use prefopt::{
    PairLogps, PreferenceBatch, Result, RewardScores,
    diagnostics::{Alarm, AlarmKind, Thresholds, batch_metrics},
    loss::{Dpo, RewardDistillation},
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, Flow, Observer, PolicyTrainer, StepReport, Trainer, Watch},
};

use super::{row, with};
use crate::close;

/// A softmax over four responses; pairs (0, 1), (2, 3), (0, 3) or reversed.
struct Policy {
    logits: Tensor,
    start: Tensor,
}

const CHOSEN: [i64; 3] = [0, 2, 0];
const REJECTED: [i64; 3] = [1, 3, 3];

impl Policy {
    fn new() -> Self {
        let logits = row([0.3, -0.2, 0.1, 0.0]).set_requires_grad(true);
        let start = logits.detach().copy().log_softmax(-1, Kind::Double);
        Self { logits, start }
    }

    fn descent(&self, rate: f64) -> Result<Descent> {
        Descent::new(AdamW::new(vec![self.logits.shallow_clone()], AdamWConfig::default())?, rate)
    }

    /// What is done to log-probabilities of the pairs, `[responses]` of policy and reference.
    fn forward<F>(&self, logps: F) -> impl Fn(&()) -> Result<PreferenceBatch> + use<F>
    where
        F: Fn(&Tensor, &Tensor) -> Result<PreferenceBatch>,
    {
        let (logits, start) = (self.logits.shallow_clone(), self.start.shallow_clone());
        move |_: &()| logps(&logits.log_softmax(-1, Kind::Double), &start)
    }
}

fn at(logps: &Tensor, responses: [i64; 3]) -> Tensor {
    logps.index_select(0, &Tensor::from_slice(&responses))
}

fn right(policy: &Tensor, reference: &Tensor) -> Result<PairLogps> {
    PairLogps::new(at(policy, CHOSEN), at(policy, REJECTED), at(reference, CHOSEN), at(reference, REJECTED))
}

/// Teachers who like 0 and 2.
fn taught(batch: PreferenceBatch, responses: [[i64; 3]; 2]) -> Result<PreferenceBatch> {
    let scores = row([1.0, 0.0, 0.8, -0.2]);
    batch.with_rewards(RewardScores::single(&at(&scores, responses[0]), &at(&scores, responses[1]))?)
}

fn kinds(alarms: &[Alarm]) -> Vec<(AlarmKind, u64)> {
    alarms.iter().map(|alarm| (alarm.kind, alarm.step)).collect()
}

/// Alarms of so many steps by DPO.
fn watched<F>(rate: f64, steps: usize, logps: F) -> Result<Vec<(AlarmKind, u64)>>
where
    F: Fn(&Tensor, &Tensor) -> Result<PreferenceBatch>,
{
    let policy = Policy::new();
    let mut trainer = PolicyTrainer::new(Dpo::new(0.5)?, policy.forward(logps), policy.descent(rate)?, 0.5)?;
    let mut watch = Watch::new(Thresholds::default());
    trainer.fit(vec![(); steps], &mut [&mut watch])?;
    Ok(kinds(watch.alarms()))
}

#[test]
fn healthy_runs_are_quiet() -> Result<()> {
    let plain = watched(0.02, 120, |policy, reference| Ok(PreferenceBatch::new(right(policy, reference)?)))?;
    assert!(plain.is_empty(), "{plain:?}");
    let policy = Policy::new();
    let forward =
        policy.forward(|policy, reference| taught(PreferenceBatch::new(right(policy, reference)?), [CHOSEN, REJECTED]));
    let mut trainer = PolicyTrainer::new(RewardDistillation::new(0.5)?, forward, policy.descent(0.02)?, 0.5)?;
    let mut watch = Watch::new(Thresholds::default());
    trainer.fit(vec![(); 200], &mut [&mut watch])?;
    assert!(watch.alarms().is_empty(), "{:?}", watch.alarms());
    Ok(())
}

#[test]
fn planted_faults_are_found_in_training() -> Result<()> {
    // The reference is the policy of the moment.
    let live = watched(0.02, 20, |policy, _| Ok(PreferenceBatch::new(right(policy, &policy.detach())?)))?;
    assert_eq!(live, [(AlarmKind::ReferenceIsPolicy, 6)]);
    // Its columns are swapped.
    let swapped = watched(0.02, 20, |policy, reference| {
        let [chosen, rejected] = [CHOSEN, REJECTED].map(|responses| at(reference, responses));
        Ok(PreferenceBatch::new(PairLogps::new(at(policy, CHOSEN), at(policy, REJECTED), rejected, chosen)?))
    })?;
    assert_eq!(swapped[0], (AlarmKind::ReferenceMismatch, 1));
    // The labels are reversed, and the teachers know better: three pairs a step, √3 standard errors each.
    let reversed = watched(0.02, 30, |policy, reference| {
        let (chosen, rejected) = (REJECTED, CHOSEN);
        let logps =
            PairLogps::new(at(policy, chosen), at(policy, rejected), at(reference, chosen), at(reference, rejected))?;
        taught(PreferenceBatch::new(logps), [chosen, rejected])
    })?;
    assert_eq!(
        reversed,
        [(AlarmKind::LabelsReversed, 20); 2],
        "the teachers against the labels, and against the policy"
    );
    // Both labels on every pair.
    let opposed = watched(0.02, 60, |policy, reference| {
        let both = |first: [i64; 3], second: [i64; 3], of: &Tensor| Tensor::cat(&[at(of, first), at(of, second)], 0);
        let side = |of: &Tensor, turned: bool| {
            if turned { both(REJECTED, CHOSEN, of) } else { both(CHOSEN, REJECTED, of) }
        };
        let logps =
            PairLogps::new(side(policy, false), side(policy, true), side(reference, false), side(reference, true))?;
        Ok(PreferenceBatch::new(logps))
    })?;
    assert!(opposed.contains(&(AlarmKind::LossStuck, 50)), "{opposed:?}");
    Ok(())
}

#[derive(Default)]
struct Ear {
    steps: usize,
    heard: Vec<Alarm>,
}

impl Observer for Ear {
    fn on_step(&mut self, _: &StepReport) -> Flow {
        self.steps += 1;
        Flow::Continue
    }

    fn on_alarm(&mut self, alarm: &Alarm) -> Flow {
        self.heard.push(alarm.clone());
        Flow::Continue
    }
}

/// Whether they stand before the watch or behind it.
#[test]
fn all_observers_hear_of_an_alarm_once() -> Result<()> {
    let policy = Policy::new();
    let forward = policy.forward(|policy, _| Ok(PreferenceBatch::new(right(policy, &policy.detach())?)));
    let mut trainer = PolicyTrainer::new(Dpo::new(0.5)?, forward, policy.descent(0.02)?, 0.5)?;
    let (mut before, mut behind, mut watch) = (Ear::default(), Ear::default(), Watch::new(Thresholds::default()));
    trainer.fit(vec![(); 15], &mut [&mut before, &mut watch, &mut behind])?;
    assert_eq!((before.steps, behind.steps), (15, 15));
    assert_eq!(kinds(&before.heard), [(AlarmKind::ReferenceIsPolicy, 6)]);
    assert_eq!((&before.heard, &behind.heard), (&behind.heard, &watch.alarms().to_vec()));
    // What was found between steps is told at the next one.
    let found = watch.measured(15, &with(&[("data/opposed", 0.5)])).to_vec();
    assert_eq!(kinds(&found), [(AlarmKind::OpposedLabels, 15)]);
    trainer.fit(vec![(); 1], &mut [&mut before, &mut watch])?;
    assert_eq!(kinds(&before.heard[1..]), [(AlarmKind::OpposedLabels, 15)]);
    assert!(watch.monitor().standing().any(|kind| kind == AlarmKind::ReferenceIsPolicy));
    Ok(())
}

#[test]
fn an_alarm_can_stop_the_loop() -> Result<()> {
    let trainer = || {
        let policy = Policy::new();
        let forward = policy.forward(|policy, _| Ok(PreferenceBatch::new(right(policy, &policy.detach())?)));
        PolicyTrainer::new(Dpo::new(0.5)?, forward, policy.descent(0.02)?, 0.5)
    };
    let mut watch = Watch::new(Thresholds::default()).stopping();
    let last = trainer()?.fit(vec![(); 15], &mut [&mut watch])?.expect("took steps");
    assert_eq!((last.step, watch.alarms().len()), (6, 1));

    struct Nervous;
    impl Observer for Nervous {
        fn on_step(&mut self, _: &StepReport) -> Flow {
            Flow::Continue
        }

        fn on_alarm(&mut self, _: &Alarm) -> Flow {
            Flow::Stop
        }
    }
    let mut watch = Watch::new(Thresholds::default());
    let last = trainer()?.fit(vec![(); 15], &mut [&mut Nervous, &mut watch])?.expect("took steps");
    assert_eq!(last.step, 6);
    Ok(())
}

/// What a trainer reports is what a batch says, over parts too.
#[test]
fn a_trainer_reports_the_batch() -> Result<()> {
    let policy = Policy::new();
    let batch = policy.forward(|policy, reference| {
        let labels = Tensor::full([3], 0.75, (Kind::Double, Device::Cpu));
        taught(PreferenceBatch::new(right(policy, reference)?), [CHOSEN, REJECTED])?.with_soft_labels(labels)
    });
    let expected = batch_metrics(&batch(&())?, 0.5)?;
    let mut trainer = PolicyTrainer::new(Dpo::new(0.5)?, batch, policy.descent(0.0)?, 0.5)?;
    assert_eq!(trainer.step(&())?.metrics, expected);
    let parts = trainer.step_over(&[(), ()])?.metrics;
    for (name, value) in expected.iter().filter(|(name, _)| *name != "num_pairs") {
        close(parts.get(name).unwrap_or_else(|| panic!("no {name}")), value, 1e-12, 1.0, name);
    }
    assert_eq!(parts.get("num_pairs"), Some(6.0));
    assert!(trainer.evaluate(&())?.get("eval_ensemble/excess").is_some());
    Ok(())
}
