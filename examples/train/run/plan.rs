//! Which batches make a step, and after which steps something is due.

use std::num::NonZeroUsize;

use anyhow::{Result, ensure};
use prefopt::{
    data::{Batches, Batching, PairDataset},
    train::Position,
};

use crate::flags::RunFlags;

/// Batches of the size that the flags say.
pub fn batching(flags: &RunFlags) -> Batching {
    let batching = match flags.batch_tokens {
        Some(tokens) => Batching::by_tokens(tokens),
        None => Batching::by_pairs(flags.batch),
    };
    match flags.bucket {
        Some(pairs) => batching.bucketed(pairs),
        None => batching,
    }
}

/// A run's steps. A step is so many consecutive batches of an epoch; the last of the epoch takes what is left.
///
/// Everything here follows from the flags, the pairs, and the position. Nothing is drawn from torch's generator, here
/// or in a forward pass (no decoder has dropout), so a run that goes on bit for bit need not save that generator's
/// state.
#[derive(Debug)]
pub struct Plan<'a> {
    pairs: &'a PairDataset,
    batching: Batching,
    seed: u64,
    accumulate: NonZeroUsize,
    total: u64,
    eval_every: u64,
    save_every: u64,
}

impl<'a> Plan<'a> {
    pub fn new(flags: &RunFlags, pairs: &'a PairDataset) -> Result<Self> {
        let counts = [
            ("--epochs", Some(flags.epochs)),
            ("--max-steps", flags.max_steps),
            ("--eval-every", flags.eval_every),
            ("--save-every", flags.save_every),
        ];
        for (flag, count) in counts {
            ensure!(count != Some(0), "{flag} must be at least 1");
        }
        let (batching, seed, accumulate) = (batching(flags), flags.seed, flags.accumulate);
        let steps =
            |epoch| -> Result<u64> { Ok(batching.epoch(pairs, seed, epoch)?.len().div_ceil(accumulate.get()) as u64) };
        // Also where the epochs do not matter: pairs that no batch has room for are refused here.
        let first = steps(0)?;
        let total = match (flags.max_steps, flags.batch_tokens) {
            (Some(steps), _) => steps,
            (None, None) => first.saturating_mul(flags.epochs),
            // How many pairs there is room for depends on their order.
            (None, Some(_)) => first + (1..flags.epochs).map(steps).sum::<Result<u64>>()?,
        };
        let eval_every = flags.eval_every.unwrap_or_else(|| (total / 10).max(1));
        let save_every = flags.save_every.unwrap_or(eval_every);
        Ok(Self { pairs, batching, seed, accumulate, total, eval_every, save_every })
    }

    /// Steps of the whole run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Batches of a step.
    pub fn accumulate(&self) -> NonZeroUsize {
        self.accumulate
    }

    /// Whether the held-out pairs are due after so many steps.
    pub fn evaluates(&self, steps: u64) -> bool {
        steps.is_multiple_of(self.eval_every) || steps >= self.total
    }

    /// Whether a checkpoint is.
    pub fn saves(&self, steps: u64) -> bool {
        steps > 0 && (steps.is_multiple_of(self.save_every) || steps >= self.total)
    }

    /// Batches of the steps until something is due again, out of those that the epoch has left.
    pub fn until_due(&self, steps: u64) -> usize {
        let next = |every: u64| (steps / every + 1).saturating_mul(every);
        let due = self.total.min(next(self.eval_every)).min(next(self.save_every));
        // More than there are is as good as all.
        usize::try_from(due.saturating_sub(steps)).unwrap_or(usize::MAX).saturating_mul(self.accumulate.get())
    }

    pub fn epoch(&self, number: u64) -> Result<Epoch> {
        Ok(Epoch { number, batches: self.batching.epoch(self.pairs, self.seed, number)? })
    }

    /// Where a run is that was at `at` in `epoch` and has taken so many steps.
    pub fn after(&self, epoch: &Epoch, at: Position, steps: u64) -> Position {
        let batch = at.batch.saturating_add(steps.saturating_mul(self.accumulate.get() as u64));
        if batch >= epoch.batches.len() as u64 {
            Position { epoch: at.epoch + 1, batch: 0 }
        } else {
            Position { batch, ..at }
        }
    }
}

/// The batches of a pass over the pairs.
#[derive(Debug)]
pub struct Epoch {
    pub number: u64,
    batches: Batches,
}

impl Epoch {
    /// Those from a batch on.
    pub fn batches_from(&self, batch: u64) -> impl Iterator<Item = Vec<usize>> {
        let behind = usize::try_from(batch).unwrap_or(usize::MAX);
        self.batches.iter().skip(behind).map(<[usize]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::{flags, pairs};

    fn total(line: &[&str]) -> Result<u64> {
        Ok(Plan::new(&flags(line), &pairs(10)?)?.total())
    }

    #[test]
    fn the_last_step_of_an_epoch_takes_what_is_left() -> Result<()> {
        assert_eq!(total(&["--batch", "3"])?, 4);
        assert_eq!(total(&["--batch", "3", "--accumulate", "3"])?, 2);
        assert_eq!(total(&["--batch", "3", "--accumulate", "3", "--epochs", "5"])?, 10);
        assert_eq!(total(&["--batch", "3", "--max-steps", "7"])?, 7);
        // Three tokens a pair.
        assert_eq!(total(&["--batch-tokens", "7", "--accumulate", "2", "--epochs", "2"])?, 6);
        let (flags, pairs) = (flags(&["--batch", "3", "--accumulate", "3"]), pairs(10)?);
        let plan = Plan::new(&flags, &pairs)?;
        let epoch = plan.epoch(0)?;
        let one = plan.after(&epoch, Position::default(), 1);
        assert_eq!(one, Position { epoch: 0, batch: 3 });
        assert_eq!(epoch.batches_from(one.batch).count(), 1);
        assert_eq!(plan.after(&epoch, one, 1), Position { epoch: 1, batch: 0 });
        Ok(())
    }

    #[test]
    fn every_pair_comes_once_an_epoch() -> Result<()> {
        let (flags, pairs) = (flags(&["--batch-tokens", "10", "--bucket", "4"]), pairs(10)?);
        let plan = Plan::new(&flags, &pairs)?;
        let order = |number| -> Result<Vec<usize>> { Ok(plan.epoch(number)?.batches_from(0).flatten().collect()) };
        let (mut first, mut second) = (order(0)?, order(1)?);
        assert_ne!(first, second);
        first.sort_unstable();
        second.sort_unstable();
        let all: Vec<usize> = (0..10).collect();
        assert_eq!((&first, &second), (&all, &all));
        Ok(())
    }

    #[test]
    fn what_is_due_when() -> Result<()> {
        let (flags, pairs) = (flags(&["--max-steps", "10", "--eval-every", "4", "--save-every", "6"]), pairs(10)?);
        let plan = Plan::new(&flags, &pairs)?;
        let due = |what: &dyn Fn(u64) -> bool| (0..=10).filter(|&steps| what(steps)).collect::<Vec<_>>();
        assert_eq!(due(&|steps| plan.evaluates(steps)), [0, 4, 8, 10]);
        assert_eq!(due(&|steps| plan.saves(steps)), [6, 10]);
        assert_eq!([0, 3, 4, 6, 8, 9].map(|steps| plan.until_due(steps)), [4, 1, 2, 2, 2, 1]);
        let refused = |line: &[&str]| total(line).map_err(|error| error.to_string());
        assert_eq!(refused(&["--epochs", "0"]), Err("--epochs must be at least 1".into()));
        assert!(refused(&["--batch-tokens", "2"]).is_err_and(|error| error.contains("budget of 2")));
        Ok(())
    }
}
