//! How far the policy has gone from the reference, by its own samples.

use std::collections::HashSet;

use anyhow::Result;
use prefopt::{
    ResponseTable,
    data::PairDataset,
    diagnostics::{Metrics, sample_metrics},
    logps::response_logps_of,
};
use tch::{Device, Kind, Tensor};

use super::{
    forward::Setting,
    numbered::{self, wide},
    reference::{self, Live},
    samples::Purpose,
};
use crate::columns::{self, BATCH_TOKENS};

/// The first different prompts.
pub fn prompts(pairs: &PairDataset, most: usize) -> Vec<Vec<i64>> {
    let mut seen = HashSet::new();
    pairs.iter().filter(|pair| seen.insert(pair.prompt)).take(most).map(|pair| wide(pair.prompt)).collect()
}

/// Samples of the policy after so many steps, at temperature 1, with random numbers that are the same at each
/// evaluation, under the policy and the reference.
pub fn divergence(setting: &Setting, step: u64, prompts: &[Vec<i64>], place: (Device, Kind)) -> Result<Metrics> {
    if prompts.is_empty() {
        return Ok(Metrics::default());
    }
    let _no_grad = tch::no_grad_guard();
    let (draw, model) = (&setting.draw, &setting.policy.model);
    let brief;
    let live = match &setting.live {
        // It is the policy itself.
        _ if step == 0 && setting.from_reference => None,
        Some(live) => Some(live),
        // Held all the time it would take memory that training needs; so it is read for some prompts, and gone after
        // them.
        None => {
            brief = Live::Held(Box::new(reference::read(setting.flags, place)?));
            Some(&brief)
        }
    };
    let mut rng = draw.rng(Purpose::Divergence, 0, 0);
    let (mut policy, mut frozen, mut responses) = (Vec::new(), Vec::new(), Vec::new());
    for run in columns::runs(prompts.iter().map(|prompt| draw.tokens(prompt.len())), BATCH_TOKENS) {
        let prompts = &prompts[run];
        let drawn = draw.draw(model, prompts, &mut rng)?;
        let row = numbered::row(prompts, &drawn, draw.each, setting.device())?;
        let own = response_logps_of(model, &row)?.sums;
        frozen.push(live.map_or_else(|| Ok(own.shallow_clone()), |live| live.logps(model, &row))?);
        policy.push(own);
        responses.extend(drawn);
    }
    let table = |parts: &[Tensor]| -> Result<Tensor> { Ok(Tensor::f_cat(parts, 0)?.f_view([-1, draw.each as i64])?) };
    Ok(sample_metrics(&ResponseTable::new(table(&policy)?, table(&frozen)?)?, &responses)?)
}
