use super::{
    Metrics,
    columns::Columns,
    statistics::{mean, share},
};

/// Nats below which a change of log-probability is rounding.
const ROUNDING: f64 = 0.01;

/// How far log π(y_w) and log π(y_l) have gone since the reference.
///
/// Source: Razin et al. 2024, "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization"; Pal et al. 2024.
pub(super) fn displacement(columns: &Columns) -> Metrics {
    if !columns.has_reference {
        return Metrics::default();
    }
    let [chosen, rejected] = &columns.log_ratios;
    let higher: Vec<f64> = chosen.iter().zip(rejected).map(|(w, l)| w.max(*l)).collect();
    Metrics::default()
        .with("displacement/chosen", mean(chosen.iter().copied()))
        .with("displacement/rejected", mean(rejected.iter().copied()))
        .with("displacement/both_fall", share(&higher, |change| change < -ROUNDING))
        .with("displacement/absolute", mean(chosen.iter().chain(rejected).map(|change| change.abs())))
}
