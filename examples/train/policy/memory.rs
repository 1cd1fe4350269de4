//! What a loss remembers from step to step, and how a checkpoint keeps it.

use std::{cell::RefCell, rc::Rc};

use anyhow::{Context, Result};
use prefopt::{
    PreferenceBatch, PreferenceLoss,
    train::{Checkpoint, PolicyTrainer, RunningMean, RunningMinimum},
};
use tch::Device;

use crate::loss::{LossSpec, Moving};

const SUMS: &str = "running_minimum/sums";
const WEIGHT: &str = "running_minimum/weight";
const MEAN: &str = "running_mean";

pub enum Memory {
    Nothing,
    Minimum(Rc<RefCell<RunningMinimum>>),
    Mean(Rc<RefCell<RunningMean>>),
}

type Trains<F> = PolicyTrainer<Vec<usize>, Box<dyn PreferenceLoss>, F>;

impl Memory {
    /// The trainer with the hook that moves what the loss has moving, and what the hook remembers.
    pub fn of<F>(trainer: Trains<F>, spec: &LossSpec) -> Result<(Trains<F>, Self)>
    where
        F: Fn(&Vec<usize>) -> prefopt::Result<PreferenceBatch>,
    {
        let own = spec.clone();
        match spec.moving() {
            None => Ok((trainer, Self::Nothing)),
            Some(Moving::DatasetMinimum) => {
                let distillation =
                    spec.pessimistic()?.context("a minimum over the data set is of a family's losses")?;
                let memory = Rc::new(RefCell::new(RunningMinimum::new()));
                let seen = Rc::clone(&memory);
                let trainer = trainer.before_loss(move |loss, batch| {
                    let mut seen = seen.borrow_mut();
                    seen.observe(&distillation, batch)?;
                    *loss = own.with_member(seen.member()?).expect("it was built with member 0");
                    Ok(())
                });
                Ok((trainer, Self::Minimum(memory)))
            }
            Some(Moving::RewardShift) => {
                let bco = spec.bco()?.context("a running shift is BCO's")?;
                let memory = Rc::new(RefCell::new(RunningMean::new()));
                let seen = Rc::clone(&memory);
                let trainer = trainer.before_loss(move |loss, batch| {
                    let shift = seen.borrow_mut().observe(bco.mean_reward(batch)?, batch.total_weight())?;
                    *loss = own.with_shift(shift).expect("it was built with shift 0, and this one is finite");
                    Ok(())
                });
                Ok((trainer, Self::Mean(memory)))
            }
        }
    }

    pub fn saving(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        Ok(match self {
            Self::Nothing => checkpoint,
            Self::Minimum(memory) => match memory.borrow().sums() {
                Some((sums, weight)) => checkpoint.with_tensor(SUMS, &sums).with_value(WEIGHT, &weight)?,
                None => checkpoint.with_value(WEIGHT, &0.0)?,
            },
            Self::Mean(memory) => checkpoint.with_value(MEAN, &*memory.borrow())?,
        })
    }

    /// The loss as it was after the last step; `None` where it is that of the start.
    pub fn loss(&self, spec: &LossSpec) -> Result<Option<Box<dyn PreferenceLoss>>> {
        match (self, spec.moving()) {
            (Self::Minimum(memory), _) if memory.borrow().sums().is_some() => {
                spec.with_member(memory.borrow().member()?).map(Some)
            }
            (Self::Mean(memory), Some(Moving::RewardShift)) => {
                memory.borrow().mean().map(|shift| spec.with_shift(shift)).transpose()
            }
            _ => Ok(None),
        }
    }

    pub fn resumed(&self, checkpoint: &Checkpoint, device: Device) -> Result<()> {
        match self {
            Self::Nothing => {}
            Self::Minimum(memory) => {
                let weight: f64 = checkpoint.value(WEIGHT)?;
                *memory.borrow_mut() = if weight > 0.0 {
                    RunningMinimum::from_sums(checkpoint.tensor(SUMS)?.to_device(device), weight)?
                } else {
                    RunningMinimum::new()
                };
            }
            Self::Mean(memory) => *memory.borrow_mut() = checkpoint.value(MEAN)?,
        }
        Ok(())
    }
}
