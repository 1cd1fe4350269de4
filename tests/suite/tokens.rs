//! What treats a response's tokens differently: LD-DPO's lengths, WPO's weights. Golden values in `trl`.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PairLogps, Result,
    logps::log_collision,
    pairs::TokenLogps,
    tch::{Device, Kind, Tensor},
};

use crate::{all_close, close, contrastive::refused, identities::config, numbers};

/// Token log-probabilities of pairs, `[pair][side][token]`.
#[derive(Debug)]
struct Case {
    policy: Vec<[Vec<f64>; 2]>,
    reference: Vec<[Vec<f64>; 2]>,
}

impl Case {
    fn random(pairs: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let lengths: Vec<[usize; 2]> = (0..pairs).map(|_| [rng.random_range(1..6), rng.random_range(1..6)]).collect();
        let mut draw = || {
            let mut row = |n: usize| (0..n).map(|_| rng.random_range(-3.0..-0.1)).collect::<Vec<f64>>();
            lengths.iter().map(|[chosen, rejected]| [row(*chosen), row(*rejected)]).collect()
        };
        Self { policy: draw(), reference: draw() }
    }

    /// Padded on the left by `before` places of prompt, and to a common time; off the response lie numbers that nobody may read.
    fn padded(&self, before: usize) -> Result<([TokenLogps; 2], Vec<Tensor>)> {
        let mut leaves = vec![];
        let mut side = |side: usize| {
            let time = before + 1 + self.policy.iter().map(|pair| pair[side].len()).max().expect("a pair");
            let table = |of: &[[Vec<f64>; 2]]| {
                let row = |tokens: &Vec<f64>| {
                    let mut row = vec![f64::NAN; time];
                    row[before..before + tokens.len()].copy_from_slice(tokens);
                    row
                };
                Tensor::from_slice2(&of.iter().map(|pair| row(&pair[side])).collect::<Vec<_>>())
            };
            let (policy, reference) = (table(&self.policy).set_requires_grad(true), table(&self.reference));
            let mask = policy.detach().isnan().logical_not();
            leaves.push(policy.shallow_clone());
            TokenLogps::new(&policy, &reference, mask)
        };
        let sides = [side(0)?, side(1)?];
        Ok((sides, leaves))
    }

    fn flat(tokens: &[[Vec<f64>; 2]]) -> Tensor {
        Tensor::from_slice(&tokens.iter().flatten().flatten().copied().collect::<Vec<_>>())
    }

    fn lengths(&self) -> Tensor {
        Tensor::from_slice(&self.policy.iter().flatten().map(|tokens| tokens.len() as i64).collect::<Vec<_>>())
    }

    /// The first min(|y_w|, |y_l|) tokens and α times the rest, of one model and side.
    fn weighted(tokens: &[[Vec<f64>; 2]], side: usize, alpha: f64) -> Vec<f64> {
        let sum = |pair: &[Vec<f64>; 2]| {
            let shared = pair[0].len().min(pair[1].len());
            pair[side][..shared].iter().sum::<f64>() + alpha * pair[side][shared..].iter().sum::<f64>()
        };
        tokens.iter().map(sum).collect()
    }

    fn expect(&self, logps: &PairLogps, alpha: f64, what: &str) {
        let found = [logps.chosen(), logps.rejected(), logps.ref_chosen(), logps.ref_rejected()];
        let models = [&self.policy, &self.policy, &self.reference, &self.reference];
        for (i, (found, tokens)) in found.into_iter().zip(models).enumerate() {
            all_close(
                &numbers(found),
                &Self::weighted(tokens, i % 2, alpha),
                1e-13,
                format_args!("{what}, column {i}"),
            );
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn length_desensitised(seed in any::<u64>(), alpha in 0.0..1.0_f64, before in 0..3_usize) {
        let case = Case::random(4, seed);
        for alpha in [alpha, 0.0, 1.0] {
            let ([chosen, rejected], _) = case.padded(before).expect("fits");
            let logps = PairLogps::length_desensitised(&chosen, &rejected, alpha).expect("no empty response");
            case.expect(&logps, alpha, "padded");
            let [chosen, rejected] = TokenLogps::of_packed_pairs(&Case::flat(&case.policy), &Case::flat(&case.reference), &case.lengths())
                .expect("fits");
            let logps = PairLogps::length_desensitised(&chosen, &rejected, alpha).expect("no empty response");
            case.expect(&logps, alpha, "packed");
            let lengths = TokenLogps::pair_lengths(&chosen, &rejected).expect("no empty response");
            let side = |side: usize| case.policy.iter().map(|pair| pair[side].len() as f64).collect::<Vec<_>>();
            all_close(&numbers(lengths.chosen()), &side(0), 0.0, "lengths");
            all_close(&numbers(lengths.rejected()), &side(1), 0.0, "lengths");
        }
    }

    /// e^{mean of log π − a}, by hand.
    #[test]
    fn policy_weights(seed in any::<u64>(), alignment in -2.0..0.0_f64) {
        let case = Case::random(3, seed);
        let (sides, leaves) = case.padded(1).expect("fits");
        for (side, tokens) in sides.iter().enumerate() {
            // NaN off the response, as the log-probabilities have.
            let a = leaves[side].detach() * 0.0 + alignment;
            let found = tokens.policy_weight(&a).expect("fits");
            prop_assert!(!found.requires_grad());
            let mean = |tokens: &Vec<f64>| tokens.iter().sum::<f64>() / tokens.len() as f64;
            let expected: Vec<f64> = case.policy.iter().map(|pair| (mean(&pair[side]) - alignment).exp()).collect();
            all_close(&numbers(&found), &expected, 1e-13, "weight");
        }
    }

    /// Σ π², between one over the vocabulary and 1; log E π bounds E log π.
    #[test]
    fn collisions(seed in any::<u64>(), scale in 0.0..20.0_f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let logits: Vec<f64> = (0..7).map(|_| scale * rng.random_range(-1.0..1.0)).collect();
        let found = numbers(&log_collision(&Tensor::from_slice(&logits).view([1, 1, 7])).expect("floats"))[0];
        let logps = crate::oracle::log_softmax(&logits);
        let expected = logps.iter().map(|l| (2.0 * l).exp()).sum::<f64>().ln();
        close(found, expected, 1e-12, 1.0, "log Σ π²");
        let entropy = -logps.iter().map(|l| l.exp() * l).sum::<f64>();
        prop_assert!(found >= -(7.0_f64.ln()) - 1e-12 && found <= 1e-12 && -entropy <= found + 1e-12);
    }
}

/// Gradients: 1 at shared tokens, α beyond, 0 off the response, NaN nowhere.
#[test]
fn gradients_of_tokens() -> Result<()> {
    let case = Case { policy: vec![[vec![-1.0; 2], vec![-1.0; 4]]], reference: vec![[vec![-1.0; 2], vec![-1.0; 4]]] };
    let ([chosen, rejected], leaves) = case.padded(1)?;
    let logps = PairLogps::length_desensitised(&chosen, &rejected, 0.25)?;
    (logps.chosen() + logps.rejected()).sum(Kind::Double).backward();
    assert_eq!(numbers(&leaves[0].grad()), [0.0, 1.0, 1.0, 0.0]);
    assert_eq!(numbers(&leaves[1].grad()), [0.0, 1.0, 1.0, 0.25, 0.25, 0.0]);
    Ok(())
}

/// A uniform policy's own samples weigh 1, whatever their length; likely ones of another policy weigh more than unlikely ones.
#[test]
fn a_draw_of_the_policy_weighs_one() -> Result<()> {
    let logits = Tensor::zeros([2, 3, 5], (Kind::Double, Device::Cpu));
    let tokens = Tensor::zeros([2, 3], (Kind::Double, Device::Cpu)) - 5.0_f64.ln();
    let mask = Tensor::from_slice2(&[[true, true, true], [true, false, false]]);
    let uniform = TokenLogps::new(&tokens, &tokens, mask)?;
    all_close(&numbers(&uniform.policy_weight(&log_collision(&logits)?)?), &[1.0, 1.0], 1e-14, "uniform");
    Ok(())
}

#[test]
fn refusals() -> Result<()> {
    let t = |rows: i64, time: i64| Tensor::zeros([rows, time], (Kind::Double, Device::Cpu));
    let mask = |rows: i64, time: i64| t(rows, time).to_kind(Kind::Bool).logical_not();
    refused(
        TokenLogps::new(&t(2, 3).get(0), &t(2, 3), mask(2, 3)),
        "token_logps must have shape [batch, time], got [3]",
    );
    refused(
        TokenLogps::new(&t(2, 3), &t(2, 4), mask(2, 3)),
        "ref_token_logps must have shape [batch, time] with time = 3, got time = 4",
    );
    refused(
        TokenLogps::new(&t(2, 3), &t(2, 3), mask(1, 3)),
        "response must have shape [batch, time] with batch = 2, got batch = 1",
    );
    refused(TokenLogps::new(&t(2, 3), &t(2, 3), t(2, 3)), "response must be Bool, got Double");
    refused(
        TokenLogps::new(&t(2, 3), &t(2, 3).to_kind(Kind::Float), mask(2, 3)),
        "ref_token_logps must be Double like the tensors it goes with, got Float",
    );
    let (one, empty) = (
        TokenLogps::new(&t(1, 3), &t(1, 3), mask(1, 3))?,
        TokenLogps::new(&t(1, 3), &t(1, 3), mask(1, 3).logical_not())?,
    );
    for alpha in [-0.1, 1.1, f64::NAN] {
        refused(
            PairLogps::length_desensitised(&one, &one, alpha),
            &format!("ld_alpha must be at least 0 and at most 1, got {alpha}"),
        );
    }
    refused(
        PairLogps::length_desensitised(&one, &empty, 0.5),
        "rejected_lengths[0] must be at least 1 token (an empty response has no mean), got 0",
    );
    refused(one.policy_weight(&t(1, 4)), "alignment must have shape [batch, time] with time = 3, got time = 4");
    let (flat, lengths) = (Tensor::from_slice(&[-1.0; 5]), |l: &[i64]| Tensor::from_slice(l));
    let packed = |l: &[i64]| TokenLogps::of_packed_pairs(&flat, &flat, &lengths(l));
    refused(packed(&[2, 2, 1]), "lengths must have shape [2 · pairs] with responses = 4, got responses = 3");
    refused(packed(&[2, 2]), "token_logps must have shape [tokens] with tokens = 4, got tokens = 5");
    refused(packed(&[5, 0]), "lengths[1] must be at least 1 token, got 0");
    assert!(packed(&[2, 3]).is_ok());
    refused(log_collision(&lengths(&[1])), "logits must be of a floating-point kind, got Int64");
    Ok(())
}
