//! From lists of token ids to log-probabilities and last hidden states.

use prefopt::{Result, logps::token_logps};
use tch::{Device, Kind, Tensor};

use crate::support::{gpt::Gpt, stories::END};

/// Prompts with responses, padded on the right.
pub struct Sequences {
    tokens: Tensor,
    /// True where the *next* token belongs to the response, `[rows, time]`.
    scored: Tensor,
    /// Index of each row's last token, `[rows]`.
    last: Tensor,
}

impl Sequences {
    pub fn new<'a>(rows: impl IntoIterator<Item = (&'a [i64], &'a [i64])>, device: Device) -> Self {
        let rows: Vec<_> = rows.into_iter().collect();
        let time = rows.iter().map(|(p, r)| p.len() + r.len()).max().unwrap_or(1);
        let mut tokens = vec![END; rows.len() * time];
        let mut scored = vec![false; rows.len() * time];
        let mut last = Vec::with_capacity(rows.len());
        for (i, (prompt, response)) in rows.iter().enumerate() {
            let (start, end) = (i * time, prompt.len() + response.len());
            tokens[start..][..prompt.len()].copy_from_slice(prompt);
            tokens[start + prompt.len()..][..response.len()].copy_from_slice(response);
            scored[start + prompt.len() - 1..start + end - 1].fill(true);
            last.push(end as i64 - 1);
        }
        let size = [rows.len() as i64, time as i64];
        Self {
            tokens: Tensor::from_slice(&tokens).view(size).to(device),
            scored: Tensor::from_slice(&scored).view(size).to(device),
            last: Tensor::from_slice(&last).to(device),
        }
    }

    /// log π of each row's response, `[rows]`, nats: the vocabulary head sees response tokens alone.
    pub fn logps(&self, gpt: &Gpt) -> Result<Tensor> {
        let at = self.scored.flatten(0, -1).nonzero().squeeze_dim(1);
        let hidden = gpt.hidden(&self.tokens).reshape([-1, gpt.config.width]).f_index_select(0, &at)?;
        let targets = self.tokens.flatten(0, -1).f_index_select(0, &(&at + 1))?;
        let per_token = token_logps(&gpt.logits(&hidden), &targets)?;
        let size = self.tokens.size();
        let row = at.divide_scalar_mode(size[1], "floor");
        Ok(Tensor::zeros([size[0]], (Kind::Float, at.device())).f_index_add(0, &row, &per_token)?)
    }

    /// Hidden state of each row's last token, `[rows, width]`: what a reward head reads.
    pub fn last_hidden(&self, gpt: &Gpt) -> Tensor {
        let hidden = gpt.hidden(&self.tokens);
        let index = self.last.view([-1, 1, 1]).expand([-1, 1, gpt.config.width], false);
        hidden.gather(1, &index, false).squeeze_dim(1)
    }
}
