use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize};

use super::{Rejector, column, rule};
use crate::{
    Result,
    domain::{Coverage, DivergencePower, Lambda, RatioThreshold},
};

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Divergence {
    Kl,
    Alpha(DivergencePower),
}

impl Divergence {
    /// log ρ at a row whose L'/λ lies this far below that of ρ = 1: d, or log(1 + cd)/c with c = (α−1)/2.
    ///
    /// It is ((α−1)/2 · (b − L'/λ))^{2/(α−1)} with b = 2/(α−1) + …, so that α → 1 loses no digits.
    fn log_ratio(self, below: f64) -> f64 {
        match self {
            Self::Kl => below,
            Self::Alpha(alpha) => {
                let c = 0.5 * (alpha.get() - 1.0);
                // Clipped before the power: an even one would make a large ratio of a negative base.
                (c * below).max(-1.0).ln_1p() / c
            }
        }
    }

    /// Its inverse, for ρ > 0.
    fn below(self, log_ratio: f64) -> f64 {
        match self {
            Self::Kl => log_ratio,
            Self::Alpha(alpha) => {
                let c = 0.5 * (alpha.get() - 1.0);
                (c * log_ratio).exp_m1() / c
            }
        }
    }

    /// t with mean exp(log_ratio(t − s)) = 1 over `scaled` s, sorted, from 0 on. It lies between the smallest and the
    /// largest s.
    fn level(self, scaled: &[f64]) -> f64 {
        let n = scaled.len() as f64;
        let mean = |t: f64| scaled.iter().map(|s| self.log_ratio(t - s).exp()).sum::<f64>() / n;
        if self == Self::Kl {
            return -mean(0.0).ln();
        }
        // No ratio of mean 1 exceeds n. Either bound may overflow.
        let bound = self.below(n.ln()).min(f64::MAX);
        let (mut low, mut high) = (0.0, bound.min(scaled[scaled.len() - 1]));
        loop {
            let middle = low + 0.5 * (high - low);
            if middle <= low || middle >= high {
                return high;
            }
            if mean(middle) < 1.0 { low = middle } else { high = middle }
        }
    }
}

/// The density ratio ρ = dQ/dP of the Q that minimises E_Q\[L'\] + λ D(Q ‖ P), D(Q ‖ P) = E_P f(ρ), for L' a risk and P
/// the rows that it is fitted on.
///
/// | D | f(ρ) | ρ |
/// | --- | --- | --- |
/// | KL | ρ log ρ | e^{−L'/λ}/Z |
/// | α > 1 | 4/(α²−1) · (ρ^{(α+1)/2} − 1) | max(0, (α−1)/2 · (b − L'/λ))^{2/(α−1)} |
///
/// Z, or b, is such that the mean of ρ is 1. Amari's α-divergence tends to KL as α → 1 and is half of χ² at α = 3. λ is in
/// units of the risk: λ → ∞ gives ρ = 1, λ → 0 puts all weight on the rows of least risk.
///
/// Source: Soen et al. 2024, the theorems for the KL and the α-divergences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DensityRatio {
    divergence: Divergence,
    lambda: Lambda,
}

impl DensityRatio {
    /// The KL rule: every ratio is positive.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless λ is positive and finite.
    pub fn kl(lambda: f64) -> Result<Self> {
        Ok(Self { divergence: Divergence::Kl, lambda: Lambda::new(lambda)? })
    }

    /// The rule of an α-divergence: the ratio of a row that is risky enough is 0.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) unless α is above 1 and finite, and λ positive and finite.
    pub fn alpha(alpha: f64, lambda: f64) -> Result<Self> {
        let divergence = Divergence::Alpha(DivergencePower::new(alpha)?);
        Ok(Self { divergence, lambda: Lambda::new(lambda)? })
    }

    /// The ratio whose mean over these `risks` `[rows]` is 1.
    ///
    /// # Errors
    /// [`Empty`](crate::Error::Empty) without a row, [`Element`](crate::Error::Element) for a risk that is not finite.
    pub fn fit(&self, risks: ArrayView1<f64>) -> Result<FittedRatio> {
        column("risks", risks)?;
        let mut sorted = risks.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, lambda) = (sorted[0], self.lambda.get());
        let scaled: Vec<f64> = sorted.iter().map(|risk| (risk - least) / lambda).collect();
        Ok(FittedRatio { rule: *self, level: self.divergence.level(&scaled), risks: sorted })
    }
}

/// A density ratio with its normaliser, and the risks that it was fitted on.
#[derive(Debug, Clone, PartialEq)]
pub struct FittedRatio {
    rule: DensityRatio,
    /// L'/λ of ρ = 1, from the least risk's on: small numbers, whatever the risks' level.
    level: f64,
    /// Sorted, never empty.
    risks: Vec<f64>,
}

impl FittedRatio {
    /// Z of the KL rule, b of an α rule.
    pub fn normaliser(&self) -> f64 {
        let level = self.level + self.risks[0] / self.rule.lambda.get();
        match self.rule.divergence {
            Divergence::Kl => (-level).exp(),
            Divergence::Alpha(alpha) => 2.0 / (alpha.get() - 1.0) + level,
        }
    }

    /// ρ at a risk: it never rises with it.
    pub fn ratio(&self, risk: f64) -> f64 {
        let below = self.level - (risk - self.risks[0]) / self.rule.lambda.get();
        self.rule.divergence.log_ratio(below).exp()
    }

    /// ρ of each row, `[rows]`.
    pub fn ratios(&self, risks: ArrayView1<f64>) -> Array1<f64> {
        risks.mapv(|risk| self.ratio(risk))
    }

    /// The rule that rejects where ρ < `threshold`, as a limit on the risk. 0 rejects nothing.
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a threshold that is negative or not finite.
    pub fn threshold(&self, threshold: f64) -> Result<Rejector> {
        let threshold = RatioThreshold::new(threshold)?.get();
        if threshold == 0.0 {
            return Ok(Rejector::at(f64::INFINITY));
        }
        let below = self.rule.divergence.below(threshold.ln());
        Ok(Rejector::at(self.risks[0] + self.rule.lambda.get() * (self.level - below)))
    }

    /// The rule that accepts exactly ⌈`coverage` · rows⌉ of the rows fitted on, and more only where two **risks** are
    /// equal at the limit: ties of ρ, at 0 above all, are broken by the risk. Its τ is the [`ratio`](Self::ratio) of
    /// its [`limit`](Rejector::limit).
    ///
    /// # Errors
    /// [`Domain`](crate::Error::Domain) for a coverage outside (0, 1\].
    pub fn threshold_for_coverage(&self, coverage: f64) -> Result<Rejector> {
        let accepted = rule::count(Coverage::new(coverage)?, self.risks.len());
        Ok(Rejector::at(self.risks[accepted - 1]))
    }
}
