//! Losses of single responses: the pairs' own, the chosen ones desirable. KTO's baseline is an estimate of KL(π ‖
//! π_ref).

use std::{cell::RefCell, rc::Rc};

use prefopt::{
    Result, diagnostics::batch_metrics, logps::response_logps_of, loss::UnpairedLoss, packed::PackedRow,
    pairs::UnpairedBatch, train::RunningMean,
};
use tch::Kind;

use super::{
    forward::Forward,
    numbered::{self, wide},
    reference::Live,
};
use crate::trainers::Measured;

/// Where z comes from.
pub enum Baseline<'a> {
    /// The loss reads none.
    None,
    /// Each response with the next pair's prompt, as TRL has it, or the next other one: z is the mean of their
    /// log-ratios.
    Mismatched(&'a Live),
    /// Without a reference at hand: a running mean of the pairs' own log-ratios.
    Running(Rc<RefCell<RunningMean>>),
}

pub struct Unpaired<'a> {
    pub forward: Forward<'a>,
    pub loss: Box<dyn UnpairedLoss>,
    pub baseline: Baseline<'a>,
    /// Of the metrics.
    pub beta: f64,
}

impl Unpaired<'_> {
    pub fn measured(&self, indices: &[usize]) -> Result<Measured> {
        let batch = self.forward.batch(indices)?;
        let unpaired = UnpairedBatch::of_pairs(batch.logps());
        let unpaired = match &self.baseline {
            Baseline::None => unpaired,
            Baseline::Mismatched(live) => self.with_mismatched(unpaired, live, indices)?,
            Baseline::Running(mean) => with_running(unpaired, mean)?,
        };
        let metrics = batch_metrics(&batch, self.beta)?;
        Ok(Measured { loss: self.loss.mean(&unpaired)?, weight: indices.len() as f64, metrics })
    }

    fn with_mismatched(&self, batch: UnpairedBatch, live: &Live, indices: &[usize]) -> Result<UnpairedBatch> {
        let _no_grad = tch::no_grad_guard();
        let model = &self.forward.setting.policy.model;
        let row = self.mismatched(indices)?;
        batch.with_mismatched(&response_logps_of(model, &row)?.sums, &live.logps(model, &row)?)
    }

    /// Both responses of each pair behind another prompt. What the context has no room for is cut.
    fn mismatched(&self, indices: &[usize]) -> Result<PackedRow> {
        let setting = self.forward.setting;
        let context = usize::try_from(setting.policy.model.config().context()).unwrap_or(usize::MAX);
        let (mut prompts, mut responses) = (Vec::with_capacity(indices.len()), Vec::with_capacity(2 * indices.len()));
        for (place, &index) in indices.iter().enumerate() {
            let (prompt, pair) = (wide(self.other_prompt(indices, place)?), setting.pairs.pair(index)?);
            let room = context.saturating_sub(prompt.len());
            responses.extend([pair.chosen, pair.rejected].map(|own| wide(&own[..own.len().min(room)])));
            prompts.push(prompt);
        }
        numbered::row(&prompts, &responses, 2, setting.device())
    }

    /// That of the next pair of the batch with another prompt than the pair at `place` has, of the data set where the
    /// batch has none; of a data set of one prompt that one.
    fn other_prompt(&self, indices: &[usize], place: usize) -> Result<&[u32]> {
        let pairs = &self.forward.setting.pairs;
        let own = pairs.pair(indices[place])?.prompt;
        let behind = indices[place + 1..].iter().chain(&indices[..place]).copied();
        let all = (1..pairs.len()).map(|steps| (indices[place] + steps) % pairs.len());
        for index in behind.chain(all) {
            let prompt = pairs.pair(index)?.prompt;
            if prompt != own {
                return Ok(prompt);
            }
        }
        Ok(own)
    }
}

/// z is the mean so far, with this batch where it is trained on, and 0 where that is negative.
fn with_running(batch: UnpairedBatch, mean: &RefCell<RunningMean>) -> Result<UnpairedBatch> {
    let (log_ratio, so_far) = (batch.log_ratio(), mean.borrow().mean());
    let own = || log_ratio.detach().mean(Kind::Double).f_double_value(&[]);
    // Under an evaluation's guard there is no gradient, and the run must not depend on when it is evaluated.
    let baseline = match (log_ratio.requires_grad(), so_far) {
        (false, Some(so_far)) => so_far,
        (false, None) => own()?,
        (true, _) => mean.borrow_mut().observe(own()?, batch.len() as f64)?,
    };
    batch.with_baseline(baseline.max(0.0))
}
