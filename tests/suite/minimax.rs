//! The theorem behind pessimistic distillation: max_π min_r E_π r − E_ref r − β KL(π ‖ π_ref) over a convex hull of rewards is solved by
//! the Gibbs policy nearest to the reference, and the minimum over the hull with a small anchor finds it.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PreferenceLoss, Result,
    loss::{ForwardKl, Minimum, PessimisticDistillation},
};

use crate::{all_close, close, identities::config, optimum::Toy, oracle};

const BETA: f64 = 1.0;

/// E_π r − E_ref r − β KL(π ‖ π_ref): in **reverse** KL, unlike the loss's anchor.
fn payoff(policy: &[f64], reference: &[f64], rewards: &[f64]) -> f64 {
    let gain = |i: usize| (policy[i].exp() - reference[i].exp()) * rewards[i];
    (0..policy.len()).map(gain).sum::<f64>() - BETA * oracle::kl(policy, reference)
}

fn worst(policy: &[f64], toy: &Toy) -> f64 {
    toy.rewards.iter().map(|r| payoff(policy, &toy.reference, r)).fold(f64::INFINITY, f64::min)
}

/// The Gibbs policy of a mixture of two or three members with the smallest KL(π_ref ‖ π_r), by nested ternary search: the
/// divergence is log E_ref e^{r/β} − E_ref r/β, convex in r.
fn nearest_gibbs(toy: &Toy) -> Vec<f64> {
    let policy = |w: &[f64]| oracle::gibbs(&toy.reference, &oracle::mix(&toy.rewards, w), BETA);
    let divergence = |w: &[f64]| oracle::kl(&toy.reference, &policy(w));
    if toy.rewards.len() == 2 {
        let t = ternary(|t| divergence(&[t, 1.0 - t]));
        return policy(&[t, 1.0 - t]);
    }
    let split = |s: f64, t: f64| [s, (1.0 - s) * t, (1.0 - s) * (1.0 - t)];
    let inner = |s: f64| ternary(|t| divergence(&split(s, t)));
    let s = ternary(|s| divergence(&split(s, inner(s))));
    policy(&split(s, inner(s)))
}

fn ternary(f: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if f(a) <= f(b) { high = b } else { low = a }
    }
    0.5 * (low + high)
}

fn random(members: usize, responses: usize, seed: u64) -> Toy {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || (0..responses).map(|_| rng.random_range(-1.5..1.5)).collect::<Vec<f64>>();
    let rewards = (0..members).map(|_| draw()).collect();
    Toy { reference: oracle::log_softmax(&draw()), rewards, pairs: Toy::all_pairs(responses as i64) }
}

/// With γ small and the hull's edge in sight, what is left is O(γ).
fn anchored(toy: &Toy, minimum: Minimum) -> Result<Vec<f64>> {
    let loss = PessimisticDistillation::new(BETA)?.with_minimum(minimum).plus(1e-3, ForwardKl::Exact);
    toy.descend(&loss, 0.5, 0.97, 3000)
}

proptest! {
    #![proptest_config(config())]

    /// At the theorem's policy the worst member pays β KL(π_ref ‖ π), and no other policy gets more out of its worst member.
    #[test]
    fn the_nearest_gibbs_policy_is_the_saddle_point(seed in any::<u64>(), members in 2..4_usize, responses in 3..5_usize, other in any::<u64>()) {
        let toy = random(members, responses, seed);
        let best = nearest_gibbs(&toy);
        let value = BETA * oracle::kl(&toy.reference, &best);
        close(worst(&best, &toy), value, 1e-5, 1.0, "value of the game");
        let rival = random(1, responses, other).reference;
        prop_assert!(worst(&rival, &toy) <= value + 1e-9);
        for share in [0.1, 0.01] {
            let near: Vec<f64> = best.iter().zip(&rival).map(|(b, r)| ((1.0 - share) * b.exp() + share * r.exp()).ln()).collect();
            prop_assert!(worst(&near, &toy) <= value + 1e-9);
        }
    }
}

#[test]
fn the_anchored_hull_finds_it() -> Result<()> {
    for (members, responses, seed) in [(2, 3, 1), (2, 4, 2), (3, 4, 3)] {
        let toy = random(members, responses, seed);
        all_close(&anchored(&toy, Minimum::Hull)?, &nearest_gibbs(&toy), 5e-3, format_args!("seed {seed}"));
    }
    Ok(())
}

/// Two members that disagree symmetrically: the hull's answer is the reference, and no member's Gibbs policy is. The minimum over
/// the members ends at one of them and gets less out of its worst member.
#[test]
fn a_minimum_over_the_members_does_not() -> Result<()> {
    let toy = Toy::new(&[0.25, 0.25, 0.5], &[&[1.0, -1.0, 0.05], &[-1.0, 1.0, 0.0]], Toy::all_pairs(3));
    let (best, hull, batch) = (nearest_gibbs(&toy), anchored(&toy, Minimum::Hull)?, anchored(&toy, Minimum::Batch)?);
    all_close(&hull, &best, 5e-3, "hull");
    let to_member = |m: usize| {
        let gibbs = oracle::gibbs(&toy.reference, &toy.rewards[m], BETA);
        gibbs.iter().zip(&batch).map(|(g, b)| (g - b).abs()).fold(0.0, f64::max)
    };
    assert!(to_member(0).min(to_member(1)) < 1e-2, "{batch:?}");
    assert!(worst(&batch, &toy) < worst(&best, &toy) - 0.1);
    Ok(())
}
