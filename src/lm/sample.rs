use std::num::NonZeroUsize;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{ModelError, Reader, attention::Sight};
use crate::{
    Error, Result,
    domain::{NucleusMass, SamplingTemperature},
    pairs::check::Named,
};

/// How continuations are drawn, token by token, from softmax(logits/T), or the part of it that is left by `top_k` and `top_p`.
///
/// T = 0 is greedy: the most likely token. Of the k most likely tokens (ties at the last are broken by the device), those are left that are needed
/// for a mass of p, renormalised.
///
/// Samples for an estimator of a divergence are those of T = 1 without `top_k` and `top_p`, the default.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use std::num::NonZeroUsize;
/// use prefopt::lm::Sampler;
///
/// let longest = NonZeroUsize::new(64).expect("64 is not 0");
/// let sampler = Sampler::new(longest).with_temperature(0.8)?.with_top_p(0.95)?.with_stop([2]);
/// # let _ = sampler;
/// # Ok(()) }
/// ```
///
/// Source: Fan et al. 2018 for top-k, Holtzman et al. 2020 for top-p (the nucleus).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    #[serde(default)]
    temperature: SamplingTemperature,
    #[serde(default)]
    top_k: Option<NonZeroUsize>,
    #[serde(default)]
    top_p: Option<NucleusMass>,
    #[serde(default)]
    stop: Vec<i64>,
    longest: NonZeroUsize,
}

impl Sampler {
    /// The model's own distribution, `longest` tokens at most, of which the last then need not be an end.
    #[must_use]
    pub fn new(longest: NonZeroUsize) -> Self {
        Self { temperature: SamplingTemperature::default(), top_k: None, top_p: None, stop: Vec::new(), longest }
    }

    /// At temperature T.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless it is at least 0 and finite.
    pub fn with_temperature(self, temperature: f64) -> Result<Self> {
        Ok(Self { temperature: SamplingTemperature::new(temperature)?, ..self })
    }

    /// From the k most likely tokens.
    #[must_use]
    pub fn with_top_k(self, k: NonZeroUsize) -> Self {
        Self { top_k: Some(k), ..self }
    }

    /// From the most likely tokens that have a mass of p together.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless p is above 0 and at most 1.
    pub fn with_top_p(self, p: f64) -> Result<Self> {
        Ok(Self { top_p: Some(NucleusMass::new(p)?), ..self })
    }

    /// Ends a continuation with any of these tokens, [`ModelConfig::end_tokens`](super::ModelConfig::end_tokens) say. It is the last token of
    /// what is returned.
    #[must_use]
    pub fn with_stop(self, tokens: impl IntoIterator<Item = i64>) -> Self {
        Self { stop: tokens.into_iter().collect(), ..self }
    }

    /// One continuation of each prompt, without the prompt. For several of one prompt, repeat it.
    ///
    /// `model` is a [`CausalLm`](super::CausalLm), or a [`Reader`] for samples of the reference. Prompts are padded on the left, so that one pass
    /// serves all lengths, and keys and values are kept. Each prompt has random numbers of its own, seeded from `rng` in order: what is drawn for
    /// it depends neither on the other prompts nor on how they are batched (beyond rounding), nor on torch's generator.
    ///
    /// # Errors
    /// [`NoTokens`](Error::NoTokens) for an empty prompt, [`Element`](Error::Element) for a token outside the vocabulary,
    /// [`Context`](ModelError::Context) when the longest prompt and continuation do not fit the context.
    pub fn sample<'a, P: AsRef<[i64]>>(
        &self,
        model: impl Into<Reader<'a>>,
        prompts: &[P],
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Vec<Vec<i64>>> {
        let _no_grad = tch::no_grad_guard();
        let reader = model.into();
        let prompts: Vec<&[i64]> = prompts.iter().map(AsRef::as_ref).collect();
        if let Some(group) = prompts.iter().position(|prompt| prompt.is_empty()) {
            let reason = "there is nothing to continue; give it a begin-of-sequence token";
            return Err(Error::NoTokens { part: "prompt", group, reason });
        }
        let mut streams: Vec<StdRng> = prompts.iter().map(|_| StdRng::seed_from_u64(rng.random())).collect();
        let Some(width) = prompts.iter().map(|prompt| prompt.len()).max() else { return Ok(Vec::new()) };
        let longest = i64::try_from(self.longest.get()).unwrap_or(i64::MAX);
        let (batch, width) = (prompts.len() as i64, width as i64);
        let (tokens, context) = (width.saturating_add(longest), reader.config().context());
        if tokens > context {
            return Err(ModelError::Context { tokens, context }.into());
        }

        let (device, window) = (reader.device(), reader.config().shape.window());
        // Any token will do for padding: nobody looks at it.
        let mut padded = vec![0; (batch * width) as usize];
        for (row, prompt) in padded.chunks_mut(width as usize).zip(&prompts) {
            row[width as usize - prompt.len()..].copy_from_slice(prompt);
        }
        let start: Vec<i64> = prompts.iter().map(|prompt| width - prompt.len() as i64).collect();
        let start = Tensor::f_from_slice(&start)?.f_to_device(device)?;
        let columns = Tensor::f_arange(tokens, (Kind::Int64, device))?;
        let positions = (columns.f_unsqueeze(0)? - start.f_unsqueeze(1)?).f_clamp_min(0)?;

        let mut past = reader.past(batch, tokens - 1)?;
        let prompt = Tensor::f_from_slice(&padded)?.f_view([batch, width])?.f_to_device(device)?;
        let sight = Sight::new(&start, 0, width, window)?;
        let mut logits = reader.next(&prompt, &positions.f_narrow(1, 0, width)?, &sight, &mut past)?;
        let mut continuations = vec![Vec::new(); prompts.len()];
        for column in width..tokens {
            let uniform: Vec<f64> = streams.iter_mut().map(|stream| stream.random()).collect();
            let drawn = self.draw(&logits, &uniform)?;
            if !self.extend(&mut continuations, &drawn) || column + 1 == tokens {
                break;
            }
            let drawn = Tensor::f_from_slice(&drawn)?.f_unsqueeze(1)?.f_to_device(device)?;
            let sight = Sight::new(&start, column, 1, window)?;
            logits = reader.next(&drawn, &positions.f_narrow(1, column, 1)?, &sight, &mut past)?;
        }
        Ok(continuations)
    }

    /// One token a row of `logits` `[batch, vocab]`, by inverting its cumulative distribution at one number of \[0, 1\).
    fn draw(&self, logits: &Tensor, uniform: &[f64]) -> Result<Vec<i64>> {
        Named::matrix("logits", "[batch, vocab]", logits).elements("finite", &logits.f_isfinite()?)?;
        let temperature = self.temperature.get();
        if temperature == 0.0 {
            return Ok(Vec::try_from(logits.f_argmax(-1, false)?)?);
        }
        let (vocab, scores) = (logits.size()[1], logits.f_to_kind(Kind::Double)?);
        // By the largest, lest a small temperature overflow.
        let scores = (&scores - scores.f_amax([-1].as_slice(), true)?) / temperature;
        let (scores, tokens) = match (self.top_k, self.top_p) {
            (Some(k), _) => {
                let (scores, tokens) = scores.f_topk(k.get().min(vocab as usize) as i64, -1, true, true)?;
                (scores, Some(tokens))
            }
            (None, Some(_)) => {
                let (scores, tokens) = scores.f_sort(-1, true)?;
                (scores, Some(tokens))
            }
            (None, None) => (scores, None),
        };
        let mut mass = scores.f_softmax(-1, Kind::Double)?;
        if let Some(p) = self.top_p {
            let better = mass.f_cumsum(-1, Kind::Double)? - &mass;
            mass *= better.f_lt(p.get())?;
        }
        let cumulative = mass.f_cumsum(-1, Kind::Double)?;
        let whole = cumulative.f_narrow(-1, cumulative.size()[1] - 1, 1)?;
        let level = Tensor::f_from_slice(uniform)?.f_to_device(logits.device())?.f_unsqueeze(1)? * whole;
        let below = cumulative.f_le_tensor(&level)?.f_sum_dim_intlist([-1].as_slice(), true, Kind::Int64)?;
        let drawn = below.f_clamp_max(cumulative.size()[1] - 1)?;
        let drawn = match tokens {
            Some(tokens) => tokens.f_gather(1, &drawn, false)?,
            None => drawn,
        };
        Ok(Vec::try_from(drawn.f_squeeze_dim(1)?)?)
    }

    /// Adds the drawn tokens to what has not ended; false when everything has.
    fn extend(&self, continuations: &mut [Vec<i64>], drawn: &[i64]) -> bool {
        let ended = |tokens: &[i64]| tokens.last().is_some_and(|last| self.stop.contains(last));
        for (tokens, &token) in continuations.iter_mut().zip(drawn) {
            if !ended(tokens) {
                tokens.push(token);
            }
        }
        continuations.iter().any(|tokens| !ended(tokens))
    }
}
