use ndarray::{Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{REWARDS, checked};
use crate::{Error, Result, check, domain::Temperature};

/// What the temperature of a [`Calibration`] is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemperatureUnit {
    /// Units of reward, as in the paper. Right for reward models that were trained by Bradley–Terry, whose margins are nats; a
    /// model whose margins are small beside T stays near ½, and in an average it has no say.
    #[default]
    Reward,
    /// Standard deviations of the reward model within prompts (population form, pooled over the prompts given): a R + c is calibrated as
    /// R is, for any a > 0. Not in the paper; for rewards whose scale is arbitrary.
    Deviation,
}

/// Calibrated reward: the expected share of the other samples of its prompt that a sample beats, in \[0, 1\].
///
/// > R_ca(x_i) = 1/(N−1) Σ_{k≠i} σ((R(x_i) − R(x_k))/T)
///
/// over the N samples of one prompt that the pretrained model drew. Σ_i R_ca(x_i) = N/2; c(prompt) added to R changes nothing; T
/// → 0 gives the share of samples beaten, a tie counting ½. Rising in R within a prompt, so it changes no Pareto front, save
/// where σ saturates in f64.
///
/// Source: Lee et al. 2025 (CaPO), section on reward calibration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    temperature: Temperature,
    #[serde(default)]
    unit: TemperatureUnit,
}

impl Calibration {
    /// At the temperature T, in units of reward.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless T is positive and finite.
    pub fn new(temperature: f64) -> Result<Self> {
        Ok(Self { temperature: Temperature::new(temperature)?, unit: TemperatureUnit::default() })
    }

    /// The same with T in another unit.
    #[must_use]
    pub fn with_unit(self, unit: TemperatureUnit) -> Self {
        Self { unit, ..self }
    }

    /// R_ca of one reward model, `[prompts, samples]`, from its rewards of the same shape.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty); [`Element`](Error::Element) for a reward that is not finite; [`Domain`](Error::Domain) for fewer
    /// than two samples.
    pub fn calibrate(&self, rewards: ArrayView2<f64>) -> Result<Array2<f64>> {
        comparable(rewards.insert_axis(Axis(0)), "[prompts, samples]")?;
        Ok(self.calibrated(rewards))
    }

    /// R_ca of each reward model by itself, `[models, prompts, samples]`: a family for
    /// [`PessimisticDistillation`](crate::loss::PessimisticDistillation), and what fronts are taken of.
    ///
    /// # Errors
    /// As [`calibrate`](Self::calibrate).
    pub fn per_model(&self, rewards: ArrayView3<f64>) -> Result<Array3<f64>> {
        comparable(rewards, REWARDS)?;
        let mut all = Array3::zeros(rewards.raw_dim());
        for (rewards, mut calibrated) in rewards.outer_iter().zip(all.outer_iter_mut()) {
            calibrated.assign(&self.calibrated(rewards));
        }
        Ok(all)
    }

    /// Mean over the reward models of R_ca, `[prompts, samples]`, from rewards `[models, prompts, samples]`: calibrated first,
    /// averaged then.
    ///
    /// # Errors
    /// As [`calibrate`](Self::calibrate).
    pub fn average(&self, rewards: ArrayView3<f64>) -> Result<Array2<f64>> {
        self.weighted_average(rewards, &vec![1.0; rewards.len_of(Axis(0))])
    }

    /// Σ_m w_m R_ca,m / Σ_m w_m, `[prompts, samples]`; weights `[models]`, at least 0 and not all 0.
    ///
    /// # Errors
    /// As [`calibrate`](Self::calibrate); [`Length`](Error::Length), [`Element`](Error::Element) or [`Domain`](Error::Domain) for
    /// the weights.
    pub fn weighted_average(&self, rewards: ArrayView3<f64>, weights: &[f64]) -> Result<Array2<f64>> {
        let calibrated = self.per_model(rewards)?;
        fits(weights, calibrated.len_of(Axis(0)))?;
        let total = positive_sum(weights)?;
        Ok(mixed(calibrated.view(), weights) / total)
    }

    fn calibrated(&self, rewards: ArrayView2<f64>) -> Array2<f64> {
        let unit = match self.unit {
            TemperatureUnit::Reward => 1.0,
            TemperatureUnit::Deviation => deviation(rewards),
        };
        // A constant model has no deviation; its differences are 0, and 0 over the smallest number is 0 still.
        let temperature = (self.temperature.get() * unit).max(f64::MIN_POSITIVE);
        let mut calibrated = Array2::zeros(rewards.raw_dim());
        let rows = calibrated.as_slice_mut().expect("a new array is contiguous");
        rows.par_chunks_mut(rewards.ncols())
            .enumerate()
            .for_each(|(prompt, rates)| win_rates(rewards.row(prompt), temperature, rates));
        calibrated
    }
}

/// The rival of calibration: Σ_m w_m R_m of the rewards as they are, `[prompts, samples]`, from `[models, prompts, samples]` and
/// `[models]`. The model of largest scale decides.
///
/// # Errors
/// [`Empty`](Error::Empty); [`Element`](Error::Element) for a reward or weight that is not finite; [`Length`](Error::Length) for
/// weights of another number than the models.
pub fn weighted_sum(rewards: ArrayView3<f64>, weights: &[f64]) -> Result<Array2<f64>> {
    checked(rewards, REWARDS)?;
    fits(weights, rewards.len_of(Axis(0)))?;
    check::finite("weights", weights.iter().copied())?;
    Ok(mixed(rewards, weights))
}

fn win_rates(rewards: ArrayView1<f64>, temperature: f64, rates: &mut [f64]) {
    let others = (rewards.len() - 1) as f64;
    for (rate, own) in rates.iter_mut().zip(rewards) {
        let wins: f64 = rewards.iter().map(|other| sigmoid((own - other) / temperature)).sum();
        // Against itself every sample has won exactly half.
        *rate = (wins - 0.5) / others;
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Standard deviation within prompts, population form, pooled.
fn deviation(rewards: ArrayView2<f64>) -> f64 {
    rewards.var_axis(Axis(1), 0.0).mean().expect("at least one prompt").sqrt()
}

fn mixed(rewards: ArrayView3<f64>, weights: &[f64]) -> Array2<f64> {
    let (_, prompts, samples) = rewards.dim();
    let mut sum = Array2::zeros((prompts, samples));
    for (rewards, &weight) in rewards.outer_iter().zip(weights) {
        sum.scaled_add(weight, &rewards);
    }
    sum
}

fn comparable(rewards: ArrayView3<f64>, shape: &'static str) -> Result<()> {
    checked(rewards, shape)?;
    let samples = rewards.len_of(Axis(2));
    if samples < 2 {
        let domain = "at least 2 a prompt (a reward is calibrated against the others)";
        return Err(Error::Domain { parameter: "samples", domain, value: samples as f64 });
    }
    Ok(())
}

fn fits(weights: &[f64], models: usize) -> Result<()> {
    check::matrix("weights", "[models]", "models", models, weights.len())
}

fn positive_sum(weights: &[f64]) -> Result<f64> {
    let outside = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0));
    if let Some(index) = outside {
        let (index, value) = (index as i64, weights[index]);
        return Err(Error::Element { tensor: "weights", index, domain: "at least 0 and finite", value });
    }
    let sum: f64 = weights.iter().sum();
    if sum > 0.0 { Ok(sum) } else { Err(Error::Domain { parameter: "sum of weights", domain: "positive", value: sum }) }
}
