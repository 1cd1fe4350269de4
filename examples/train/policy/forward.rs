//! From pairs to a batch with every column that the loss reads, in one row of tokens.

use std::cell::{Cell, RefCell};

use prefopt::{
    PairLogps, PreferenceBatch, ResponseLengths, ResponseTable, Result,
    lm::CausalLm,
    logps::{Decoder, TokenScores, VocabularyHead, response_logps_of, response_scores_of},
    packed::{PackedRow, Readout},
};
use tch::{Device, Tensor};

use super::{
    beside::Beside,
    numbered::{self, Numbered, wide},
    reference::Live,
    samples::{Draw, Purpose},
    student::Student,
    tokens,
};
use crate::{
    flags::PolicyFlags,
    loss::{Needs, Transform},
};

/// What is trained.
pub struct Policy {
    pub model: CausalLm,
    pub student: Option<Student>,
}

impl Policy {
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let mut parameters = self.model.parameters();
        parameters.extend(self.student.iter().flat_map(Student::parameters));
        parameters
    }
}

/// What every objective is computed from.
pub struct Setting<'a> {
    pub flags: &'a PolicyFlags,
    pub policy: Policy,
    pub pairs: Numbered<'a>,
    pub draw: Draw,
    pub live: Option<Live>,
    /// Whether the policy starts as its reference.
    pub from_reference: bool,
    /// Taken so far, by which samples are seeded.
    pub steps: Cell<u64>,
}

impl Setting<'_> {
    pub fn device(&self) -> Device {
        self.policy.model.device()
    }

    /// Continuations of the policy as it is, the same again for the same pairs at the same step.
    pub fn drawn(&self, purpose: Purpose, prompts: &[Vec<i64>], indices: &[usize]) -> Result<Vec<Vec<i64>>> {
        let place = indices.first().copied().unwrap_or_default();
        self.draw.draw(&self.policy.model, prompts, &mut self.draw.rng(purpose, self.steps.get(), place))
    }
}

/// The forward pass of a loss of pairs, or of their responses.
pub struct Forward<'a> {
    pub setting: &'a Setting<'a>,
    pub beside: &'a Beside,
    pub needs: Needs,
    pub transform: Transform,
}

/// A batch in tokens: of each prompt the chosen response, the rejected one, samples of the reference, samples of the
/// policy.
struct Tokens {
    prompts: Vec<Vec<i64>>,
    responses: Vec<Vec<i64>>,
    /// Responses of a prompt.
    each: usize,
    /// Samples of the policy, prompt by prompt.
    own: Option<Vec<Vec<i64>>>,
}

impl Forward<'_> {
    /// Nothing here waits for the device but the library's own checks, and sampling.
    pub fn batch(&self, indices: &[usize]) -> Result<PreferenceBatch> {
        let (setting, beside, device) = (self.setting, self.beside, self.setting.device());
        let (model, tokens) = (&setting.policy.model, self.tokens(indices)?);
        let (each, samples) = (tokens.each as i64, setting.draw.each as i64);
        let row = numbered::row(&tokens.prompts, &tokens.responses, tokens.each, device)?;
        let numbers: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        let index = Tensor::from_slice(&numbers).to_device(device);

        let scored = Scored::of(model, &row, self.needs)?;
        let (sums, lengths) = (scored.sums.view([-1, each]), scored.lengths.view([-1, each]));
        let of_pairs = || tokens::OfPairs::new(&tokens.responses, tokens.each, &lengths);
        let [chosen, rejected] = match (self.transform, &scored.tokens) {
            (Transform::LengthDesensitised(weight), Some(logps)) => of_pairs().desensitised(logps, weight)?,
            _ => [sums.select(1, 0), sums.select(1, 1)],
        };
        let [ref_chosen, ref_rejected] = match &beside.reference {
            Some(columns) => columns.each_ref().map(|column| column.index_select(0, &index)),
            // As PairLogps::reference_free has it.
            None => [chosen.zeros_like(), rejected.zeros_like()],
        };
        let lengths = ResponseLengths::new(lengths.select(1, 0), lengths.select(1, 1))?;
        let logps = PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?;
        let logps = match self.transform {
            Transform::PerToken => logps.per_token(&lengths)?,
            Transform::ReferenceFree => logps.reference_free(),
            Transform::None | Transform::LengthDesensitised(_) => logps,
        };

        let labels = beside.labels.index_select(0, &index);
        let mut batch = PreferenceBatch::new(logps).with_lengths(lengths)?.with_soft_labels(labels)?;
        if let Some(weights) = &beside.weights {
            batch = batch.with_weights(weights.index_select(0, &index))?;
        }
        if let Some(rewards) = &beside.rewards {
            batch = batch.with_rewards(rewards.select(&index)?)?;
        }
        if let Some(reference) = &beside.samples {
            let table = ResponseTable::new(sums.narrow(1, 2, samples), reference.logps.index_select(0, &index))?;
            batch = batch.with_reference_samples(table)?;
        }
        if let (Some(own), Some(live)) = (&tokens.own, &setting.live) {
            let of_own = numbered::row(&tokens.prompts, own, setting.draw.each, device)?;
            let reference = live.logps(model, &of_own)?.view([-1, samples]);
            let table = ResponseTable::new(sums.narrow(1, each - samples, samples), reference)?;
            batch = batch.with_policy_samples(table)?;
        }
        if let Some(student) = &setting.policy.student {
            batch = batch.with_student_scores(student.scores(model, &row, each)?)?;
        }
        if let (Some(hidden), Some(logps)) = (&scored.hidden, &scored.tokens) {
            batch = batch.with_policy_weights(of_pairs().policy_weights(model, hidden, logps)?)?;
        }
        Ok(batch)
    }

    fn tokens(&self, indices: &[usize]) -> Result<Tokens> {
        let (setting, each) = (self.setting, self.setting.draw.each);
        let prompts = setting.pairs.prompts(indices)?;
        let own = match self.needs.policy_samples {
            true => Some(setting.drawn(Purpose::Policy, &prompts, indices)?),
            false => None,
        };
        let mut responses = Vec::new();
        for (place, &index) in indices.iter().enumerate() {
            let pair = setting.pairs.pair(index)?;
            responses.extend([wide(pair.chosen), wide(pair.rejected)]);
            if let Some(samples) = &self.beside.samples {
                responses.extend_from_slice(samples.of_pair(index));
            }
            if let Some(own) = &own {
                responses.extend_from_slice(&own[place * each..][..each]);
            }
        }
        let each = responses.len() / indices.len().max(1);
        Ok(Tokens { prompts, responses, each, own })
    }
}

/// Log-probabilities of a row's responses, and what of their tokens the loss reads.
struct Scored {
    /// `[responses]`, nats.
    sums: Tensor,
    /// `[responses]`.
    lengths: Tensor,
    /// Of each token, `[tokens]`, nats.
    tokens: Option<Tensor>,
    /// What they were computed from, without a gradient: rows of [`PackedRow::predicting`].
    hidden: Option<Tensor>,
}

impl Scored {
    fn of(model: &CausalLm, row: &PackedRow, needs: Needs) -> Result<Self> {
        if !needs.policy_weights && needs.tail_weight.is_none() {
            let logps = response_logps_of(model, row)?;
            return Ok(Self { sums: logps.sums, lengths: logps.lengths, tokens: None, hidden: None });
        }
        let tap = Tap { model, seen: RefCell::new(None) };
        let (logps, TokenScores { logps: tokens, .. }) = response_scores_of(&tap, row)?;
        let hidden = tap.seen.into_inner().filter(|_| needs.policy_weights);
        Ok(Self { sums: logps.sums, lengths: logps.lengths, tokens: Some(tokens), hidden })
    }
}

/// A decoder that keeps the hidden states it gave last, so that WPO's weights cost no second pass through the trunk.
struct Tap<'a> {
    model: &'a CausalLm,
    seen: RefCell<Option<Tensor>>,
}

impl Decoder for Tap<'_> {
    fn hidden(&self, row: &PackedRow, readout: &Readout) -> Result<Tensor> {
        let hidden = self.model.hidden(row, readout)?;
        *self.seen.borrow_mut() = Some(hidden.detach());
        Ok(hidden)
    }

    fn head(&self) -> Result<VocabularyHead> {
        self.model.head()
    }
}
