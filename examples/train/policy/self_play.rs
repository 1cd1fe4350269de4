//! Self-play: samples of the policy against each other, by the scores of reward models; one step on each set of
//! samples.

use std::{iter, path::PathBuf};

use anyhow::{Context, Result, ensure};
use prefopt::{
    ResponseTable,
    diagnostics::Metrics,
    lm::RewardModel,
    logps::response_logps_of,
    loss::{Gpo, scores_against},
};
use tch::{Device, Kind, Tensor};

use super::{
    forward::Setting,
    numbered::{self, Numbered},
    samples::Purpose,
};
use crate::{columns, flags::PolicyFlags, models, tail::Tail, trainers::Measured};

pub struct SelfPlay<'a> {
    pub setting: &'a Setting<'a>,
    pub loss: Gpo,
    pub judges: Judges,
}

/// Reward models that score samples as they are drawn.
pub struct Judges {
    models: Vec<RewardModel>,
    scale: f64,
    tail: Tail,
}

impl Judges {
    pub fn load(flags: &PolicyFlags, members: &[PathBuf], pairs: &Numbered, place: (Device, Kind)) -> Result<Self> {
        let (teachers, loss) = (&flags.teachers, &flags.loss);
        ensure!(
            !members.is_empty(),
            "--loss {loss} scores samples of the policy, which no data bring: give reward models with --rewards"
        );
        ensure!(
            !teachers.standardise,
            "--standardise goes by the scores of a whole data set, and --loss {loss} scores samples as they are drawn: leave it out, or use --reward-scale"
        );
        let scale = columns::scale(teachers)?;
        ensure!(
            flags.samples.get() > 1,
            "--loss {loss} compares the samples of a prompt with each other: give --samples 2 or more"
        );
        let load = |folder: &PathBuf| {
            RewardModel::load(folder, place.0, place.1).with_context(|| folder.display().to_string())
        };
        let judges = members.iter().map(load).collect::<Result<Vec<_>>>()?;
        let members: i64 = judges.iter().map(RewardModel::members).sum();
        if members > 1 {
            eprintln!("--loss {loss} reads one reward model: the mean of the {members} is taken");
        }
        let chosen = pairs.parts().into_iter().flat_map(|(_, part)| part.iter().map(|pair| pair.chosen));
        let tail = Tail::of_responses(models::tokenizer(&flags.model.model)?.end(), chosen);
        Ok(Self { models: judges, scale, tail })
    }

    /// The mean over all members, `[responses]`, of samples of a policy with so many positions.
    fn scores(&self, prompts: &[Vec<i64>], drawn: &[Vec<i64>], each: usize, context: usize) -> prefopt::Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let owners = prompts.iter().flat_map(|prompt| iter::repeat_n(prompt, each));
        let whole = owners.zip(drawn).map(|(prompt, sample)| self.tail.complete(sample, context - prompt.len()));
        let device = self.models.first().map_or(Device::Cpu, RewardModel::device);
        let row = numbered::row(prompts, &whole.collect::<Vec<_>>(), each, device)?;
        let scores =
            self.models.iter().map(|model| model.response_scores(&row)).collect::<prefopt::Result<Vec<_>>>()?;
        let scores = Tensor::f_cat(&scores, 0)?;
        Ok(scores.f_mean_dim([0].as_slice(), false, scores.kind())? * self.scale)
    }
}

impl SelfPlay<'_> {
    /// Of the prompts of these pairs; their responses are not read.
    pub fn measured(&self, indices: &[usize]) -> prefopt::Result<Measured> {
        let (setting, each) = (self.setting, self.setting.draw.each);
        let prompts = setting.pairs.prompts(indices)?;
        let drawn = setting.drawn(Purpose::SelfPlay, &prompts, indices)?;
        let row = numbered::row(&prompts, &drawn, each, setting.device())?;
        let logps = response_logps_of(&setting.policy.model, &row)?.sums.view([-1, each as i64]);
        // π_t is the policy as it is: each set of samples is for one step.
        let responses = ResponseTable::new(logps.shallow_clone(), logps.detach())?;
        let rewards = self
            .judges
            .scores(&prompts, &drawn, each, setting.draw.context)?
            .view([-1, each as i64])
            .to_kind(logps.kind());
        let scores = scores_against(&(rewards.unsqueeze(2) - rewards.unsqueeze(1)))?;
        let tokens: usize = drawn.iter().map(Vec::len).sum();
        let metrics = Metrics::default()
            .with("self_play/reward", rewards.mean(Kind::Double).f_double_value(&[])?)
            .with("self_play/length", tokens as f64 / drawn.len() as f64)
            .with("num_tokens", tokens as f64)
            .with("num_pairs", indices.len() as f64);
        Ok(Measured { loss: self.loss.mean(&responses, &scores)?, weight: indices.len() as f64, metrics })
    }
}
