//! The point of a convex hull that is nearest to the origin, from the Gram matrix of its vertices.
//!
//! Source: Wolfe 1976, "Finding the nearest point in a polytope", Mathematical Programming 11. A corral is a set of affinely
//! independent vertices whose affine hull's nearest point lies inside their convex hull; the algorithm moves from corral to
//! corral of smaller norm, so it ends after finitely many, at the exact optimum.

use ndarray::{Array1, Array2, ArrayD, Axis, Ix2};

/// Relative precision to which optimality is asked for: some hundred roundings of f64.
const TOLERANCE: f64 = 1e-13;

/// Simplex weights w that minimise wᵀGw, for a Gram matrix G of shape `[members, members]`.
///
/// Entries that are not finite give NaN weights, so that the loss built on them is refused by the trainer.
pub(super) fn nearest_to_origin(gram: &ArrayD<f64>) -> Vec<f64> {
    let gram = gram.view().into_dimensionality::<Ix2>().expect("a Gram matrix has two axes");
    if gram.iter().any(|g| !g.is_finite()) {
        return vec![f64::NAN; gram.nrows()];
    }
    let scale = gram.diag().iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let gram = gram.mapv(|g| g / scale);

    let nearest = argmin(gram.diag().iter().copied());
    let mut corral = vec![nearest];
    let mut weights = Array1::<f64>::zeros(gram.nrows());
    weights[nearest] = 1.0;
    // Each round ends at a smaller norm; the bound only guards against cycling by rounding.
    for _ in 0..100 * gram.nrows() {
        let slopes = gram.dot(&weights);
        let norm = weights.dot(&slopes);
        let entering = argmin(slopes.iter().copied());
        if slopes[entering] >= norm - TOLERANCE || corral.contains(&entering) {
            break;
        }
        corral.push(entering);
        if !shrink_to_corral(&gram, &mut corral, &mut weights) {
            break;
        }
    }
    weights.to_vec()
}

/// Wolfe's minor cycle: walks towards the nearest point of the affine hull, dropping each vertex whose weight reaches 0.
/// False when the vertices are dependent to rounding, which means that the newest one adds nothing.
fn shrink_to_corral(gram: &Array2<f64>, corral: &mut Vec<usize>, weights: &mut Array1<f64>) -> bool {
    loop {
        let Some(affine) = affine_minimiser(gram, corral) else {
            return false;
        };
        let leaving = corral
            .iter()
            .zip(&affine)
            .filter(|(_, a)| **a <= 0.0)
            .map(|(&member, &a)| (weights[member] / (weights[member] - a), member))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let (step, dropped) = leaving.map_or((1.0, None), |(step, member)| (step, Some(member)));
        for (&member, &a) in corral.iter().zip(&affine) {
            weights[member] += step * (a - weights[member]);
        }
        let Some(dropped) = dropped else {
            return true;
        };
        weights[dropped] = 0.0;
        corral.retain(|&member| member != dropped);
    }
}

/// Weights that sum to 1 and minimise aᵀGa over the corral alone, signs free: the solution of `[G 1; 1ᵀ 0][a; μ] = [0; 1]`.
fn affine_minimiser(gram: &Array2<f64>, corral: &[usize]) -> Option<Vec<f64>> {
    let n = corral.len();
    let mut system = Array2::<f64>::zeros((n + 1, n + 2));
    let inner = gram.select(Axis(0), corral).select(Axis(1), corral);
    system.slice_mut(ndarray::s![..n, ..n]).assign(&inner);
    system.slice_mut(ndarray::s![..n, n]).fill(1.0);
    system.slice_mut(ndarray::s![n, ..n]).fill(1.0);
    system[[n, n + 1]] = 1.0;
    solve(system).map(|solution| solution[..n].to_vec())
}

/// Gauss–Jordan with partial pivoting on an augmented matrix `[n, n + 1]`; `None` when it is singular to rounding.
fn solve(mut system: Array2<f64>) -> Option<Vec<f64>> {
    let n = system.nrows();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| system[[a, column]].abs().total_cmp(&system[[b, column]].abs()))?;
        if system[[pivot, column]].abs() < TOLERANCE {
            return None;
        }
        for k in 0..=n {
            system.swap([column, k], [pivot, k]);
        }
        let scaled = &system.row(column) / system[[column, column]];
        system.row_mut(column).assign(&scaled);
        for row in (0..n).filter(|&row| row != column) {
            let factor = system[[row, column]];
            system.row_mut(row).scaled_add(-factor, &scaled);
        }
    }
    Some(system.column(n).to_vec())
}

fn argmin(values: impl Iterator<Item = f64>) -> usize {
    values.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index)
}
