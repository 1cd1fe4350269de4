//! What a run drives: the library's trainers, and one for losses that fit neither of them.

use prefopt::{
    Error, PreferenceBatch, PreferenceLoss, Result,
    diagnostics::Metrics,
    reward::{RewardBatch, RewardObjective},
    train::{Descent, PolicyTrainer, RewardTrainer, StepReport, Trainer},
};
use tch::Tensor;

/// A trainer over indices of pairs, with the descent that a checkpoint saves.
///
/// Pair i to train on has index i; pair i that is held out has index n + i, behind the n to train on.
pub trait Steps: Trainer<Batch = Vec<usize>> {
    fn descent(&self) -> &Descent;
    fn descent_mut(&mut self) -> &mut Descent;
}

impl<L, F> Steps for PolicyTrainer<Vec<usize>, L, F>
where
    L: PreferenceLoss,
    F: Fn(&Vec<usize>) -> Result<PreferenceBatch>,
{
    fn descent(&self) -> &Descent {
        PolicyTrainer::descent(self)
    }

    fn descent_mut(&mut self) -> &mut Descent {
        PolicyTrainer::descent_mut(self)
    }
}

impl<O, F> Steps for RewardTrainer<Vec<usize>, O, F>
where
    O: RewardObjective,
    F: Fn(&Vec<usize>) -> Result<RewardBatch>,
{
    fn descent(&self) -> &Descent {
        RewardTrainer::descent(self)
    }

    fn descent_mut(&mut self) -> &mut Descent {
        RewardTrainer::descent_mut(self)
    }
}

/// What a loss says of some pairs.
pub struct Measured {
    /// Its mean, a scalar that leads back to the parameters.
    pub loss: Tensor,
    /// What this mean counts for beside those of the step's other parts: pairs, or tokens.
    pub weight: f64,
    /// Other numbers, without the loss.
    pub metrics: Metrics,
}

/// Trains by any loss: supervised, of single responses, of samples.
///
/// A step over parts goes down the gradient of Σ weight · loss / Σ weight; its metrics are [`pooled`], as are those of
/// an evaluation over parts.
pub struct FromLoss<F> {
    descent: Descent,
    loss: F,
}

impl<F: Fn(&[usize]) -> Result<Measured>> FromLoss<F> {
    pub fn new(descent: Descent, loss: F) -> Self {
        Self { descent, loss }
    }

    fn accumulate(&mut self, parts: &[Vec<usize>]) -> Result<Metrics> {
        let mut seen = Vec::with_capacity(parts.len());
        for part in parts {
            let Measured { loss, weight, metrics } = (self.loss)(part)?;
            // The mean of one part is its own, to the bit.
            self.descent.accumulate(&loss, if parts.len() == 1 { 1.0 } else { weight })?;
            seen.push((metrics, weight));
        }
        Ok(pooled(&seen))
    }
}

impl<F: Fn(&[usize]) -> Result<Measured>> Trainer for FromLoss<F> {
    type Batch = Vec<usize>;

    fn step_over(&mut self, parts: &[Vec<usize>]) -> Result<StepReport> {
        if parts.is_empty() {
            return Err(Error::NothingAccumulated);
        }
        match self.accumulate(parts) {
            Ok(metrics) => Ok(StepReport { metrics, ..self.descent.finish()? }),
            Err(error) => {
                // Restoring forgets the parts before the one that was refused, and nothing else.
                let state = self.descent.state();
                self.descent.restore(&state)?;
                Err(error)
            }
        }
    }

    fn evaluate_over(&self, parts: &[Vec<usize>]) -> Result<Metrics> {
        if parts.is_empty() {
            return Err(Error::Empty { tensor: "parts", shape: "[parts]" });
        }
        let _no_grad = tch::no_grad_guard();
        let one = |part: &Vec<usize>| -> Result<(Metrics, f64)> {
            let Measured { loss, weight, metrics } = (self.loss)(part)?;
            Ok((Metrics::default().with("loss", loss.f_double_value(&[])?).and(metrics), weight))
        };
        let seen = parts.iter().map(one).collect::<Result<Vec<_>>>()?;
        Ok(pooled(&seen).prefixed("eval_"))
    }
}

impl<F: Fn(&[usize]) -> Result<Measured>> Steps for FromLoss<F> {
    fn descent(&self) -> &Descent {
        &self.descent
    }

    fn descent_mut(&mut self) -> &mut Descent {
        &mut self.descent
    }
}

/// Numbers under names that are known only now.
pub fn metrics(numbers: impl IntoIterator<Item = (String, f64)>) -> Metrics {
    let one = |(name, value): (String, f64)| Metrics::default().with("", value).prefixed(&name);
    numbers.into_iter().map(one).fold(Metrics::default(), Metrics::and)
}

/// Numbers of parts, each with its weight, as those of all their pairs, in the order in which they came: `num_tokens`
/// and `num_pairs` are sums; all others are means over the parts that have them, those of responses (`logps/…`) by
/// pairs, those of tokens by tokens, the rest by weight.
fn pooled(parts: &[(Metrics, f64)]) -> Metrics {
    if let [(alone, _)] = parts {
        return alone.clone();
    }
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in parts.iter().flat_map(|(metrics, _)| metrics.iter()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let whole = |name: &str| {
        let found = || parts.iter().filter_map(move |(metrics, weight)| Some((metrics, *weight, metrics.get(name)?)));
        if matches!(name, "num_tokens" | "num_pairs") {
            return found().map(|(.., value)| value).sum::<f64>();
        }
        let weight = |metrics: &Metrics, weight: f64| {
            let own = match name {
                "mean_token_accuracy" | "entropy" => metrics.get("num_tokens"),
                _ if name.starts_with("logps/") => metrics.get("num_pairs"),
                _ => None,
            };
            own.unwrap_or(weight)
        };
        let sum: f64 = found().map(|(metrics, own, value)| weight(metrics, own) * value).sum();
        sum / found().map(|(metrics, own, _)| weight(metrics, own)).sum::<f64>()
    };
    metrics(names.into_iter().map(|name| (name.to_owned(), whole(name))))
}

#[cfg(test)]
mod tests {
    use prefopt::train::{AdamW, AdamWConfig};
    use tch::Kind;

    use super::*;

    fn numbers(metrics: &Metrics) -> Vec<(&str, f64)> {
        metrics.iter().collect()
    }

    #[test]
    fn counts_add_up_and_the_rest_is_averaged() {
        let part = |loss, logp, tokens, pairs| {
            let counts = Metrics::default().with("loss", loss).with("num_tokens", tokens).with("num_pairs", pairs);
            counts.with("entropy", loss).with("logps/chosen", logp)
        };
        let parts = [(part(1.0, -2.0, 10.0, 1.0), 3.0), (part(2.0, -4.0, 30.0, 3.0).with("now_and_then", 7.0), 1.0)];
        let expected = [
            ("loss", 1.25),
            ("num_tokens", 40.0),
            ("num_pairs", 4.0),
            ("entropy", 1.75),
            ("logps/chosen", -3.5),
            ("now_and_then", 7.0),
        ];
        assert_eq!(numbers(&pooled(&parts)), expected);
        assert_eq!(pooled(&parts[..1]), parts[0].0);
    }

    /// ½(w − x)² of each index x.
    fn trainer() -> Result<(Tensor, FromLoss<impl Fn(&[usize]) -> Result<Measured>>)> {
        let w = Tensor::from_slice(&[0.5]).set_requires_grad(true);
        let optimizer = AdamW::new(vec![w.shallow_clone()], AdamWConfig::default())?;
        let descent = Descent::new(optimizer, 0.1)?.with_max_norm(None)?;
        let own = w.shallow_clone();
        let loss = move |batch: &[usize]| {
            let Some(x) = batch.iter().map(|&x| x as f64).max_by(f64::total_cmp).filter(|x| *x < 100.0) else {
                return Err(Error::NothingObserved);
            };
            let xs: Vec<f64> = batch.iter().map(|&x| x as f64).collect();
            let loss = (&own - Tensor::from_slice(&xs)).square().mean(Kind::Double) * 0.5;
            let metrics = Metrics::default().with("largest", x).with("num_pairs", batch.len() as f64);
            Ok(Measured { loss, weight: batch.len() as f64, metrics })
        };
        Ok((w, FromLoss::new(descent, loss)))
    }

    #[test]
    fn parts_are_the_whole() -> Result<()> {
        let (one, mut whole) = trainer()?;
        let (other, mut parts) = trainer()?;
        let at_once = whole.step_over(&[vec![1, 2, 6]])?;
        let in_turn = parts.step_over(&[vec![1, 2], vec![6]])?;
        assert!((at_once.loss - in_turn.loss).abs() < 1e-12 && (at_once.grad_norm - in_turn.grad_norm).abs() < 1e-12);
        assert!((one - other).abs().double_value(&[0]) < 1e-12);
        assert_eq!(in_turn.metrics.get("num_pairs"), Some(3.0));
        assert_eq!(in_turn.metrics.get("largest"), Some((2.0 * 2.0 + 6.0) / 3.0));
        Ok(())
    }

    #[test]
    fn a_refusal_leaves_nothing_behind() -> Result<()> {
        let (w, mut refused) = trainer()?;
        assert!(matches!(refused.step_over(&[vec![5], vec![100]]), Err(Error::NothingObserved)));
        assert!(matches!(refused.step_over(&[]), Err(Error::NothingAccumulated)));
        assert_eq!((w.double_value(&[0]), refused.descent().steps()), (0.5, 0));
        let (_, mut fresh) = trainer()?;
        assert_eq!(refused.step_over(&[vec![1]])?, fresh.step_over(&[vec![1]])?);
        let evaluated = refused.evaluate(&vec![1])?;
        assert!(evaluated.get("eval_loss").is_some() && evaluated.get("eval_largest") == Some(1.0));
        let [parts, whole] = [refused.evaluate_over(&[vec![1, 2], vec![6]])?, refused.evaluate(&vec![1, 2, 6])?]
            .map(|metrics| metrics.get("eval_loss").unwrap_or(f64::NAN));
        assert!((parts - whole).abs() < 1e-12, "{parts} is not {whole}");
        Ok(())
    }
}
