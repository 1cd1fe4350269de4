//! Where EM starts, and how like each other two clusterings are.

use ndarray::{Array2, Axis, array};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    population::{KMeans, Votes, adjusted_rand_index},
};

use super::uniform;
use crate::{close, identities::config};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_index_counts_pairs_of_things(labels in prop::collection::vec((0..4_usize, 0..4_usize), 2..20)) {
        let (a, b): (Vec<usize>, Vec<usize>) = labels.iter().copied().unzip();
        let mut counts = [[0.0; 2]; 2];
        for i in 0..a.len() {
            for j in 0..i {
                counts[usize::from(a[i] == a[j])][usize::from(b[i] == b[j])] += 1.0;
            }
        }
        let [[apart, only_b], [only_a, both]] = counts;
        let (found, swapped) = (adjusted_rand_index(&a, &b)?, adjusted_rand_index(&b, &a)?);
        // Hubert and Arabie's index from the four counts, which needs no expectation.
        let below = (both + only_a) * (only_a + apart) + (both + only_b) * (only_b + apart);
        let expected = if below > 0.0 { 2.0 * (both * apart - only_a * only_b) / below } else { 1.0 };
        close(found, expected, 1e-12, 1.0, "index");
        close(found, swapped, 1e-15, 1.0, "symmetry");
    }
}

/// Σ over points of the squared distance to their cluster's mean.
fn inertia(points: &Array2<f64>, assigned: &[usize], clusters: usize) -> f64 {
    let member = |k: usize| (0..assigned.len()).filter(move |&i| assigned[i] == k);
    let mean = |k: usize, j: usize| member(k).map(|i| points[[i, j]]).sum::<f64>() / member(k).count() as f64;
    let square = |k: usize, j: usize| member(k).map(|i| (points[[i, j]] - mean(k, j)).powi(2)).sum::<f64>();
    (0..clusters).flat_map(|k| (0..points.ncols()).map(move |j| (k, j))).map(|(k, j)| square(k, j)).sum()
}

#[test]
fn clusters_are_local_optima_and_restarts_help() -> Result<()> {
    let mut helped = 0;
    for seed in 0..20 {
        let points = uniform((40, 2), 1.0, &mut ChaCha8Rng::seed_from_u64(seed));
        let clustered = |restarts: usize| -> Result<Vec<usize>> {
            let rng = &mut ChaCha8Rng::seed_from_u64(100 + seed);
            Ok(KMeans::new(5)?.with_restarts(restarts)?.by_features(points.view(), rng)?.most_likely())
        };
        let (one, many) = (clustered(1)?, clustered(8)?);
        let (lone, best) = (inertia(&points, &one, 5), inertia(&points, &many, 5));
        assert!(best <= lone + 1e-12, "{best} after {lone}");
        helped += usize::from(best < lone - 1e-9);
        // Lloyd's fixed point: everybody is nearest to the mean of its own cluster.
        let members = |k: usize| (0..40).filter(|&i| many[i] == k).collect::<Vec<_>>();
        let mean = |k: usize| points.select(Axis(0), &members(k)).mean_axis(Axis(0)).expect("no cluster is empty");
        for (point, &own) in many.iter().enumerate() {
            let far = |k: usize| (&points.row(point) - &mean(k)).mapv(|x| x * x).sum();
            let nearest = (0..5).map(far).fold(f64::INFINITY, f64::min);
            assert!(far(own) <= nearest + 1e-12, "point {point} is nearer to another cluster");
        }
    }
    assert!(helped > 0, "no restart ever helped");
    Ok(())
}

#[test]
fn no_cluster_is_left_empty() -> Result<()> {
    let rng = &mut ChaCha8Rng::seed_from_u64(21);
    let same = KMeans::new(3)?.by_features(Array2::ones((5, 2)).view(), rng)?;
    assert!(same.proportions().iter().all(|&share| share > 0.0), "{same:?}");
    let votes = Votes::new(&[0, 1, 2], &[0, 0, 0], &[true, true, true], (3, 1))?;
    let mut apart = KMeans::new(3)?.by_votes(&votes, rng)?.most_likely();
    apart.sort_unstable();
    assert_eq!(apart, [0, 1, 2]);
    // As many clusters as different points: each is its own.
    let points = array![[0.0], [1.0], [1.0], [5.0], [0.0]];
    let found = KMeans::new(3)?.by_features(points.view(), rng)?.most_likely();
    assert_eq!(adjusted_rand_index(&found, &[0, 1, 1, 2, 0])?, 1.0);
    Ok(())
}

#[test]
fn indices_by_hand() -> Result<()> {
    let index = |a: &[usize], b: &[usize]| adjusted_rand_index(a, b);
    assert_eq!(index(&[0, 0, 1, 1], &[7, 7, 3, 3])?, 1.0);
    close(index(&[0, 0, 1, 1], &[0, 0, 1, 2])?, 4.0 / 7.0, 1e-14, 0.0, "a cluster split");
    assert_eq!(index(&[0, 0, 0, 0], &[0, 1, 2, 3])?, 0.0);
    close(index(&[0, 1, 0, 1], &[0, 0, 1, 1])?, -0.5, 1e-14, 0.0, "worse than chance");
    let trivial: [&[usize]; 4] = [&[], &[4], &[1, 1, 1], &[0, 1, 2]];
    for trivial in trivial {
        assert_eq!(index(trivial, trivial)?, 1.0);
    }
    Ok(())
}
