//! A policy over each prompt's candidates: training by one method, and the judge's figures on held-out prompts.

use anyhow::Result;
use prefopt::{PairLogps, PreferenceBatch, PreferenceLoss, RewardScores};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    family::Family,
    support::network::{Mlp, descend, indices, matrix, numbers, vector},
    world::{FEATURES, RESPONSES, Split, is_scarce, reference},
};

const HIDDEN: i64 = 16;
const RATE: f64 = 0.02;

/// What the judge, who knows the gold reward, says of a policy, less the same of the reference. Nats but for the last.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Outcome {
    /// Expected gold reward of the policy's response, over all held-out prompts.
    pub overall: f64,
    /// The same over the prompts of the uncertain pairs: the quarter of the held-out pairs on whose margin the family disagrees most.
    pub prompts: f64,
    /// Expected gold reward when the policy has to choose between the two responses of an uncertain pair.
    pub pairs: f64,
    /// Probability of a response of the scarce kind (not less the reference's).
    pub scarce: f64,
}

/// A split as tensors.
struct Prompts {
    features: Tensor,
    /// `[prompts, 1]`.
    chosen: Tensor,
    rejected: Tensor,
    /// log π_ref, `[responses]`.
    reference: Tensor,
}

impl Prompts {
    fn new(split: &Split) -> Self {
        Self {
            features: matrix(&split.features, FEATURES as i64),
            chosen: indices(&split.chosen).unsqueeze(1),
            rejected: indices(&split.rejected).unsqueeze(1),
            reference: vector(&reference()).log(),
        }
    }

    /// log π, `[prompts, responses]`: the reference's logits and the network's.
    fn policy(&self, network: &Mlp) -> Tensor {
        let logits = network.forward(&self.features).view([-1, RESPONSES as i64]);
        (logits + &self.reference).log_softmax(1, Kind::Float)
    }

    /// Of a table `[prompts, responses]` what belongs to the chosen and to the rejected responses, `[prompts]` each.
    fn pair(&self, table: &Tensor) -> [Tensor; 2] {
        [&self.chosen, &self.rejected].map(|responses| table.gather(1, responses, false).squeeze_dim(1))
    }

    /// log π_ref of every prompt's responses, `[prompts, responses]`.
    fn references(&self) -> Tensor {
        self.reference.unsqueeze(0).expand([self.chosen.size()[0], RESPONSES as i64], false)
    }
}

/// A policy after `steps` updates on the whole of the training pairs.
pub fn train(split: &Split, scores: &RewardScores, loss: &dyn PreferenceLoss, steps: usize, seed: u64) -> Result<Mlp> {
    let (prompts, network) = (Prompts::new(split), Mlp::new(FEATURES as i64, HIDDEN, 1, seed)?);
    let references = prompts.pair(&prompts.references());
    descend(network.parameters(), steps, RATE, |_| {
        let [chosen, rejected] = prompts.pair(&prompts.policy(&network));
        let [ref_chosen, ref_rejected] = references.each_ref().map(Tensor::shallow_clone);
        let logps = PairLogps::new(chosen, rejected, ref_chosen, ref_rejected)?;
        Ok(loss.mean(&PreferenceBatch::new(logps).with_rewards(scores.detached())?)?)
    })?;
    Ok(network)
}

pub fn judge(split: &Split, family: &Family, network: &Mlp) -> Result<Outcome> {
    let _no_grad = tch::no_grad_guard();
    let prompts = Prompts::new(split);
    let (policy, references) = (prompts.policy(network), prompts.references());
    let gold = matrix(&split.gold, RESPONSES as i64);
    let gained = ((policy.exp() - references.exp()) * &gold).sum_dim_intlist([1].as_slice(), false, Kind::Float);
    let [gold_chosen, gold_rejected] = prompts.pair(&gold);
    // Of the two responses alone π(y_w) is σ(log π(y_w) − log π(y_l)).
    let choice = |table: &Tensor| {
        let [chosen, rejected] = prompts.pair(table);
        (chosen - rejected).sigmoid()
    };
    let chosen = (choice(&policy) - choice(&references)) * (gold_chosen - gold_rejected);
    let (gained, chosen) = (numbers(&gained)?, numbers(&chosen)?);
    let uncertain = largest_quarter(&numbers(&family.held_out.centred()?.margin_uncertainty())?);
    let masses = numbers(&policy.exp().mean_dim([0].as_slice(), false, Kind::Float))?;
    let mean = |values: &[f64], of: &[usize]| of.iter().map(|&i| values[i]).sum::<f64>() / of.len() as f64;
    Ok(Outcome {
        overall: gained.iter().sum::<f64>() / gained.len() as f64,
        prompts: mean(&gained, &uncertain),
        pairs: mean(&chosen, &uncertain),
        scarce: masses.iter().enumerate().filter(|(response, _)| is_scarce(*response)).map(|(_, mass)| mass).sum(),
    })
}

/// Indices of the largest quarter of the values, one at least.
fn largest_quarter(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(values.len().div_ceil(4));
    order
}
