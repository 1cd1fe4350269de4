//! Plain statistics of numbers on the host.

/// NaN for none.
pub(super) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

/// 1 for a positive number, ½ for 0, 0 for a negative one.
pub(super) fn win(value: f64) -> f64 {
    match value.partial_cmp(&0.0) {
        Some(order) => 0.5 + 0.5 * f64::from(order as i8),
        None => f64::NAN,
    }
}

/// Share of numbers of which it holds.
pub(super) fn share<'a>(values: impl IntoIterator<Item = &'a f64>, holds: impl Fn(f64) -> bool) -> f64 {
    mean(values.into_iter().map(|&value| if holds(value) { 1.0 } else { 0.0 }))
}

/// In increasing order.
pub(super) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The number below which the share `p` of sorted numbers lies, linear between neighbours (Hyndman and Fan 1996, type 7, as in numpy).
pub(super) fn quantile(sorted: &[f64], p: f64) -> f64 {
    let last = sorted.len() - 1;
    let place = p * last as f64;
    let below = place as usize;
    let above = (below + 1).min(last);
    // Equal infinities have no difference.
    if sorted[below] == sorted[above] {
        return sorted[below];
    }
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

/// Mean and standard deviation, the latter as of a population.
pub(super) fn moments(values: &[f64]) -> (f64, f64) {
    let middle = mean(values.iter().copied());
    (middle, mean(values.iter().map(|value| (value - middle).powi(2))).sqrt())
}

/// Pearson's; `None` where one side does not vary.
pub(super) fn correlation(x: &[f64], y: &[f64]) -> Option<f64> {
    let ((mean_x, std_x), (mean_y, std_y)) = (moments(x), moments(y));
    let covariance = mean(x.iter().zip(y).map(|(x, y)| (x - mean_x) * (y - mean_y)));
    (std_x > 0.0 && std_y > 0.0).then(|| covariance / (std_x * std_y))
}
