use argmin::{
    core::{CostFunction, Executor},
    solver::brent::BrentOpt,
};
use ndarray::{Array1, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use super::{
    LabelRisk, Risk, column,
    risk::{Tempered, log_sigmoid},
};
use crate::{
    Error, Result,
    check::{finite, matrix},
    domain::Temperature,
};

/// T is sought between 1/RANGE and RANGE.
const RANGE: f64 = 1e3;

/// A temperature T that makes logits z honest: p = softmax(z/T), or σ(Δr/T) for the margin of a pair.
///
/// Fitted by maximum likelihood on rows that the model was **not** trained on, with the labels that it will be judged
/// by: under noisy labels the probabilities are those of the noisy label. The mean log loss is convex in 1/T, so its
/// minimum over log T is found by Brent's method (`argmin`), for T in \[10⁻³, 10³\]. Where the model gets every
/// held-out row right the loss falls as T → 0, and T is at the lower end; where it does worse than chance, at the
/// upper.
///
/// Source: Guo et al. 2017, "On calibration of modern neural networks".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    temperature: Temperature,
}

impl Calibration {
    /// A temperature that is known; 1 leaves logits as they are.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless it is positive and finite.
    pub fn new(temperature: f64) -> Result<Self> {
        Ok(Self { temperature: Temperature::new(temperature)? })
    }

    /// argmin_T of the mean −log softmax(z/T)_y over held-out `logits` `[rows, classes]` and their `labels` `[rows]`.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a row or a class, [`Element`](Error::Element) for a logit that is not finite or
    /// a label that is no class, [`Length`](Error::Length) when the labels are not as many as the rows.
    pub fn fit(logits: ArrayView2<f64>, labels: &[usize]) -> Result<Self> {
        checked(logits)?;
        matrix("labels", "[rows]", "rows", logits.nrows(), labels.len())?;
        if let Some(index) = labels.iter().position(|&label| label >= logits.ncols()) {
            let (domain, value) = ("a class of the logits", labels[index] as f64);
            return Err(Error::Element { tensor: "labels", index: index as i64, domain, value });
        }
        let rows = || logits.rows().into_iter().zip(labels);
        Self::minimising(|t| rows().map(|(row, &label)| -Tempered::new(row, t).log_p[label]).sum::<f64>())
    }

    /// argmin_T of the mean −log σ(Δr/T) over held-out `margins` `[pairs]`, each of the response that its label calls
    /// better.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a pair, [`Element`](Error::Element) for a margin that is not finite.
    pub fn of_margins(margins: ArrayView1<f64>) -> Result<Self> {
        column("margins", margins)?;
        Self::minimising(|t| -margins.iter().map(|margin| log_sigmoid(margin / t)).sum::<f64>())
    }

    fn minimising(loss: impl Fn(f64) -> f64) -> Result<Self> {
        let brent = BrentOpt::new(-RANGE.ln(), RANGE.ln()).set_tolerance(f64::EPSILON.sqrt(), 1e-8);
        // Brent's method ends by itself; the bound is for a loss that is infinite throughout.
        let run = Executor::new(OfLogTemperature(loss), brent).configure(|state| state.max_iters(200)).run();
        let minimum = run.expect("the loss cannot fail, and Brent's method asks for nothing else");
        Self::new(minimum.state().best_param.unwrap_or_default().exp())
    }

    /// T.
    pub fn temperature(&self) -> f64 {
        self.temperature.get()
    }

    /// The risk of each row's prediction, `[rows]`, from `logits` `[rows, classes]`.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a row or a class, [`Element`](Error::Element) for a logit that is not finite.
    pub fn risks(&self, logits: ArrayView2<f64>, risk: Risk) -> Result<Array1<f64>> {
        checked(logits)?;
        Ok(logits.rows().into_iter().map(|row| risk.of(&Tempered::new(row, self.temperature()))).collect())
    }

    /// The risk of each pair's label, `[pairs]`, from the `margins` Δr `[pairs]` of the response that it calls better.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) without a pair, [`Element`](Error::Element) for a margin that is not finite.
    pub fn label_risks(&self, margins: ArrayView1<f64>, risk: LabelRisk) -> Result<Array1<f64>> {
        column("margins", margins)?;
        Ok(margins.mapv(|margin| risk.of(margin / self.temperature())))
    }
}

fn checked(logits: ArrayView2<f64>) -> Result<()> {
    if logits.is_empty() {
        return Err(Error::Empty { tensor: "logits", shape: "[rows, classes]" });
    }
    finite("logits", logits.iter().copied())
}

/// A loss of T as one of log T, in which scales are equally wide.
struct OfLogTemperature<F>(F);

impl<F: Fn(f64) -> f64> CostFunction for OfLogTemperature<F> {
    type Param = f64;
    type Output = f64;

    fn cost(&self, log_temperature: &f64) -> std::result::Result<f64, argmin::core::Error> {
        Ok((self.0)(log_temperature.exp()))
    }
}
