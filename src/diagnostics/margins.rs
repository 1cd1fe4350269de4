//! The implicit margins βh: their distribution, and beside the reward models and the lengths of the same pairs.

use super::{
    Metrics,
    columns::{Columns, less},
    statistics::{correlation, mean, moments, quantile, share, sorted, win},
};

/// 24 ln 2: 1 − σ is then below half a unit in the last place of f32.
const CERTAIN: f64 = 24.0 * std::f64::consts::LN_2;

pub(super) fn margins(columns: &Columns) -> Metrics {
    let values = sorted(columns.margins.clone());
    Metrics::default()
        .with("margins/q10", quantile(&values, 0.1))
        .with("margins/q50", quantile(&values, 0.5))
        .with("margins/q90", quantile(&values, 0.9))
        .with("margins/certain", share(&values, |margin| margin.abs() > CERTAIN))
}

/// Δr of one pair over the members.
struct Teachers {
    mean: f64,
    deviation: f64,
    lowest: f64,
    highest: f64,
}

impl Teachers {
    /// max_i |Δr_i|.
    fn boldest(&self) -> f64 {
        self.highest.max(-self.lowest)
    }
}

pub(super) fn teachers(columns: &Columns) -> Metrics {
    if columns.rewards.is_empty() {
        return Metrics::default();
    }
    let of_pair = |pair: usize| {
        let margins: Vec<f64> = columns.rewards.iter().map(|member| member[pair]).collect();
        let (mean, deviation) = moments(&margins);
        let lowest = margins.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = margins.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Teachers { mean, deviation, lowest, highest }
    };
    let teachers: Vec<Teachers> = (0..columns.pairs()).map(of_pair).collect();
    let beside = || columns.margins.iter().copied().zip(&teachers);
    let outside = |margin: f64, of: &Teachers| margin < of.lowest || margin > of.highest;
    let boldest = mean(teachers.iter().map(Teachers::boldest));
    let excess = mean(beside().map(|(margin, of)| (margin.abs() - of.boldest()).max(0.0)));
    Metrics::default()
        .with("ensemble/accuracy", mean(teachers.iter().map(|of| win(of.mean))))
        // By signs: the product of two small margins would be 0.
        .with(
            "ensemble/agreement",
            mean(beside().map(|(margin, of)| 0.5 + 2.0 * (win(margin) - 0.5) * (win(of.mean) - 0.5))),
        )
        .with("ensemble/disagreement", mean(teachers.iter().map(|of| of.deviation)))
        .with("ensemble/range", mean(teachers.iter().map(|of| of.highest - of.lowest)))
        .with("ensemble/outside", mean(beside().map(|(margin, of)| if outside(margin, of) { 1.0 } else { 0.0 })))
        // Teachers that say 0 of every pair have no scale to exceed.
        .with("ensemble/excess", if boldest > 0.0 { excess / boldest } else { 0.0 })
}

/// Source: Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization".
pub(super) fn lengths(columns: &Columns) -> Metrics {
    let Some([chosen, rejected]) = &columns.lengths else {
        return Metrics::default();
    };
    let metrics = Metrics::default()
        .with("lengths/chosen", mean(chosen.iter().copied()))
        .with("lengths/rejected", mean(rejected.iter().copied()));
    match correlation(&columns.margins, &less(chosen, rejected)) {
        Some(correlation) => metrics.with("lengths/correlation", correlation),
        None => metrics,
    }
}
