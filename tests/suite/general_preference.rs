//! The general preference model (score, table, head, likelihood), GPO's regression, and self-play on a table of scores.

use ndarray::{Array1, Array2, array};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseTable, Result, RewardScores,
    loss::{Centring, Gpo, RewardDistillation, scores_against},
    population::SelfPlay,
    reward::{
        BradleyTerry, GeneralPreference, GeneralPreferenceHead, Norm, RewardBatch, RewardObjective, ScaleGate,
        preference_score, preference_table,
    },
    tch::{Device, Kind, Tensor, nn},
    train::{AdamW, AdamWConfig, Descent},
};

use crate::{all_close, close, identities::config, number, numbers, oracle};

/// Σ_b λ_b (v[2b] w[2b+1] − v[2b+1] w[2b]).
fn score(v: &[f64], w: &[f64], scales: &[f64]) -> f64 {
    let area = |b: usize| v[2 * b] * w[2 * b + 1] - v[2 * b + 1] * w[2 * b];
    scales.iter().enumerate().map(|(b, scale)| scale * area(b)).sum()
}

/// Mean of (d − d̄)², or of d² uncentred, d = log π − log π_t − ŝ/β.
fn regression(policy: &[f64], current: &[f64], scores: &[f64], beta: f64, centring: Centring) -> f64 {
    let residuals: Vec<f64> = (0..policy.len()).map(|i| policy[i] - current[i] - scores[i] / beta).collect();
    let centre = match centring {
        Centring::Prompt => oracle::mean(residuals.iter().copied()),
        Centring::None => 0.0,
    };
    oracle::mean(residuals.iter().map(|d| (d - centre).powi(2)))
}

fn draw(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

fn positive(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.random_range(0.0..2.0)).collect()
}

fn tensor(values: &[f64], shape: &[i64]) -> Tensor {
    Tensor::from_slice(values).view(shape)
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, Device::Cpu))
}

fn leaf(values: &[f64], shape: &[i64]) -> Tensor {
    tensor(values, shape).set_requires_grad(true)
}

/// Unit vectors at multiples of 360°/n, counter-clockwise, `[n, 2]`.
fn circle(n: i64) -> Tensor {
    let angle = Tensor::arange(n, (Kind::Double, Device::Cpu)) * (std::f64::consts::TAU / n as f64);
    Tensor::stack(&[angle.cos(), angle.sin()], 1)
}

proptest! {
    #![proptest_config(config())]

    /// In f32 too: antisymmetry is exact, not to rounding.
    #[test]
    fn the_table_is_the_score_of_every_pair(seed in any::<u64>(), batch in 1..4_usize, responses in 1..5_usize, blocks in 1..4_usize, scaled in any::<bool>()) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values = draw(&mut rng, batch * responses * 2 * blocks);
        let scales = if scaled { positive(&mut rng, batch * blocks) } else { vec![1.0; batch * blocks] };
        let [b, r, k] = [batch, responses, blocks].map(|n| n as i64);
        let of = |p: usize, i: usize| &values[(p * responses + i) * 2 * blocks..][..2 * blocks];
        for (kind, tolerance) in [(Kind::Double, 1e-13), (Kind::Float, 1e-5)] {
            let (embeddings, lambda) = (tensor(&values, &[b, r, 2 * k]).to_kind(kind), tensor(&scales, &[b, k]).to_kind(kind));
            let table = preference_table(&embeddings, scaled.then_some(&lambda))?;
            prop_assert_eq!(table.size(), vec![b, r, r]);
            let found = numbers(&table);
            for p in 0..batch {
                let at = |i: usize, j: usize| found[(p * responses + i) * responses + j];
                for (i, j) in (0..responses).flat_map(|i| (0..responses).map(move |j| (i, j))) {
                    close(at(i, j), score(of(p, i), of(p, j), &scales[p * blocks..][..blocks]), tolerance, 1.0, "score");
                    prop_assert_eq!(at(i, j), -at(j, i));
                }
                prop_assert!((0..responses).all(|i| at(i, i) == 0.0));
            }
        }
    }

    #[test]
    fn the_score_is_its_equation_and_antisymmetric(seed in any::<u64>(), rows in 1..6_usize, blocks in 1..4_usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [v, w] = [0, 1].map(|_| draw(&mut rng, rows * 2 * blocks));
        let scales = positive(&mut rng, rows * blocks);
        let [n, k] = [rows, blocks].map(|n| n as i64);
        let (first, second, lambda) = (tensor(&v, &[n, 2 * k]), tensor(&w, &[n, 2 * k]), tensor(&scales, &[n, k]));
        let row = |i: usize| score(&v[i * 2 * blocks..][..2 * blocks], &w[i * 2 * blocks..][..2 * blocks], &scales[i * blocks..][..blocks]);
        let forth = preference_score(&first, &second, Some(&lambda))?;
        all_close(&numbers(&forth), &(0..rows).map(row).collect::<Vec<_>>(), 1e-13, "scores");
        let back = preference_score(&second, &first, Some(&lambda))?;
        prop_assert_eq!(numbers(&forth), numbers(&-back));
        prop_assert_eq!(numbers(&preference_score(&first, &first, None)?), vec![0.0; rows]);
        // Whatever comes before the last axis.
        let deep = preference_score(&first.view([1, n, 2 * k]), &second.view([1, n, 2 * k]), None)?;
        prop_assert_eq!(deep.size(), vec![1, n]);
        let one = preference_score(&first.get(0), &second.get(0), Some(&lambda.get(0)))?;
        prop_assert_eq!(one.size(), Vec::<i64>::new());
        close(number(&one), row(0), 1e-13, 1.0, "one pair");
    }

    #[test]
    fn with_a_constant_second_number_it_is_bradley_terry(seed in any::<u64>(), rows in 1..6_usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [chosen, rejected] = [0, 1].map(|_| Tensor::from_slice(&draw(&mut rng, rows)));
        let embed = |rewards: &Tensor| Tensor::stack(&[rewards, &rewards.ones_like()], 1);
        let found = GeneralPreference::new(1.0)?.per_pair(&preference_score(&embed(&chosen), &embed(&rejected), None)?)?;
        let batch = RewardBatch::new(RewardScores::single(&chosen, &rejected)?);
        all_close(&numbers(&found), &numbers(&BradleyTerry::new(0.0)?.per_pair(&batch)?), 1e-14, "losses");
    }

    /// The margin before the division: (s − m)/τ and not s/τ − m.
    #[test]
    fn the_likelihood_is_its_equation(scores in prop::collection::vec(-3.0..3.0, 1..6), temperature in 0.05..2.0, margin in 0.0..1.0) {
        let objective = GeneralPreference::new(temperature)?.with_margin(margin)?;
        let s = leaf(&scores, &[scores.len() as i64]);
        let losses = objective.per_pair(&s)?;
        let expected: Vec<f64> = scores.iter().map(|s| -oracle::log_sigmoid((s - margin) / temperature)).collect();
        all_close(&numbers(&losses), &expected, 1e-13, "losses");
        close(number(&objective.mean(&s)?), oracle::mean(expected.into_iter()), 1e-13, 0.0, "mean");
        losses.sum(Kind::Double).backward();
        let slopes: Vec<f64> = scores.iter().map(|s| -oracle::sigmoid((margin - s) / temperature) / temperature).collect();
        all_close(&numbers(&s.grad()), &slopes, 1e-12, "gradient");
        let (forth, back) = (objective.probability(&s), objective.probability(&-&s));
        all_close(&numbers(&forth), &scores.iter().map(|s| oracle::sigmoid(s / temperature)).collect::<Vec<_>>(), 1e-13, "P");
        all_close(&numbers(&(forth + back)), &vec![1.0; scores.len()], 1e-14, "P(i, j) + P(j, i)");
    }

    /// Value, gradient, and that of K responses it is distillation on all pairs, over β² K².
    #[test]
    fn the_regression_is_its_equation(seed in any::<u64>(), batch in 1..4_usize, responses in 2..6_usize, beta in 0.05..2.0) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [policy, current, scores] = [0, 1, 2].map(|_| draw(&mut rng, batch * responses));
        let shape = [batch as i64, responses as i64];
        let of = |values: &[f64], p: usize| values[p * responses..][..responses].to_vec();
        for centring in [Centring::Prompt, Centring::None] {
            let value = |policy: &[f64], p: usize| regression(&of(policy, p), &of(&current, p), &of(&scores, p), beta, centring);
            let leaves = [&policy, &current, &scores].map(|values| leaf(values, &shape));
            let table = ResponseTable::new(leaves[0].shallow_clone(), leaves[1].shallow_clone())?;
            let gpo = Gpo::new(beta)?.with_centring(centring);
            let losses = gpo.per_prompt(&table, &leaves[2])?;
            let expected: Vec<f64> = (0..batch).map(|p| value(&policy, p)).collect();
            all_close(&numbers(&losses), &expected, 1e-12, "losses");
            close(number(&gpo.mean(&table, &leaves[2])?), oracle::mean(expected.into_iter()), 1e-12, 1.0, "mean");
            losses.sum(Kind::Double).backward();
            let slope = |i: usize| {
                let moved = |step: f64| policy.iter().enumerate().map(|(j, l)| if i == j { l + step } else { *l }).collect::<Vec<_>>();
                // Quadratic: central differences have no error but rounding, so the step may be large.
                value(&moved(0.5), i / responses) - value(&moved(-0.5), i / responses)
            };
            all_close(&numbers(&leaves[0].grad()), &(0..policy.len()).map(slope).collect::<Vec<_>>(), 1e-10, "gradient");
            prop_assert!(leaves[1..].iter().all(|data| !data.grad().defined()), "a gradient reached the data");
        }
        let loss = Gpo::new(beta)?;
        let table = ResponseTable::new(tensor(&policy, &shape), tensor(&current, &shape))?;
        let found = numbers(&loss.per_prompt(&table, &tensor(&scores, &shape))?);
        for (p, found) in found.into_iter().enumerate() {
            let (firsts, seconds): (Vec<usize>, Vec<usize>) = (0..responses).flat_map(|i| (0..i).map(move |j| (i, j))).unzip();
            let pick = |values: &[f64], side: &[usize]| Tensor::from_slice(&side.iter().map(|i| of(values, p)[*i]).collect::<Vec<_>>());
            let logps = PairLogps::new(pick(&policy, &firsts), pick(&policy, &seconds), pick(&current, &firsts), pick(&current, &seconds))?;
            let rewards = RewardScores::single(&pick(&scores, &firsts), &pick(&scores, &seconds))?;
            let pairs = RewardDistillation::new(beta)?.per_pair(&PreferenceBatch::new(logps).with_rewards(rewards)?)?;
            close(found, numbers(&pairs).iter().sum::<f64>() / (beta * responses as f64).powi(2), 1e-11, 1.0, "all pairs");
        }
    }

    /// What the reward or the likelihood of a prompt adds to all its responses drops out.
    #[test]
    fn a_constant_of_the_prompt_changes_nothing(seed in any::<u64>(), responses in 2..6_usize, beta in 0.05..2.0, shift in -5.0..5.0) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [policy, current, scores] = [0, 1, 2].map(|_| tensor(&draw(&mut rng, responses), &[1, responses as i64]));
        let loss = Gpo::new(beta)?;
        let value = |policy: &Tensor, scores: &Tensor| -> Result<f64> {
            Ok(number(&loss.per_prompt(&ResponseTable::new(policy.shallow_clone(), current.shallow_clone())?, scores)?))
        };
        let plain = value(&policy, &scores)?;
        close(value(&policy, &(&scores + shift))?, plain, 1e-10, 1.0, "shifted scores");
        close(value(&(&policy + shift), &scores)?, plain, 1e-10, 1.0, "shifted likelihoods");
    }

    /// A mean over the opponents, not over the responses; of a prompt's own table it sums to 0.
    #[test]
    fn scores_against_samples_are_means_over_opponents(seed in any::<u64>(), responses in 1..5_usize, opponents in 1..5_usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values = draw(&mut rng, 2 * responses * opponents);
        let found = scores_against(&tensor(&values, &[2, responses as i64, opponents as i64]))?;
        prop_assert_eq!(found.size(), vec![2, responses as i64]);
        let expected: Vec<f64> = values.chunks(opponents).map(|row| oracle::mean(row.iter().copied())).collect();
        all_close(&numbers(&found), &expected, 1e-14, "means");
        let own = preference_table(&tensor(&draw(&mut rng, 8 * responses), &[2, responses as i64, 4]), None)?;
        let sums = scores_against(&own)?.sum_dim_intlist([1].as_slice(), false, Kind::Double);
        all_close(&numbers(&sums), &[0.0; 2], 1e-13, "sums");
    }

    /// Regret of multiplicative weights; the bound holds at every step, and falls as 1/T but for Σ log Z.
    #[test]
    fn the_average_is_within_its_regret(seed in any::<u64>(), responses in 2..6_usize, steps in 0..60_usize, beta in 0.3..5.0) {
        let (scores, start) = game(seed, responses);
        let mut play = SelfPlay::new(scores.clone(), start.clone(), beta)?;
        let log_z = |policy: &Array1<f64>| (policy * &scores.dot(policy).mapv(|s| (s / beta).exp())).sum().ln();
        let mut total = log_z(&play.policy());
        for _ in 0..steps {
            play.step();
            let rise = log_z(&play.policy());
            // Hoeffding: the scores lie in [−2, 2] and their mean under the policy is 0.
            prop_assert!((-1e-12..=16.0 / (8.0 * beta * beta)).contains(&rise));
            total += rise;
        }
        prop_assert_eq!(play.steps(), steps);
        let bound = beta / (steps + 1) as f64 * (start.iter().map(|p| -p.ln()).fold(0.0, f64::max) + total);
        let found = play.exploitability(play.average().view())?;
        prop_assert!((-1e-12..=bound + 1e-9).contains(&found), "{} above {}", found, bound);
    }

    /// s = r_i − r_j: the first step is the Gibbs policy, and the others go on to the best response.
    #[test]
    fn self_play_on_rewards_is_the_gibbs_policy(seed in any::<u64>(), responses in 2..6_usize, beta in 0.3..5.0, steps in 1..20_usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rewards = draw(&mut rng, responses);
        let (_, start) = game(seed, responses);
        let scores = Array2::from_shape_fn((responses, responses), |(i, j)| rewards[i] - rewards[j]);
        let mut play = SelfPlay::new(scores, start.clone(), beta)?;
        (0..steps).for_each(|_| play.step());
        let gibbs = oracle::gibbs(&start.mapv(f64::ln).to_vec(), &rewards, beta / steps as f64);
        all_close(&play.policy().to_vec(), &gibbs.iter().map(|l| l.exp()).collect::<Vec<_>>(), 1e-10, "π ∝ π_0 e^{tr/β}");
    }

    /// One step of the regression on all responses, each weighted alike, is one of self-play from the uniform policy.
    #[test]
    fn the_regression_vanishes_at_the_next_iterate(seed in any::<u64>(), responses in 2..6_usize, beta in 0.1..5.0) {
        let (scores, _) = game(seed, responses);
        let uniform = Array1::from_elem(responses, 1.0 / responses as f64);
        let mut play = SelfPlay::new(scores.clone(), uniform.clone(), beta)?;
        play.step();
        let n = responses as i64;
        let table = tensor(&scores.iter().copied().collect::<Vec<_>>(), &[1, n, n]);
        let row = |policy: &Array1<f64>| leaf(&policy.mapv(f64::ln).to_vec(), &[1, n]);
        let (next, current) = (row(&play.policy()), row(&uniform));
        let loss = Gpo::new(beta)?.mean(&ResponseTable::new(next.shallow_clone(), current)?, &scores_against(&table)?)?;
        prop_assert!(number(&loss) < 1e-20);
        loss.backward();
        prop_assert!(numbers(&next.grad()).iter().all(|g| g.abs() < 1e-10));
    }
}

/// Antisymmetric scores in [−2, 2] and a policy without zeros.
fn game(seed: u64, responses: usize) -> (Array2<f64>, Array1<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let half = Array2::from_shape_fn((responses, responses), |_| rng.random_range(-1.0..1.0));
    let start = Array1::from_shape_fn(responses, |_| rng.random_range(0.1..1.0));
    let total = start.sum();
    (&half - &half.t(), start / total)
}

/// Each response beats the next one by its strength and ties with the others.
fn cycle(strengths: &[f64]) -> Array2<f64> {
    let n = strengths.len();
    let mut scores = Array2::zeros((n, n));
    for (i, &strength) in strengths.iter().enumerate() {
        scores[[i, (i + 1) % n]] = strength;
        scores[[(i + 1) % n, i]] = -strength;
    }
    scores
}

fn distance(p: &Array1<f64>, q: &Array1<f64>) -> f64 {
    0.5 * p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>()
}

fn divergence(p: &Array1<f64>, q: &Array1<f64>) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
}

#[test]
fn three_unit_vectors_make_a_cycle() -> Result<()> {
    let table = preference_table(&circle(3).unsqueeze(0), None)?;
    let s = 0.75_f64.sqrt();
    all_close(&numbers(&table), &[0.0, s, -s, -s, 0.0, s, s, -s, 0.0], 1e-15, "scores");
    Ok(())
}

/// A longer cycle is one block too: the sign of sin(360°/n) is right for neighbours.
#[test]
fn so_do_more_of_them() -> Result<()> {
    for n in 4..8 {
        let neighbours = preference_score(&circle(n), &circle(n).roll([-1_i64], [0_i64]), None)?;
        let expected = vec![(std::f64::consts::TAU / n as f64).sin(); n as usize];
        all_close(&numbers(&neighbours), &expected, 1e-14, "neighbours");
    }
    Ok(())
}

#[test]
fn the_likelihood_of_sure_scores_is_finite() -> Result<()> {
    let s = Tensor::from_slice(&[1e4_f32, -1e4]).set_requires_grad(true);
    let losses = GeneralPreference::default().per_pair(&s)?;
    all_close(&numbers(&losses), &[0.0, 1e5], 1e-6, "losses");
    losses.sum(Kind::Float).backward();
    all_close(&numbers(&s.grad()), &[0.0, -10.0], 1e-6, "gradient");
    Ok(())
}

fn head(norm: Norm, blocks: i64) -> (nn::VarStore, GeneralPreferenceHead) {
    let vs = nn::VarStore::new(Device::Cpu);
    let head = GeneralPreferenceHead::new(&vs.root(), 2, blocks).with_norm(norm);
    (vs, head)
}

fn hidden() -> Tensor {
    Tensor::from_slice2(&[[0.5_f32, -1.0], [2.0, 0.25], [-0.75, 1.5]])
}

fn set(vs: &nn::VarStore, name: &str, value: &Tensor) {
    let _no_grad = prefopt::tch::no_grad_guard();
    vs.variables()[name].shallow_clone().copy_(value);
}

#[test]
fn an_embedding_is_linear_and_of_the_length_that_was_asked_for() -> Result<()> {
    let weight = [[1.0_f32, -2.0], [0.5, 0.25], [-1.0, 1.0], [2.0, 0.0]];
    let bias = [0.5_f32, 0.0, -1.0, 1.0];
    let v = |x: &[f64]| -> Vec<f64> {
        let row = |r: usize| f64::from(weight[r][0]) * x[0] + f64::from(weight[r][1]) * x[1] + f64::from(bias[r]);
        (0..4).map(row).collect()
    };
    let free: Vec<Vec<f64>> = numbers(&hidden()).chunks(2).map(v).collect();
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let unit: Vec<f64> = free.iter().flat_map(|v| v.iter().map(|x| x / length(v))).collect();
    for (norm, expected) in [(Norm::Free, free.concat()), (Norm::Unit, unit)] {
        let (vs, head) = head(norm, 2);
        set(&vs, "embedding.weight", &Tensor::from_slice2(&weight));
        set(&vs, "embedding.bias", &Tensor::from_slice(&bias));
        let found = head.embed(&hidden())?;
        assert_eq!((head.blocks(), found.size()), (2, vec![3, 4]));
        all_close(&numbers(&found), &expected, 1e-6, format_args!("{norm:?}"));
    }
    Ok(())
}

/// With the free norm, weights (w; 0) and bias (0; 1) the head is a reward model: s = w·(x_i − x_j).
#[test]
fn a_free_head_contains_bradley_terry() -> Result<()> {
    let (vs, head) = head(Norm::Free, 1);
    set(&vs, "embedding.weight", &Tensor::from_slice2(&[[2.0_f32, -1.0], [0.0, 0.0]]));
    set(&vs, "embedding.bias", &Tensor::from_slice(&[0.0_f32, 1.0]));
    let table = preference_table(&head.embed(&hidden())?.unsqueeze(0), None)?;
    let rewards = [2.0, 3.75, -3.0];
    let expected: Vec<f64> = rewards.iter().flat_map(|i| rewards.map(|j| i - j)).collect();
    all_close(&numbers(&table), &expected, 1e-6, "scores");
    Ok(())
}

/// s is bilinear: at v = 0 nothing moves, so a head must not start there, and does not.
#[test]
fn zero_embeddings_have_a_zero_gradient_and_a_new_head_has_not() -> Result<()> {
    for norm in [Norm::Free, Norm::Unit] {
        let (vs, head) = head(norm, 2);
        let gradients = |zeroed: bool| -> Result<Vec<f64>> {
            let loss = GeneralPreference::default().mean(&preference_score(
                &head.embed(&hidden())?,
                &head.embed(&hidden().flip([0]))?,
                None,
            )?)?;
            let variables = vs.trainable_variables();
            let found = Tensor::run_backward(&[&loss], &variables, false, false);
            assert_eq!(zeroed, (number(&loss) - 2.0_f64.ln()).abs() < 1e-6, "{norm:?}: log 2 is indifference");
            Ok(found.iter().flat_map(numbers).collect())
        };
        // Of the three pairs one is a response with itself; the other two are one pair in both orders.
        assert!(gradients(false)?.iter().any(|g| g.abs() > 1e-4), "{norm:?}");
        for name in ["embedding.weight", "embedding.bias"] {
            set(&vs, name, &vs.variables()[name].zeros_like());
        }
        assert!(gradients(true)?.iter().all(|g| *g == 0.0), "{norm:?}");
    }
    Ok(())
}

#[test]
fn prompt_scales_start_at_one_and_are_their_gate() -> Result<()> {
    let weight = [[1.0_f32, -2.0], [0.5, 0.25], [-1.0, 1.0]];
    let logits = |x: &[f64]| weight.map(|w| f64::from(w[0]) * x[0] + f64::from(w[1]) * x[1]);
    let rows: Vec<[f64; 3]> = numbers(&hidden()).chunks(2).map(logits).collect();
    let softplus: Vec<f64> = rows.iter().flatten().map(|a| -oracle::log_sigmoid(-a)).collect();
    let softmax: Vec<f64> = rows.iter().flat_map(|a| oracle::log_softmax(a)).map(|l| 3.0 * l.exp()).collect();
    let (_vs, plain) = head(Norm::Unit, 3);
    assert_eq!(numbers(&plain.scales(&hidden())?), [1.0; 9]);
    for (gate, expected) in [(ScaleGate::Softplus, softplus), (ScaleGate::Softmax, softmax)] {
        let (vs, head) = head(Norm::Unit, 3);
        let head = head.with_prompt_scales(&vs.root(), gate);
        let start = head.scales(&hidden())?;
        assert_eq!(start.size(), [3, 3]);
        all_close(&numbers(&start), &[1.0; 9], 1e-6, format_args!("{gate:?} at the start"));
        set(&vs, "scales.weight", &Tensor::from_slice2(&weight));
        set(&vs, "scales.bias", &vs.variables()["scales.bias"].zeros_like());
        all_close(&numbers(&head.scales(&hidden())?), &expected, 1e-6, format_args!("{gate:?}"));
    }
    Ok(())
}

/// Loss after 150 steps down from a random start.
fn fitted(parameters: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) -> Result<f64> {
    let optimizer = AdamW::new(vec![parameters.shallow_clone()], AdamWConfig::default())?;
    let mut descent = Descent::new(optimizer, 0.1)?;
    for _ in 0..150 {
        descent.descend(&loss(parameters)?)?;
    }
    Ok(number(&loss(parameters)?))
}

/// On a cycle no score does better than to call every pair a tie; two blocks get all of it right.
#[test]
fn cycles_are_what_scores_cannot_say() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for n in 3..6_i64 {
        let next = Tensor::arange(n, (Kind::Int64, Device::Cpu)).roll([-1_i64], [0_i64]);
        let rewards = leaf(&draw(&mut rng, n as usize), &[n]);
        let bradley_terry = fitted(&rewards, |r| {
            BradleyTerry::new(0.0)?.mean(&RewardBatch::new(RewardScores::single(r, &r.index_select(0, &next))?))
        })?;
        let tie = 2.0_f64.ln();
        assert!((tie - 1e-12..tie + 0.02).contains(&bradley_terry), "{n}: {bradley_terry}");
        let embeddings = leaf(&draw(&mut rng, 4 * n as usize), &[n, 4]);
        let general = fitted(&embeddings, |v| {
            GeneralPreference::new(1.0)?.mean(&preference_score(v, &v.index_select(0, &next), None)?)
        })?;
        assert!(general < 0.05, "{n}: {general}");
    }
    Ok(())
}

/// π of tabular logits after descent on GPO from π_t, whose samples are these responses.
fn descended(current: &Array1<f64>, samples: &[i64], beta: f64, centring: Centring) -> Result<Array1<f64>> {
    let index = Tensor::from_slice(samples);
    let scores = scores_against(&preference_table(&circle(3).index_select(0, &index).unsqueeze(0), None)?)?;
    let start = Tensor::from_slice(&current.mapv(f64::ln).to_vec());
    let row = |logps: &Tensor| logps.index_select(0, &index).unsqueeze(0);
    let loss = Gpo::new(beta)?.with_centring(centring);
    let (mut logits, mut velocity) = (start.copy(), start.zeros_like());
    for _ in 0..400 {
        let leaf = logits.detach().set_requires_grad(true);
        let table = ResponseTable::new(row(&leaf.log_softmax(-1, Kind::Double)), row(&start))?;
        loss.mean(&table, &scores)?.backward();
        velocity = velocity * 0.8 + leaf.grad();
        logits = leaf.detach() - &velocity * 0.5;
    }
    Ok(numbers(&logits.softmax(-1, Kind::Double)).into())
}

/// Four samples of (½, ¼, ¼) that hit its shares exactly.
#[test]
fn the_centred_regression_ends_at_the_next_iterate_and_the_other_elsewhere() -> Result<()> {
    let (current, beta) = (array![0.5, 0.25, 0.25], 0.1);
    let s = 0.75_f64.sqrt();
    let mut play = SelfPlay::new(cycle(&[s, s, s]), current.clone(), beta)?;
    play.step();
    let target = play.policy();
    let weights: Vec<f64> = [0.0, -s / 4.0, s / 4.0].iter().zip(&current).map(|(s, p)| p * (s / beta).exp()).collect();
    let total: f64 = weights.iter().sum();
    all_close(&target.to_vec(), &weights.iter().map(|w| w / total).collect::<Vec<_>>(), 1e-13, "π_t e^{s/β}");
    let centred = descended(&current, &[0, 0, 1, 2], beta, Centring::Prompt)?;
    all_close(&centred.to_vec(), &target.to_vec(), 1e-9, "centred");
    let off = distance(&descended(&current, &[0, 0, 1, 2], beta, Centring::None)?, &target);
    assert!((0.17..0.2).contains(&off), "uncentred off by {off}");
    Ok(())
}

#[test]
fn on_a_cycle_the_average_goes_to_the_nash_mixture_and_the_last_iterate_away() -> Result<()> {
    let uniform = Array1::from_elem(3, 1.0 / 3.0);
    let cycles = [
        (vec![1.0; 3], uniform),
        // Of three, each gets the strength at which the two others play.
        (vec![1.0, 0.5, 2.0], array![1.0 / 7.0, 4.0 / 7.0, 2.0 / 7.0]),
        (vec![1.0, 2.0, 0.5, 1.5, 1.0], array![6.0, 1.0, 3.0, 4.0, 1.0] / 15.0),
    ];
    for (strengths, nash) in cycles {
        let scores = cycle(&strengths);
        all_close(&scores.dot(&nash).to_vec(), &vec![0.0; nash.len()], 1e-15, "no response gains against it");
        let start = Array1::from_iter((1..=nash.len()).map(|i| i as f64));
        let total = start.sum();
        let mut play = SelfPlay::new(scores.clone(), start / total, 5.0)?;
        close(play.exploitability(nash.view())?, 0.0, 1e-15, 1.0, "exploitability");
        for step in 0..4000 {
            let before = play.policy();
            let log_z = (&before * &scores.dot(&before).mapv(|s| (s / 5.0).exp())).sum().ln();
            play.step();
            // Later the smallest masses are rounded.
            if step < 50 {
                let rise = divergence(&nash, &play.policy()) - divergence(&nash, &before);
                close(rise, log_z, 1e-9, 1e-3, "KL(nash ‖ π) rises by log Z");
                assert!(log_z > 0.0);
            }
        }
        let (last, average) = (distance(&play.policy(), &nash), distance(&play.average(), &nash));
        assert!(average < 0.03 && last > 0.3, "{strengths:?}: average {average}, last {last}");
        let gain = play.exploitability(play.average().view())?;
        assert!(gain < 0.02 && play.exploitability(play.policy().view())? > 0.1, "{strengths:?}: {gain}");
    }
    Ok(())
}

/// The winner beats each of the others by little; they form a cycle of large scores.
#[test]
fn both_iterates_go_to_a_condorcet_winner() -> Result<()> {
    let scores = array![[0.0, 0.3, 0.3, 0.3], [-0.3, 0.0, 1.0, -1.0], [-0.3, -1.0, 0.0, 1.0], [-0.3, 1.0, -1.0, 0.0]];
    for beta in [0.5, 2.0] {
        let mut play = SelfPlay::new(scores.clone(), array![0.05, 0.6, 0.2, 0.15], beta)?;
        (0..300).for_each(|_| play.step());
        assert!(play.policy()[0] > 1.0 - 1e-9 && play.average()[0] > 0.9, "β {beta}: {play:?}");
        assert!(play.exploitability(play.policy().view())? < 1e-9);
    }
    Ok(())
}

#[test]
fn self_play_rests_at_a_full_nash_mixture_and_revives_nobody() -> Result<()> {
    let uniform = Array1::from_elem(3, 1.0 / 3.0);
    let mut rest = SelfPlay::new(cycle(&[1.0; 3]), uniform.clone(), 4.0)?;
    let mut without = SelfPlay::new(cycle(&[1.0; 3]), array![0.0, 0.5, 0.5], 4.0)?;
    for _ in 0..50 {
        rest.step();
        without.step();
    }
    all_close(&rest.policy().to_vec(), &uniform.to_vec(), 1e-12, "at rest");
    all_close(&rest.average().to_vec(), &uniform.to_vec(), 1e-12, "its average");
    let policy = without.policy();
    assert!(policy[0] == 0.0 && policy[1] > 0.99, "the second beats the third: {policy}");
    // A response without mass still counts as an opponent's choice: the first beats the second.
    assert!(without.exploitability(policy.view())? > 0.9);
    Ok(())
}

#[test]
fn numbers_survive_a_configuration_file() -> Result<()> {
    let objective = GeneralPreference::new(0.5)?.with_margin(0.25)?;
    let text = r#"{"temperature":0.5,"margin":0.25}"#;
    assert_eq!(serde_json::to_string(&objective).expect("plain data"), text);
    assert_eq!(serde_json::from_str::<GeneralPreference>(text).expect("its own text"), objective);
    assert_eq!(serde_json::from_str::<GeneralPreference>("{}").expect("defaults"), GeneralPreference::new(0.1)?);
    let uncentred = Gpo::new(0.5)?.with_centring(Centring::None);
    assert_eq!(serde_json::to_string(&uncentred).expect("plain data"), r#"{"beta":0.5,"centring":"none"}"#);
    assert_eq!(serde_json::from_str::<Gpo>(r#"{"beta":0.5}"#).expect("defaults"), Gpo::new(0.5)?);
    assert_eq!(serde_json::to_string(&[Norm::Unit, Norm::Free]).expect("plain data"), r#"["unit","free"]"#);
    let gates = [ScaleGate::Softplus, ScaleGate::Softmax];
    assert_eq!(serde_json::to_string(&gates).expect("plain data"), r#"["softplus","softmax"]"#);
    for (message, start) in [
        (
            serde_json::from_str::<GeneralPreference>(r#"{"temperature":0}"#).expect_err("refused").to_string(),
            "temperature must be",
        ),
        (
            serde_json::from_str::<GeneralPreference>(r#"{"tau":1}"#).expect_err("refused").to_string(),
            "unknown field `tau`",
        ),
        (serde_json::from_str::<Gpo>(r#"{"beta":-1}"#).expect_err("refused").to_string(), "beta must be"),
    ] {
        assert!(message.starts_with(start), "{message}");
    }
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn embeddings_that_do_not_fit_are_refused() {
    let z = zeros;
    let odd = |size: i64| {
        format!(
            "a general preference embedding consists of blocks of two, its size must be even and positive, got {size}"
        )
    };
    refused(preference_score(&z(&[2, 3]), &z(&[2, 3]), None), &odd(3));
    refused(preference_table(&z(&[1, 2, 5]), None), &odd(5));
    refused(preference_score(&z(&[]), &z(&[]), None), &odd(0));
    refused(preference_score(&z(&[2, 4]), &z(&[1, 4]), None), "second must have shape [.., 2k] like first, got [1, 4]");
    let scales = "scales must have shape [.., k] like first, of size [.., 2k], got [2, 1]";
    refused(preference_score(&z(&[2, 4]), &z(&[2, 4]), Some(&z(&[2, 1]))), scales);
    let empty = "first is empty: shape [.., 2k] needs at least one element";
    refused(preference_score(&z(&[0, 4]), &z(&[0, 4]), None), empty);
    let float = z(&[2, 4]).to_kind(Kind::Float);
    let kind = "second must be Double like the tensors it goes with, got Float";
    refused(preference_score(&z(&[2, 4]), &float, None), kind);
    let integers = z(&[2, 4]).to_kind(Kind::Int64);
    refused(preference_score(&integers, &integers, None), "first must be of a floating-point kind, got Int64");
    refused(preference_table(&z(&[2, 4]), None), "embeddings must have shape [batch, responses, 2k], got [2, 4]");
    let table = |scales: &[i64]| preference_table(&z(&[2, 3, 4]), Some(&z(scales)));
    refused(table(&[2]), "scales must have shape [batch, k], got [2]");
    refused(table(&[1, 2]), "scales must have shape [batch, k] with batch = 2, got batch = 1");
    refused(table(&[2, 1]), "scales must have shape [batch, k] with k = 2, got k = 1");
    let (_vs, head) = head(Norm::Unit, 1);
    refused(head.embed(&hidden().get(0)), "hidden must have shape [n, width], got [2]");
    let wide = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
    refused(head.embed(&wide), "hidden must have shape [n, width] with width = 2, got width = 3");
    refused(head.embed(&z(&[2, 2])), "hidden must be Float like the tensors it goes with, got Double");
    refused(head.scales(&wide), "prompt_hidden must have shape [batch, width] with width = 2, got width = 3");
}

#[test]
fn numbers_and_scores_outside_their_domain_are_refused() {
    let z = zeros;
    for value in [0.0, -1.0, f64::NAN] {
        refused(GeneralPreference::new(value), &format!("temperature must be positive and finite, got {value}"));
        refused(Gpo::new(value), &format!("beta must be positive and finite, got {value}"));
    }
    let objective = GeneralPreference::default();
    refused(objective.with_margin(-1.0), "margin must be at least 0 and finite, got -1");
    refused(objective.per_pair(&z(&[2, 1])), "scores must have shape [batch], got [2, 1]");
    let half = "scores must be Float or Double (losses lose their digits in half precision), got Half";
    refused(objective.per_pair(&z(&[2]).to_kind(Kind::Half)), half);
    let gpo =
        |table: &[i64], scores: &[i64]| Gpo::new(1.0)?.per_prompt(&ResponseTable::new(z(table), z(table))?, &z(scores));
    refused(gpo(&[2, 3], &[2]), "scores must have shape [batch, responses], got [2]");
    refused(gpo(&[2, 3], &[1, 3]), "scores must have shape [batch, responses] with batch = 2, got batch = 1");
    refused(gpo(&[2, 3], &[2, 1]), "scores must have shape [batch, responses] with responses = 3, got responses = 1");
    let alone =
        "number of responses to a prompt must be at least 2 (the centred residual of one is 0 for every policy), got 1";
    refused(gpo(&[2, 1], &[2, 1]), alone);
    refused(scores_against(&z(&[2, 2])), "table must have shape [batch, responses, opponents], got [2, 2]");
}

#[test]
fn tables_that_are_no_game_are_refused() -> Result<()> {
    let half = || array![0.5, 0.5];
    let fair = || array![[0.0, 1.0], [-1.0, 0.0]];
    let new = |scores: Array2<f64>, start: Array1<f64>| SelfPlay::new(scores, start, 1.0);
    let square = "scores must have shape [responses, responses] with responses = 2, got responses = 3";
    refused(new(Array2::zeros((2, 3)), half()), square);
    let empty = "scores is empty: shape [responses, responses] needs at least one element";
    refused(new(Array2::zeros((0, 0)), half()), empty);
    let reversed = "minus the score of the reversed pair";
    refused(new(array![[0.0, 1.0], [1.0, 0.0]], half()), &format!("scores[1] must be {reversed}, got 1"));
    refused(new(array![[0.0, 1.0], [-1.0, 0.5]], half()), &format!("scores[3] must be {reversed}, got 0.5"));
    refused(new(array![[0.0, f64::NAN], [1.0, 0.0]], half()), "scores[1] must be finite, got NaN");
    let long = "start must have shape [responses] with responses = 2, got responses = 3";
    refused(new(fair(), array![0.5, 0.25, 0.25]), long);
    refused(new(fair(), array![1.5, -0.5]), "start[1] must be at least 0 and finite, got -0.5");
    refused(new(fair(), array![0.5, 0.4]), "row 0 of start must sum to 1, got 0.9");
    refused(SelfPlay::new(fair(), half(), 0.0), "beta must be positive and finite, got 0");
    let play = new(fair(), half())?;
    let short = "policy must have shape [responses] with responses = 2, got responses = 1";
    refused(play.exploitability(array![1.0].view()), short);
    refused(play.exploitability(array![0.5, 0.4].view()), "row 0 of policy must sum to 1, got 0.9");
    Ok(())
}
