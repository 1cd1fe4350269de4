//! Min-max regret, and the mixture that is deployed.

use ndarray::{Array2, array};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    population::{PolicyMixture, min_max, regret_matrix},
};

use super::uniform;
use crate::{all_close, close, identities::config};

proptest! {
    #![proptest_config(config())]

    /// Of optimistic multiplicative weights: the gap is O(1/rounds) with the constant of the docs, and the value lies inside.
    #[test]
    fn the_gap_closes_at_its_rate(seed in any::<u64>(), rows in 1..6_usize, columns in 1..6_usize, scale in 0.01..100.0) {
        let payoff = uniform((rows, columns), scale, &mut ChaCha8Rng::seed_from_u64(seed));
        let largest = payoff.iter().fold(0.0, |largest: f64, a| largest.max(a.abs()));
        for rounds in [1, 3, 10, 100, 1000] {
            let found = min_max(payoff.view(), rounds, None)?;
            let bound = largest * (4.0 * ((rows * columns) as f64).ln() + 0.5) / rounds as f64;
            prop_assert!(found.gap <= bound * (1.0 + 1e-9), "gap {} above {bound} after {rounds} rounds", found.gap);
            prop_assert!(found.gap >= -1e-12 * largest);
            let pays = payoff.dot(&found.policies);
            let gets = found.types.dot(&payoff);
            let (high, low) = (pays.fold(f64::NEG_INFINITY, |m, v| m.max(*v)), gets.fold(f64::INFINITY, |m, v| m.min(*v)));
            close(high - low, found.gap, 1e-9, largest, "gap");
            prop_assert!(low - 1e-9 * largest <= found.value && found.value <= high + 1e-9 * largest);
            close(found.policies.sum(), 1.0, 1e-12, 0.0, "weights");
            close(found.types.sum(), 1.0, 1e-12, 0.0, "weights");
        }
    }

    /// Doubling what is at stake changes nobody's play; players who change seats change signs.
    #[test]
    fn the_game_is_equivariant(seed in any::<u64>(), rows in 1..5_usize, columns in 1..5_usize) {
        let payoff = uniform((rows, columns), 1.0, &mut ChaCha8Rng::seed_from_u64(seed));
        let found = min_max(payoff.view(), 50, None)?;
        let doubled = min_max((&payoff * 2.0).view(), 50, None)?;
        prop_assert_eq!(&doubled.policies, &found.policies);
        close(doubled.value, 2.0 * found.value, 1e-14, 1.0, "value");
        let turned = min_max(payoff.t().mapv(|a| -a).view(), 50, None)?;
        all_close(&turned.types.to_vec(), &found.policies.to_vec(), 1e-10, "seats");
        all_close(&turned.policies.to_vec(), &found.types.to_vec(), 1e-10, "seats");
        close(turned.value, -found.value, 1e-10, 1.0, "value");
    }
}

#[test]
fn regrets_are_of_the_rows_own_policy() -> Result<()> {
    // Two types and a pooled policy.
    let found = regret_matrix(array![[2.0, -1.0, 0.5], [-3.0, 1.0, 1.25]].view(), array![1.0, 0.5].view())?;
    assert_eq!(found, array![[0.0, 3.0, 1.5], [2.0, 0.0, -0.125], [0.0, 0.0, 0.0]]);
    Ok(())
}

#[test]
fn games_of_known_value() -> Result<()> {
    let solve = |payoff: Array2<f64>| min_max(payoff.view(), 5000, None);
    // Types that oppose each other alike: half of the time each, and each regrets half.
    let symmetric = solve(regret_matrix(array![[2.0, -1.0], [-1.0, 2.0]].view(), array![1.0, 1.0].view())?)?;
    all_close(&symmetric.policies.to_vec(), &[0.5, 0.5], 1e-2, "policies");
    all_close(&symmetric.types.to_vec(), &[0.5, 0.5, 0.0], 1e-2, "types");
    close(symmetric.value, 1.5, 5e-3, 0.0, "value");
    assert_eq!(symmetric.mixture().weights(), symmetric.policies.to_vec());
    // The same with a policy that both can live with: it alone is deployed.
    let ratios = array![[2.0, -1.0, 1.0], [-1.0, 2.0, 1.0]];
    let compromise = solve(regret_matrix(ratios.view(), array![1.0, 1.0].view())?)?;
    all_close(&compromise.policies.to_vec(), &[0.0, 0.0, 1.0], 1e-2, "policies");
    close(compromise.value, 1.0, 5e-3, 0.0, "value");
    // Each likes the other's policy better than its own: nobody regrets anything, and the zero row says so.
    let content = solve(regret_matrix(array![[1.0, 2.0], [2.0, 1.0]].view(), array![1.0, 1.0].view())?)?;
    close(content.value, 0.0, 5e-3, 1.0, "value");
    // Off-diagonal regrets a and b: the first policy with probability a/(a + b), for the value ab/(a + b).
    let uneven = solve(array![[0.0, 3.0], [1.0, 0.0], [0.0, 0.0]])?;
    all_close(&uneven.policies.to_vec(), &[0.75, 0.25], 1e-2, "policies");
    close(uneven.value, 0.75, 5e-3, 0.0, "value");
    let rock_paper_scissors = solve(array![[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])?;
    all_close(&rock_paper_scissors.policies.to_vec(), &[1.0 / 3.0; 3], 1e-2, "policies");
    // A policy that is better for everybody.
    let dominated = solve(array![[2.0, 1.0], [3.0, 0.5]])?;
    all_close(&dominated.policies.to_vec(), &[0.0, 1.0], 1e-2, "policies");
    let nothing = min_max(Array2::zeros((2, 4)).view(), 10, None)?;
    assert_eq!((nothing.value, nothing.gap), (0.0, 0.0));
    all_close(&nothing.policies.to_vec(), &[0.25; 4], 1e-15, "policies");
    // A smaller step is slower.
    let slow = min_max(array![[0.0, 3.0], [1.0, 0.0]].view(), 200, Some(1e-3))?;
    let fast = min_max(array![[0.0, 3.0], [1.0, 0.0]].view(), 200, None)?;
    assert!(slow.gap > fast.gap, "{} {}", slow.gap, fast.gap);
    Ok(())
}

#[test]
fn a_mixture_of_whole_responses() -> Result<()> {
    let members = array![[0.7_f64, 0.3, 0.0], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6]];
    let mixture = PolicyMixture::new(vec![0.25, 0.75, 0.0])?;
    let found = mixture.log_probability(members.mapv(f64::ln).view())?;
    let expected: Vec<f64> = (0..3).map(|y| (0.25 * members[[0, y]] + 0.75 * members[[1, y]]).ln()).collect();
    all_close(&found.to_vec(), &expected, 1e-13, "log π");
    close(found.mapv(f64::exp).sum(), 1.0, 1e-13, 0.0, "all responses");
    // As unlikely as whole responses are.
    let far = mixture.log_probability(array![[-900.0], [-901.0], [0.0]].view())?;
    close(far[0], -900.0 + (0.25 + 0.75 * (-1.0_f64).exp()).ln(), 1e-14, 0.0, "log π");
    let never =
        PolicyMixture::new(vec![0.5, 0.5])?.log_probability(array![[f64::NEG_INFINITY], [f64::NEG_INFINITY]].view())?;
    assert_eq!(never[0], f64::NEG_INFINITY);

    let draw = |seed: u64| {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        (0..20_000).map(|_| mixture.sample(rng)).collect::<Vec<_>>()
    };
    let drawn = draw(22);
    assert_eq!(drawn, draw(22));
    let share = drawn.iter().filter(|&&member| member == 0).count() as f64 / drawn.len() as f64;
    assert!((share - 0.25).abs() < 0.015, "{share}");
    assert!(drawn.iter().all(|&member| member < 2));
    Ok(())
}
