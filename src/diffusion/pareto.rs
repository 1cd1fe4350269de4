//! Pareto fronts of points under maximisation: a dominates b when it is at least as good in every reward and better in one.
//!
//! Points are sorted lexicographically first, so that whoever dominates a point stands before it, and equal points are looked at
//! once. Source: Zhang, Tian, Cheng and Jin 2015, "An efficient approach to nondominated sorting for evolutionary multiobjective
//! optimization" (ENS with binary search).

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::{Error, Result, check};

const SHAPE: &str = "[points, rewards]";

/// Front of each point of `[points, rewards]`, from 0, rewards maximised: front 0 is dominated by nobody, front k by nobody once
/// the fronts before it are taken away. Equal points share a front.
///
/// Sorting is O(n log n); then every point is compared with members of at most log(fronts) fronts: n²/2 comparisons where all
/// points are in one.
///
/// # Errors
/// [`Empty`](Error::Empty); [`Element`](Error::Element) for a number that is not finite.
pub fn non_dominated_ranks(points: ArrayView2<f64>) -> Result<Vec<usize>> {
    let distinct = Distinct::new(points, 1.0)?;
    let mut fronts: Vec<Front> = Vec::new();
    let mut ranks = Vec::with_capacity(points.nrows());
    for row in distinct.rows() {
        // Whoever dominates it in one front is dominated in every front before: those that hold a dominator come first.
        let rank = fronts.partition_point(|front| front.dominates(row));
        if rank == fronts.len() {
            fronts.push(Front::default());
        }
        fronts[rank].add(row);
        ranks.push(rank);
    }
    Ok(distinct.row_of.iter().map(|&row| ranks[row]).collect())
}

/// Indices, rising, of the points of `[points, rewards]` that no other dominates: the upper Pareto front.
///
/// # Errors
/// As [`non_dominated_ranks`].
pub fn upper_front(points: ArrayView2<f64>) -> Result<Vec<usize>> {
    first_front(points, 1.0)
}

/// Indices, rising, of the points that dominate no other: the upper front of the reversed order.
///
/// # Errors
/// As [`non_dominated_ranks`].
pub fn lower_front(points: ArrayView2<f64>) -> Result<Vec<usize>> {
    first_front(points, -1.0)
}

fn first_front(points: ArrayView2<f64>, sign: f64) -> Result<Vec<usize>> {
    let distinct = Distinct::new(points, sign)?;
    let mut front = Front::default();
    let mut first = Vec::with_capacity(points.nrows());
    for row in distinct.rows() {
        let free = !front.dominates(row);
        if free {
            front.add(row);
        }
        first.push(free);
    }
    Ok((0..points.nrows()).filter(|&point| first[distinct.row_of[point]]).collect())
}

/// The different points, in falling lexicographic order.
struct Distinct {
    width: usize,
    /// `[different points, rewards]`, flattened: a front is scanned in the order of memory.
    values: Vec<f64>,
    /// Which of them each point is.
    row_of: Vec<usize>,
}

impl Distinct {
    /// Of the points times `sign`.
    fn new(points: ArrayView2<f64>, sign: f64) -> Result<Self> {
        if points.is_empty() {
            return Err(Error::Empty { tensor: "points", shape: SHAPE });
        }
        check::finite("points", points.iter().copied())?;
        let (count, width) = points.dim();
        let signed: Vec<f64> = points.iter().map(|x| sign * x).collect();
        let row = |point: usize| &signed[point * width..(point + 1) * width];
        let mut order: Vec<usize> = (0..count).collect();
        // Not `total_cmp`, to which −0 and 0 are different points.
        order.par_sort_unstable_by(|&a, &b| row(b).partial_cmp(row(a)).expect("finite numbers compare"));
        let (mut values, mut row_of) = (Vec::with_capacity(signed.len()), vec![0; count]);
        let mut before: Option<usize> = None;
        for point in order {
            if before.is_none_or(|before| row(before) != row(point)) {
                values.extend_from_slice(row(point));
            }
            row_of[point] = values.len() / width - 1;
            before = Some(point);
        }
        Ok(Self { width, values, row_of })
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.width)
    }
}

/// Points of which none dominates another, flattened.
#[derive(Default)]
struct Front(Vec<f64>);

impl Front {
    /// Whether a member dominates `row`, which is none of them and stands behind all of them in the order: at least as good
    /// everywhere is enough. The latest member first: it is the nearest.
    fn dominates(&self, row: &[f64]) -> bool {
        self.0.chunks_exact(row.len()).rev().any(|member| member.iter().zip(row).all(|(a, b)| a >= b))
    }

    fn add(&mut self, row: &[f64]) {
        self.0.extend_from_slice(row);
    }
}
