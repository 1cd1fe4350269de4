//! What reads single tokens of the pairs' responses: LD-DPO's sums and WPO's weights.

use prefopt::{PairLogps, Result, lm::CausalLm, logps::log_collision, pairs::TokenLogps};
use tch::{Device, Tensor};

/// Tokens whose logits are held at a time.
const CHUNK: i64 = 256;

/// The chosen and the rejected response of each prompt, the first two of its responses in a row.
pub struct OfPairs<'a> {
    responses: &'a [Vec<i64>],
    each: usize,
    /// `[pairs, each]`.
    lengths: &'a Tensor,
}

impl<'a> OfPairs<'a> {
    pub fn new(responses: &'a [Vec<i64>], each: usize, lengths: &'a Tensor) -> Self {
        Self { responses, each, lengths }
    }

    /// Σ log π over the shared length of both responses, and `weight` times the rest, `[pairs]` of each side, from
    /// the logs of all tokens.
    pub fn desensitised(&self, logps: &Tensor, weight: f64) -> Result<[Tensor; 2]> {
        let [chosen, rejected] = self.sides(logps)?;
        let sums = PairLogps::length_desensitised(&chosen, &rejected, weight)?;
        Ok([sums.chosen().shallow_clone(), sums.rejected().shallow_clone()])
    }

    /// w(y_w)·w(y_l), `[pairs]`, without a gradient, from the hidden states and the log-probabilities of all tokens.
    pub fn policy_weights(&self, model: &CausalLm, hidden: &Tensor, logps: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let alignment = collisions(model, hidden)?.f_index_select(0, &self.predictors(hidden.device()))?;
        // The alignment is taken off token by token here, so that none is left to the weight.
        let aligned = logps.detach().f_sub(&alignment)?;
        let [chosen, rejected] = self.sides(&aligned)?;
        let size = [self.pairs(), self.longest()];
        let none = Tensor::f_zeros(size, (aligned.kind(), aligned.device()))?;
        Ok(chosen.policy_weight(&none)? * rejected.policy_weight(&none)?)
    }

    fn pairs(&self) -> i64 {
        (self.responses.len() / self.each) as i64
    }

    fn is_of_pair(&self, number: usize) -> bool {
        number % self.each < 2
    }

    /// Tokens of the longest response of a pair.
    fn longest(&self) -> i64 {
        let of_pairs = self.responses.iter().enumerate().filter(|(number, _)| self.is_of_pair(*number));
        of_pairs.map(|(_, response)| response.len() as i64).max().unwrap_or_default()
    }

    /// Tables of a number of each token: of the chosen responses and of the rejected ones.
    fn sides(&self, tokens: &Tensor) -> Result<[TokenLogps; 2]> {
        let lengths = self.lengths.f_narrow(1, 0, 2)?.f_reshape([-1])?;
        let own = match self.each {
            2 => tokens.shallow_clone(),
            _ => tokens.f_index_select(0, &self.places(tokens.device()))?,
        };
        TokenLogps::of_packed_pairs(&own, &own.detach(), &lengths)
    }

    /// Where the pairs' tokens stand among those of all responses.
    fn places(&self, device: Device) -> Tensor {
        let (mut places, mut next) = (Vec::new(), 0);
        for (number, response) in self.responses.iter().enumerate() {
            let end = next + response.len() as i64;
            if self.is_of_pair(number) {
                places.extend(next..end);
            }
            next = end;
        }
        Tensor::from_slice(&places).to_device(device)
    }

    /// Of each token of all responses the row of `PackedRow::predicting` that predicts it: these are, prompt by
    /// prompt, the prompt's last token, and of each response in turn all tokens but the last.
    fn predictors(&self, device: Device) -> Tensor {
        let (mut predictors, mut next) = (Vec::new(), 0);
        for responses in self.responses.chunks(self.each) {
            let last_of_prompt = next;
            next += 1;
            for response in responses {
                let end = next + response.len() as i64 - 1;
                predictors.push(last_of_prompt);
                predictors.extend(next..end);
                next = end;
            }
        }
        Tensor::from_slice(&predictors).to_device(device)
    }
}

/// log Σ_v π(v)² of what follows each hidden state, `[tokens]`.
fn collisions(model: &CausalLm, hidden: &Tensor) -> Result<Tensor> {
    let head = vocabulary(model).f_tr()?;
    let parts = hidden.f_split(CHUNK, 0)?;
    let parts = parts.iter().map(|part| log_collision(&part.f_matmul(&head)?)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// The matrix from hidden states to logits, `[vocab, width]`: the head's, or the embedding's where they are tied.
fn vocabulary(model: &CausalLm) -> Tensor {
    let of =
        |wanted: &str| model.named_parameters().find(|(name, _)| *name == wanted).map(|(_, tensor)| tensor.detach());
    let names = ["lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"];
    names.into_iter().find_map(of).expect("a decoder has an embedding")
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn tokens_are_found_in_the_row() -> anyhow::Result<()> {
        // Prompts with the responses 2 + 1 + 3 and 1 + 2 + 1 tokens, of which the last of each is a sample.
        let responses: Vec<Vec<i64>> = [2, 1, 3, 1, 2, 1].iter().map(|&length| vec![7; length]).collect();
        let lengths = Tensor::from_slice(&[2_i64, 1, 3, 1, 2, 1]).view([2, 3]);
        let of_pairs = OfPairs::new(&responses, 3, &lengths);
        assert_eq!(Vec::<i64>::try_from(of_pairs.places(Device::Cpu))?, [0, 1, 2, 6, 7, 8]);
        assert_eq!(Vec::<i64>::try_from(of_pairs.predictors(Device::Cpu))?, [0, 1, 0, 0, 2, 3, 4, 4, 5, 4]);
        assert_eq!((of_pairs.pairs(), of_pairs.longest()), (2, 2));
        let ones = Tensor::ones([10], (Kind::Float, Device::Cpu));
        let [chosen, rejected] = of_pairs.desensitised(&ones, 0.5)?;
        assert_eq!(Vec::<f64>::try_from(chosen)?, [1.5, 1.0]);
        assert_eq!(Vec::<f64>::try_from(rejected)?, [1.0, 1.5]);
        Ok(())
    }
}
