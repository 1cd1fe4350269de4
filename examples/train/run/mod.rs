//! A training run: steps, evaluations, checkpoints; from the start, or from where it was.

mod course;
pub mod log;
mod observers;
mod plan;
pub mod settings;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use prefopt::{
    data::PairDataset,
    diagnostics::{Metrics, Thresholds},
    train::{Better, Checkpoint, Checkpoints, Position, Watch},
};
use serde_json::Value;
use tch::Tensor;

use crate::{
    flags::{Export, RunFlags},
    trainers::Steps,
};
use course::{Course, End};
use observers::{Begin, Observers};
use plan::Plan;
use settings::Found;

/// What is run.
pub struct Job<'a> {
    /// The command.
    pub name: &'static str,
    pub flags: &'a RunFlags,
    /// All that shapes the run: [`settings::of`] its command.
    pub settings: Value,
    pub pairs: &'a PairDataset,
    /// Given to the trainer by indices that go on behind those of `pairs`.
    pub held_out: Option<&'a PairDataset>,
    /// What checkpoints hold, by name.
    pub model: Vec<(String, Tensor)>,
    /// Of the alarms.
    pub thresholds: Thresholds,
}

/// How a run has ended.
pub struct Done {
    /// By Ctrl-C, or by an alarm under `--stop-on-alarm`: saved, and not at its last step.
    pub interrupted: bool,
    /// Of the whole run.
    pub steps: u64,
    /// Since this start.
    pub seconds: f64,
    /// The last evaluation, or that of the best checkpoint where its model was taken.
    pub metrics: Metrics,
}

impl Job<'_> {
    /// Steps that the flags ask for: `--max-steps`, or those of all epochs.
    pub fn total_steps(flags: &RunFlags, pairs: &PairDataset) -> Result<u64> {
        Ok(Plan::new(flags, pairs)?.total())
    }

    /// Steps until the end, from the last checkpoint where there is one.
    ///
    /// `measure` gives more numbers at each evaluation, after so many steps; `resumed` puts back into the trainer what
    /// `saving` has put into checkpoints.
    pub fn run<T: Steps>(
        &self,
        trainer: &mut T,
        measure: impl FnMut(u64) -> Result<Metrics>,
        mut resumed: impl FnMut(&mut T, &Checkpoint) -> Result<()>,
        saving: impl FnMut(Checkpoint) -> Result<Checkpoint>,
    ) -> Result<Done> {
        let (begun, flags) = (Instant::now(), self.flags);
        let plan = Plan::new(flags, self.pairs)?;
        let held_out = self.held_out_batches()?;
        ensure!(
            flags.export == Export::Last || self.held_out.is_some(),
            "--export best goes by the loss of held-out pairs, and there are none: give --held-out or --eval-data"
        );
        let found = settings::compare(&flags.out, &self.settings, flags.schedule)?;
        let mut checkpoints = Checkpoints::open(flags.out.join("checkpoints"))?.keeping(flags.keep);
        if self.held_out.is_some() {
            checkpoints = checkpoints.best_by("eval_loss", Better::Lower);
        }
        let loaded = checkpoints.load_last()?;
        let (taken, total) = (loaded.as_ref().map_or(0, |loaded| loaded.checkpoint.steps()), plan.total());
        ensure!(
            taken <= total,
            "the run in {} has taken {taken} steps, and is to have {total}: ask for {taken} with --max-steps or more --epochs, give another --out, or delete the folder",
            flags.out.display()
        );
        if found != Found::Same {
            settings::write(&flags.out, &self.settings)?;
        }
        let mut begin = if found == Found::Nothing { Begin::New } else { Begin::Over };
        let (mut at, mut metrics) = (Position::default(), Metrics::default());
        if let Some(loaded) = loaded {
            course::tell(&loaded.skipped);
            let checkpoint = loaded.checkpoint;
            checkpoint.restore(self.named(), trainer.descent_mut())?;
            resumed(trainer, &checkpoint)?;
            (at, metrics) = (checkpoint.position(), checkpoint.metrics().clone());
            begin = Begin::After(checkpoint.steps());
        }
        let steps = trainer.descent().steps();
        let is_fresh = !course::is_empty(&metrics);
        let is_saved = matches!(begin, Begin::After(_));
        match begin {
            Begin::After(_) if steps >= plan.total() => {
                eprintln!("{}: the run in {} is at its end, {steps} steps", self.name, flags.out.display());
            }
            Begin::After(_) => eprintln!("{}: goes on after step {steps} of {}", self.name, plan.total()),
            Begin::New | Begin::Over => eprintln!("{}: {} steps", self.name, plan.total()),
        }
        let mut course = Course {
            job: self,
            plan,
            held_out,
            trainer,
            measure,
            saving,
            checkpoints,
            at,
            metrics,
            is_fresh,
            is_saved,
            saved: None,
        };
        let end = if steps >= course.plan.total() && is_fresh {
            End::Finished
        } else {
            let mut observers = Observers::begin(&flags.out, begin, course.plan.total(), self.watch())?;
            course.go(&mut observers)?
        };
        match end {
            End::Finished if flags.export == Export::Best => course.take_best()?,
            End::Finished => {}
            End::Asked => eprintln!("{}", course.saved()?),
            End::Alarmed => eprintln!("stopped by an alarm; {}", course.saved()?),
        }
        Ok(Done {
            interrupted: end != End::Finished,
            steps: course.trainer.descent().steps(),
            seconds: begun.elapsed().as_secs_f64(),
            metrics: course.metrics,
        })
    }

    fn named(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.model.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
    }

    /// The same at each evaluation.
    fn held_out_batches(&self) -> Result<Vec<Vec<usize>>> {
        let Some(pairs) = self.held_out else { return Ok(vec![]) };
        let batches = plan::batching(self.flags).epoch(pairs, 0, 0).context("held-out pairs")?;
        let behind = |batch: &[usize]| -> Vec<usize> { batch.iter().map(|pair| self.pairs.len() + pair).collect() };
        Ok(batches.iter().map(behind).collect())
    }

    fn watch(&self) -> Watch {
        let watch = Watch::new(self.thresholds);
        if self.flags.stop_on_alarm { watch.stopping() } else { watch }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use prefopt::train::{AdamW, AdamWConfig, Descent};
    use tch::Kind;

    use super::*;
    use crate::trainers::{FromLoss, Measured};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        run: RunFlags,
    }

    pub fn flags(line: &[&str]) -> RunFlags {
        Command::parse_from(["run", "--out", "nowhere"].iter().chain(line).copied()).run
    }

    /// Of three tokens each.
    pub fn pairs(number: u32) -> Result<PairDataset> {
        let mut pairs = PairDataset::default();
        for token in 0..number {
            pairs.push(&[1], &[token], &[2])?;
        }
        Ok(pairs)
    }

    /// Two steps an epoch; both w go to the mean of sin over the pairs to train on, away from that over those held out,
    /// where they start.
    fn trainer() -> Result<(Tensor, impl Steps)> {
        let w = Tensor::from_slice(&[0.75, 0.5]).set_requires_grad(true);
        let descent = Descent::new(AdamW::new(vec![w.shallow_clone()], AdamWConfig::default())?, 0.1)?;
        let own = w.shallow_clone();
        let loss = move |batch: &[usize]| -> prefopt::Result<Measured> {
            let x: Vec<f64> = batch.iter().map(|&index| (index as f64).sin()).collect();
            let loss = (own.unsqueeze(1) - Tensor::from_slice(&x)).square().mean(Kind::Double);
            let pairs = batch.len() as f64;
            Ok(Measured { loss, weight: pairs, metrics: Metrics::default().with("num_pairs", pairs) })
        };
        Ok((w, FromLoss::new(descent, loss)))
    }

    /// What is left in the model. The process dies, as it were, in the evaluation after step `fatal`.
    fn run(out: &Path, line: &[&str], fatal: Option<u64>) -> Result<(Done, Vec<f64>)> {
        let common = ["--batch", "2", "--accumulate", "2", "--eval-every", "1"];
        let flags = RunFlags { out: out.to_owned(), ..flags(&[&common[..], line].concat()) };
        let (train, held_out) = (pairs(7)?, pairs(3)?);
        let (w, mut trainer) = trainer()?;
        let job = Job {
            name: "test",
            flags: &flags,
            settings: serde_json::to_value(&flags)?,
            pairs: &train,
            held_out: Some(&held_out),
            model: vec![("w".to_owned(), w.shallow_clone())],
            thresholds: Thresholds::default(),
        };
        let measure = |step: u64| {
            ensure!(fatal != Some(step), "killed");
            Ok(Metrics::default().with("samples/length", step as f64))
        };
        let done = job.run(&mut trainer, measure, |_, _| Ok(()), Ok)?;
        Ok((done, Vec::<f64>::try_from(w.detach())?))
    }

    fn logged(out: &Path) -> Result<Vec<(u64, Vec<(String, f64)>)>> {
        let lines = log::lines(&out.join("log.jsonl"))?;
        lines.map(|line| line.map(|line| (line.step, line.numbers().collect()))).collect()
    }

    #[test]
    fn a_run_that_goes_on_is_the_run_that_was_not_interrupted() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (straight, broken) = (folder.path().join("straight"), folder.path().join("broken"));
        let long = ["--epochs", "4", "--save-every", "3"];
        let (done, expected) = run(&straight, &long, None)?;
        assert_eq!((done.steps, done.interrupted), (8, false));
        assert_eq!(done.metrics.get("eval_num_pairs"), Some(3.0));
        assert_eq!(Job::total_steps(&flags(&["--batch", "2", "--accumulate", "2"]), &pairs(7)?)?, 2);

        // Before its first step, between two checkpoints, and at an end that is moved.
        assert!(run(&broken, &long, Some(0)).is_err());
        assert!(run(&broken, &long, Some(5)).is_err());
        let (short, _) = run(&broken, &["--epochs", "3", "--save-every", "3"], None)?;
        assert_eq!(short.steps, 6);
        for _ in 0..2 {
            let (again, found) = run(&broken, &long, None)?;
            assert_eq!((again.steps, &again.metrics, &found), (8, &done.metrics, &expected));
            assert_eq!(logged(&broken)?, logged(&straight)?);
        }
        let refused = |line: &[&str]| run(&broken, line, None).err().map(|error| error.to_string());
        let says = |line: &[&str], words: &str| refused(line).is_some_and(|error| error.contains(words));
        assert!(says(&["--epochs", "4", "--seed", "1"], "seed = 0, not 1"));
        // Its model would be that of all eight steps.
        assert!(says(&["--epochs", "2"], "has taken 8 steps, and is to have 4"));
        Ok(())
    }

    #[test]
    fn the_best_model_is_taken() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (last, _) = run(folder.path(), &["--epochs", "20"], None)?;
        let (best, _) = run(folder.path(), &["--epochs", "20", "--export", "best"], None)?;
        let losses = logged(folder.path())?.into_iter().filter(|(step, _)| *step > 0);
        let losses = losses.flat_map(|(_, numbers)| numbers).filter(|(name, _)| name == "eval_loss");
        let least = losses.map(|(_, loss)| loss).fold(f64::INFINITY, f64::min);
        assert_eq!(best.metrics.get("eval_loss"), Some(least));
        assert!(last.metrics.get("eval_loss").is_some_and(|loss| loss > least), "there is something to choose");
        Ok(())
    }
}
