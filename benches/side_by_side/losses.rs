//! A loss alone, forward and backward, on 1,024 pairs.

use anyhow::{Context, Result};
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, RewardScores,
    loss::{Dpo, Ipo, PessimisticDistillation, RewardDistillation},
};
use tch::{Device, Kind, Tensor};

use crate::measure::{Table, peer, race};

const PAIRS: i64 = 1024;
const MEMBERS: i64 = 8;
/// Losses taken in one turn.
const REPEATS: usize = 200;

struct Case {
    policy: [Tensor; 2],
    reference: [Tensor; 2],
    scores: Option<RewardScores>,
    loss: Box<dyn PreferenceLoss>,
}

impl Case {
    fn new(loss: impl PreferenceLoss + 'static, members: i64) -> Result<Self> {
        let column = || Tensor::randn([PAIRS], (Kind::Float, Device::Cpu)) * 3.0 - 60.0;
        let scores = || Tensor::randn([members, PAIRS], (Kind::Float, Device::Cpu));
        Ok(Self {
            policy: [column().set_requires_grad(true), column().set_requires_grad(true)],
            reference: [column(), column()],
            scores: if members > 0 { Some(RewardScores::new(scores(), scores())?) } else { None },
            loss: Box::new(loss),
        })
    }

    /// What a training loop does with the log-probabilities that it has: batch, loss, gradients.
    fn run(&mut self) -> Result<()> {
        for _ in 0..REPEATS {
            let [chosen, rejected] = self.policy.each_ref().map(Tensor::shallow_clone);
            let [ref_chosen, ref_rejected] = self.reference.each_ref().map(Tensor::shallow_clone);
            let mut batch = PreferenceBatch::new(PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?);
            if let Some(scores) = &self.scores {
                batch = batch.with_rewards(scores.detached())?;
            }
            let _gradients = Tensor::f_run_backward(&[self.loss.mean(&batch)?], &self.policy, false, false)?;
        }
        Ok(())
    }
}

pub fn run(table: &mut Table) -> Result<()> {
    table.heading(&format!("a loss of {PAIRS} pairs, forward and backward"));
    let mut dpo = Case::new(Dpo::new(0.1)?, 0)?;
    let mut ipo = Case::new(Ipo::new(0.1)?, 0)?;
    let mut d_dpo = Case::new(RewardDistillation::new(0.1)?, 1)?;
    let mut e_dpo = Case::new(PessimisticDistillation::new(0.1)?, MEMBERS)?;
    let names = ["dpo", "ipo", "d_dpo", "e_dpo"];
    let seconds = race(9, [&mut || dpo.run(), &mut || ipo.run(), &mut || d_dpo.run(), &mut || e_dpo.run()])?;
    let seconds = seconds.map(|s| s / REPEATS as f64);
    let (pairs, members) = (PAIRS.to_string(), MEMBERS.to_string());
    for (name, ours) in names.into_iter().zip(seconds) {
        table.row("losses", &format!("prefopt: {name}"), ours, None);
        for line in peer(&["loss", name, &pairs, "--members", &members])? {
            let theirs = line["seconds"].as_f64().context("peer.py gave no seconds")?;
            let threads = line["threads"].as_i64().unwrap_or_default();
            table.row("losses", &format!("peer: {name}, eager PyTorch, {threads} thread(s)"), theirs, None);
            table.ratio("prefopt / peer", ours, theirs);
        }
    }
    table.ratio(&format!("e-DPO of {MEMBERS} members / DPO"), seconds[3], seconds[0]);
    Ok(())
}
