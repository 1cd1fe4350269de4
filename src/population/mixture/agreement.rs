use std::collections::BTreeMap;

use crate::{Result, check};

/// Adjusted Rand index of two clusterings of the same things, `[n]` each: 1 for equal ones whatever their labels, 0 on average for independent
/// ones of these cluster sizes, negative below that.
///
/// With n_ij things in cluster i of the first and j of the second, a_i and b_j their sums, and C(n) = n(n−1)/2:
/// (Σ C(n_ij) − e) / (½(Σ C(a_i) + Σ C(b_j)) − e), e = Σ C(a_i) Σ C(b_j) / C(n); 1 where that is 0/0 (both all in one, or all apart).
///
/// Source: Hubert and Arabie 1985, "Comparing partitions".
///
/// # Errors
/// [`Length`](crate::Error::Length) for clusterings of different lengths.
pub fn adjusted_rand_index(first: &[usize], second: &[usize]) -> Result<f64> {
    check::matrix("second", "[n]", "n", first.len(), second.len())?;
    let both = pairs_within(first.iter().zip(second));
    let (in_first, in_second) = (pairs_within(first), pairs_within(second));
    let expected = in_first * in_second / pairs(first.len());
    let most = 0.5 * (in_first + in_second);
    // Fewer than two things have no pair; equal trivial clusterings leave nothing between chance and the most.
    Ok(if most > expected { (both - expected) / (most - expected) } else { 1.0 })
}

/// Σ C(n) over the clusters.
fn pairs_within<K: Ord>(clusters: impl IntoIterator<Item = K>) -> f64 {
    let mut sizes = BTreeMap::new();
    for cluster in clusters {
        *sizes.entry(cluster).or_insert(0_usize) += 1;
    }
    sizes.into_values().map(pairs).sum()
}

fn pairs(n: usize) -> f64 {
    let n = n as f64;
    0.5 * n * (n - 1.0)
}
