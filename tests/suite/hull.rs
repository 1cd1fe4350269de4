//! The minimum over a convex hull: its optimality conditions, its geometry in one dimension, and its smoothness.

use proptest::prelude::*;

use prefopt::{
    PreferenceLoss, Result,
    loss::{Minimum, PessimisticDistillation},
    tch::{Device, Kind},
};

use crate::{
    close,
    columns::{Columns, columns},
    identities::config,
    numbers, oracle,
};

fn hull(beta: f64) -> Result<PessimisticDistillation> {
    Ok(PessimisticDistillation::new(beta)?.with_minimum(Minimum::Hull))
}

/// Simplex weights, and each member's residuals Δr − βh.
fn solution(columns: &Columns, beta: f64) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let weights = numbers(&hull(beta)?.hull_weights(&columns.batch())?);
    let residuals =
        columns.reward_margins().into_iter().map(|m| m.iter().zip(columns.h()).map(|(r, h)| r - beta * h).collect());
    Ok((weights, residuals.collect()))
}

/// The weights lie on the simplex, and no member has a smaller inner product with the point than the point itself: for a convex
/// quadratic this proves the optimum, whatever algorithm found it.
fn certified(columns: &Columns, beta: f64) -> Result<()> {
    let (weights, residuals) = solution(columns, beta)?;
    assert!(weights.iter().all(|w| *w >= 0.0), "{weights:?}");
    close(weights.iter().sum(), 1.0, 1e-12, 0.0, "sum of the weights");
    let point = oracle::mix(&residuals, &weights);
    let inner = |a: &[f64]| columns.mean(&a.iter().zip(&point).map(|(x, y)| x * y).collect::<Vec<_>>());
    let scale =
        residuals.iter().map(|r| columns.mean(&r.iter().map(|x| x * x).collect::<Vec<_>>())).fold(0.0, f64::max);
    for (member, residual) in residuals.iter().enumerate() {
        let gap = inner(residual) - inner(&point);
        assert!(gap >= -1e-12 * scale, "member {member} would improve it by {gap:e}: {weights:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..config() })]

    #[test]
    fn its_weights_are_optimal(c in columns(1..=8), beta in 0.01..2.0) {
        certified(&c, beta)?;
    }

    /// Copies make the vertices dependent, which is where an active-set method may cycle or divide by zero.
    #[test]
    fn so_they_are_among_copies_and_mixtures(c in columns(2..=3), beta in 0.01..2.0, share in 0.0..1.0) {
        let margins = c.reward_margins();
        let mixture = oracle::mix(&margins[..2], &[share, 1.0 - share]);
        let many = [margins.clone(), margins.clone(), vec![mixture], margins].concat();
        certified(&c.with_reward_margins(&many), beta)?;
    }

    /// Far from the family all vertices look alike to rounding.
    #[test]
    fn so_they_are_far_away(c in columns(1..=6), far in 1e2..4e4) {
        let margins = vec![far; c.len()];
        certified(&c.with_margins(&margins), 0.25)?;
    }

    /// One pair: the squared distance of βh to [min Δr, max Δr].
    #[test]
    fn of_one_pair_is_the_distance_to_an_interval(seed in any::<u64>(), members in 1..6_usize, beta in 0.01..2.0) {
        let c = Columns::random(1, members, seed);
        let margins = c.reward_margins();
        let (low, high) = margins.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), m| (l.min(m[0]), h.max(m[0])));
        let bh: f64 = beta * c.h()[0];
        let outside: f64 = (low - bh).max(bh - high);
        let expected = outside.max(0.0).powi(2);
        close(numbers(&hull(beta)?.per_pair(&c.batch())?)[0], expected, 1e-10, 1.0, "distance");
    }

    /// Inside the hull the loss and its gradient are 0, however the weights are found.
    #[test]
    fn is_zero_inside(c in columns(3..=3), beta in 0.1..2.0, a in 0.05..0.45, b in 0.05..0.45) {
        let h: Vec<f64> = oracle::mix(&c.reward_margins(), &[a, b, 1.0 - a - b]).iter().map(|m| m / beta).collect();
        let built = c.with_margins(&h).build(Kind::Double, Device::Cpu)?;
        let mean = hull(beta)?.mean(&built.batch)?;
        mean.backward();
        prop_assert!(numbers(&mean)[0].abs() < 1e-12);
        prop_assert!(numbers(&built.policy[0].grad()).iter().all(|g| g.abs() < 1e-6));
    }

    /// Convex in h along any line: the value at the middle is at most the mean of the ends.
    #[test]
    fn is_convex_in_the_policy(c in columns(3..=3), seed in any::<u64>(), beta in 0.05..1.0) {
        let (from, to) = (c.h(), Columns::random(c.len(), 1, seed).h());
        let middle: Vec<f64> = from.iter().zip(&to).map(|(a, b)| 0.5 * (a + b)).collect();
        let value = |h: &[f64]| -> Result<f64> { Ok(numbers(&hull(beta)?.mean(&c.clone().with_margins(h).batch())?)[0]) };
        prop_assert!(value(&middle)? <= 0.5 * (value(&from)? + value(&to)?) + 1e-10);
    }
}

/// The slope does not jump where the nearest member changes, as that of the other minima does.
#[test]
fn its_gradient_is_continuous_where_the_batch_minimum_jumps() -> Result<()> {
    let slope = |loss: PessimisticDistillation, h: f64| -> Result<f64> {
        let c = Columns::random(1, 2, 1).unweighted().with_reward_margins(&[vec![1.0], vec![-1.0]]).with_margins(&[h]);
        let built = c.build(Kind::Double, Device::Cpu)?;
        loss.mean(&built.batch)?.backward();
        Ok(numbers(&built.policy[0].grad())[0])
    };
    let (hull, batch) = (hull(1.0)?, PessimisticDistillation::new(1.0)?);
    for edge in [-1.0, 0.0, 1.0] {
        assert!((slope(hull, edge - 1e-6)? - slope(hull, edge + 1e-6)?).abs() < 1e-5, "at {edge}");
    }
    assert!((slope(batch, -1e-6)? - slope(batch, 1e-6)?).abs() > 3.9);
    Ok(())
}
