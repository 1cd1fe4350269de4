//! Labels from votes and rewards that are distributions: against a brute-force assignment, formulas by hand, and known
//! optima.

use ndarray::{Array2, array};
use proptest::{collection::vec, prelude::*};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Error, Result,
    population::{DirichletPrior, label_means},
    reward::{
        Categories, Cost, CrossEntropy, DistributionBatch, DistributionLoss, DistributionalHead, MongeTransport,
        OptimalTransport, RewardScorer, SquaredCdf,
    },
    tch::{Device, Kind, Tensor, nn},
    train::{AdamW, AdamWConfig, Descent, Warmup},
};

use crate::{all_close, close, identities::config, number, numbers};

/// Unevenly spaced, so that a distance counted in categories is not one in rewards.
const W: [f64; 6] = [-1.0, 0.0, 0.5, 2.0, 2.25, 4.0];

fn categories() -> Categories {
    Categories::new(&W).expect("increasing")
}

fn rows(values: &[Vec<f64>]) -> Tensor {
    Tensor::from_slice2(values)
}

fn batch(labels: &[Vec<f64>], predictions: &[Vec<f64>]) -> Result<DistributionBatch> {
    DistributionBatch::new(&categories(), rows(predictions).log(), rows(labels))
}

/// Loss of one row.
fn value(loss: &dyn DistributionLoss, label: &[f64], prediction: &[f64]) -> Result<f64> {
    Ok(number(&loss.per_row(&batch(&[label.to_vec()], &[prediction.to_vec()])?)?))
}

fn transport(cost: Cost) -> OptimalTransport {
    OptimalTransport::new(cost)
}

/// Dear upwards, cheap downwards: a transposed table or coupling shows.
fn uneven(i: usize, j: usize) -> f64 {
    (W[i] - W[j]).powi(2) + 0.7 * (W[j] - W[i]).max(0.0)
}

fn table(cost: impl Fn(usize, usize) -> f64) -> Array2<f64> {
    Array2::from_shape_fn((6, 6), |(i, j)| cost(i, j))
}

mod oracle {
    //! Each loss in plain f64.

    use super::{W, uneven};

    fn cdf_excess(p: &[f64], q: &[f64]) -> Vec<f64> {
        (0..p.len() - 1).map(|d| p[..=d].iter().sum::<f64>() - q[..=d].iter().sum::<f64>()).collect()
    }

    fn over_gaps(p: &[f64], q: &[f64], f: impl Fn(f64) -> f64) -> f64 {
        cdf_excess(p, q).iter().enumerate().map(|(d, &excess)| f(excess) * (W[d + 1] - W[d])).sum()
    }

    pub fn distance(p: &[f64], q: &[f64]) -> f64 {
        over_gaps(p, q, f64::abs)
    }

    pub fn squared_cdf(p: &[f64], q: &[f64]) -> f64 {
        over_gaps(p, q, |excess| excess * excess)
    }

    pub fn unequal(p: &[f64], q: &[f64]) -> f64 {
        0.5 * p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>()
    }

    pub fn cross_entropy(p: &[f64], q: &[f64]) -> f64 {
        p.iter().zip(q).filter(|(p, _)| **p > 0.0).map(|(p, q)| -p * q.ln()).sum()
    }

    pub fn cubed(p: &[f64], q: &[f64]) -> f64 {
        corner(p, q, |i, j| (W[i] - W[j]).abs().powi(3))
    }

    pub fn table(p: &[f64], q: &[f64]) -> f64 {
        corner(p, q, uneven)
    }

    /// The north-west corner rule with two fingers.
    pub fn corner(p: &[f64], q: &[f64], cost: impl Fn(usize, usize) -> f64) -> f64 {
        let (mut i, mut j, mut sum) = (0, 0, 0.0);
        let (mut left, mut right) = (p[0], q[0]);
        loop {
            let moved = left.min(right);
            sum += moved * cost(i, j);
            left -= moved;
            right -= moved;
            if left <= right && i + 1 < p.len() {
                i += 1;
                left += p[i];
            } else if j + 1 < q.len() {
                j += 1;
                right += q[j];
            } else {
                return sum;
            }
        }
    }

    /// The cheapest way to pair off two equally many atoms, each of the same mass: for such masses the optimum of
    /// transport (Birkhoff), whatever the cost. Best cost of the first atoms against each set of second ones.
    pub fn assignment(first: &[usize], second: &[usize], cost: impl Fn(usize, usize) -> f64) -> f64 {
        let n = first.len();
        let full = (1_usize << n) - 1;
        let mut best = vec![f64::INFINITY; full + 1];
        best[0] = 0.0;
        for set in 0..full {
            let atom = first[set.count_ones() as usize];
            for (k, &other) in second.iter().enumerate() {
                let with = set | (1_usize << k);
                if with != set {
                    best[with] = best[with].min(best[set] + cost(atom, other));
                }
            }
        }
        best[full] / n as f64
    }

    pub fn masses(atoms: &[usize]) -> Vec<f64> {
        let mut masses = vec![0.0; W.len()];
        atoms.iter().for_each(|&atom| masses[atom] += 1.0 / atoms.len() as f64);
        masses
    }

    pub fn softmax(logits: &[f64]) -> Vec<f64> {
        let all: Vec<f64> = logits.iter().map(|z| z.exp()).collect();
        all.iter().map(|e| e / all.iter().sum::<f64>()).collect()
    }
}

struct Row {
    name: &'static str,
    loss: Box<dyn DistributionLoss>,
    oracle: fn(&[f64], &[f64]) -> f64,
}

fn losses() -> Result<Vec<Row>> {
    fn row(name: &'static str, loss: impl DistributionLoss + 'static, oracle: fn(&[f64], &[f64]) -> f64) -> Row {
        Row { name, loss: Box::new(loss), oracle }
    }
    Ok(vec![
        row("distance", transport(Cost::Distance), oracle::distance),
        row("cubed distance", transport(Cost::power(3.0)?), oracle::cubed),
        row("unequal", transport(Cost::Unequal), oracle::unequal),
        row("table", MongeTransport::new(table(uneven).view())?, oracle::table),
        row("squared CDF", SquaredCdf, oracle::squared_cdf),
        row("cross-entropy", CrossEntropy, oracle::cross_entropy),
    ])
}

fn distribution() -> impl Strategy<Value = Vec<f64>> {
    vec(0.001..1.0_f64, 6).prop_map(|weights| weights.iter().map(|w| w / weights.iter().sum::<f64>()).collect())
}

fn atoms() -> impl Strategy<Value = Vec<usize>> {
    vec(0..6_usize, 8)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn losses_are_their_equations(p in distribution(), q in distribution()) {
        for Row { name, loss, oracle } in losses()? {
            close(value(loss.as_ref(), &p, &q)?, oracle(&p, &q), 1e-12, 1.0, name);
        }
    }

    /// Optimal among **all** couplings: the oracle knows nothing of monotone ones. Ties of the two CDFs are the rule
    /// here.
    #[test]
    fn transport_is_the_cheapest_assignment(a in atoms(), b in atoms(), q in 1.0..4.0) {
        let (p, prediction) = (oracle::masses(&a), oracle::masses(&b));
        let distance = |i: usize, j: usize| (W[i] - W[j]).abs();
        let best = |cost: &dyn Fn(usize, usize) -> f64| oracle::assignment(&a, &b, cost);
        close(value(&transport(Cost::Distance), &p, &prediction)?, best(&distance), 1e-12, 1.0, "distance");
        let power = best(&|i, j| distance(i, j).powf(q));
        close(value(&transport(Cost::power(q)?), &p, &prediction)?, power, 1e-12, 1.0, "power");
        let unequal = best(&|i, j| f64::from(u8::from(i != j)));
        close(value(&transport(Cost::Unequal), &p, &prediction)?, unequal, 1e-12, 1.0, "unequal");
        let by_table = MongeTransport::new(table(uneven).view())?;
        close(value(&by_table, &p, &prediction)?, best(&uneven), 1e-12, 1.0, "table");
    }

    /// Every Monge table is a sum of a function of the row, one of the column, and a distribution function with its sign
    /// turned.
    #[test]
    fn so_it_is_under_any_monge_table(
        a in atoms(), b in atoms(), edges in vec(-2.0..2.0, 12), density in vec(0.0..1.0, 36)
    ) {
        let cost = |i: usize, j: usize| {
            let below = (0..=i).flat_map(|k| (0..=j).map(move |l| (k, l))).map(|(k, l)| density[6 * k + l]);
            edges[i] + edges[6 + j] - below.sum::<f64>()
        };
        let loss = MongeTransport::new(table(cost).view())?;
        let found = value(&loss, &oracle::masses(&a), &oracle::masses(&b))?;
        close(found, oracle::assignment(&a, &b, cost), 1e-11, 1.0, "cost");
    }

    /// 0 at equality, and nowhere else: gap · TV ≤ W1 ≤ range · TV.
    #[test]
    fn transport_is_zero_at_equality_alone(p in distribution(), q in distribution()) {
        for cost in [Cost::Distance, Cost::power(2.0)?, Cost::Unequal] {
            let found = value(&transport(cost), &p, &p)?;
            prop_assert!(found.abs() < 1e-13, "{cost:?}: {found:e}");
        }
        let variation = oracle::unequal(&p, &q);
        let distance = value(&transport(Cost::Distance), &p, &q)?;
        prop_assert!(0.25 * variation <= distance + 1e-12 && distance <= 5.0 * variation + 1e-12);
    }

    #[test]
    fn distances_are_metrics(p in distribution(), q in distribution(), r in distribution()) {
        let metric = |cost: Cost, root: f64, p: &[f64], q: &[f64]| -> Result<f64> {
            Ok(value(&transport(cost), p, q)?.powf(1.0 / root))
        };
        let powers = [(Cost::power(2.0)?, 2.0), (Cost::power(3.0)?, 3.0)];
        for (cost, root) in [(Cost::Distance, 1.0), (Cost::Unequal, 1.0)].into_iter().chain(powers) {
            let (pq, qp, qr, pr) = (
                metric(cost, root, &p, &q)?,
                metric(cost, root, &q, &p)?,
                metric(cost, root, &q, &r)?,
                metric(cost, root, &p, &r)?,
            );
            close(pq, qp, 1e-11, 1.0, "symmetry");
            prop_assert!(pr <= pq + qr + 1e-11, "{cost:?}: {pr} > {pq} + {qr}");
        }
        // A larger power sees no less.
        prop_assert!(metric(Cost::Distance, 1.0, &p, &q)? <= metric(Cost::power(2.0)?, 2.0, &p, &q)? + 1e-12);
    }

    /// Rewards counted from elsewhere change nothing; twice the reward is twice the distance, and 2^q the power.
    #[test]
    fn distances_are_in_units_of_reward(p in distribution(), q in distribution(), shift in -3.0..3.0) {
        let moved = Categories::new(&W.map(|w| 2.0 * w + shift))?;
        let batch = DistributionBatch::new(&moved, rows(std::slice::from_ref(&q)).log(), rows(std::slice::from_ref(&p)))?;
        let scaled: [(&dyn DistributionLoss, f64); 5] = [
            (&transport(Cost::Distance), 2.0),
            (&transport(Cost::power(3.0)?), 8.0),
            (&transport(Cost::Unequal), 1.0),
            (&SquaredCdf, 2.0),
            (&CrossEntropy, 1.0),
        ];
        for (loss, scale) in scaled {
            close(number(&loss.per_row(&batch)?), scale * value(loss, &p, &q)?, 1e-11, 1.0, format_args!("{loss:?}"));
        }
    }

    /// |Σ w p − Σ w p̂| ≤ W1 (Kantorovich), with equality when one distribution lies above the other.
    #[test]
    fn the_expected_reward_is_no_farther_than_the_distance(p in distribution(), q in distribution()) {
        let expected = |p: &[f64]| p.iter().zip(W).map(|(p, w)| p * w).sum::<f64>();
        let log = rows(&[p.clone(), q.clone()]).log();
        let found = numbers(&categories().expectation(&log)?);
        all_close(&found, &[expected(&p), expected(&q)], 1e-12, "expected reward");
        prop_assert!((found[0] - found[1]).abs() <= oracle::distance(&p, &q) + 1e-12);
    }

    /// Gibbs: no prediction beats the label itself.
    #[test]
    fn cross_entropy_is_least_at_the_label(p in distribution(), q in distribution()) {
        prop_assert!(value(&CrossEntropy, &p, &p)? <= value(&CrossEntropy, &p, &q)? + 1e-12);
    }
}

fn draw(rng: &mut ChaCha8Rng, count: usize, scale: f64) -> Vec<Vec<f64>> {
    (0..count).map(|_| (0..6).map(|_| scale * (rng.random::<f64>() - 0.5)).collect()).collect()
}

#[test]
fn gradients_equal_central_differences() -> Result<()> {
    const STEP: f64 = 1e-6;
    const ROWS: usize = 3;
    for seed in 0..10 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let labels: Vec<_> = draw(&mut rng, ROWS, 4.0).iter().map(|z| oracle::softmax(z)).collect();
        let logits = draw(&mut rng, ROWS, 4.0);
        for Row { name, loss, oracle } in losses()? {
            let leaf = rows(&logits).set_requires_grad(true);
            let label = rows(&labels).set_requires_grad(true);
            let batch =
                DistributionBatch::new(&categories(), leaf.log_softmax(-1, Kind::Double), label.shallow_clone())?;
            loss.mean(&batch)?.backward();
            assert!(!label.grad().defined(), "{name} sent a gradient to the label");
            let at = |row: usize, column: usize, step: f64| {
                let mut moved = logits[row].clone();
                moved[column] += step;
                oracle(&labels[row], &oracle::softmax(&moved)) / ROWS as f64
            };
            let places = (0..ROWS).flat_map(|row| (0..6).map(move |column| (row, column)));
            let expected: Vec<f64> =
                places.map(|(row, column)| (at(row, column, STEP) - at(row, column, -STEP)) / (2.0 * STEP)).collect();
            all_close(&numbers(&leaf.grad()), &expected, 1e-7, name);
            assert!(expected.iter().any(|g| g.abs() > 1e-3), "{name} moves nothing");
        }
    }
    Ok(())
}

/// In value and in gradient, though one is a sum of absolute values and the other a coupling.
#[test]
fn the_first_power_is_the_distance() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (labels, logits) = (draw(&mut rng, 20, 4.0), draw(&mut rng, 20, 4.0));
    let labels = rows(&labels).softmax(-1, Kind::Double);
    let of = |cost: Cost| -> Result<(Vec<f64>, Vec<f64>)> {
        let leaf = rows(&logits).set_requires_grad(true);
        let log = leaf.log_softmax(-1, Kind::Double);
        let losses = transport(cost).per_row(&DistributionBatch::new(&categories(), log, labels.shallow_clone())?)?;
        losses.sum(Kind::Double).backward();
        Ok((numbers(&losses), numbers(&leaf.grad())))
    };
    let (distance, power) = (of(Cost::Distance)?, of(Cost::power(1.0)?)?);
    all_close(&power.0, &distance.0, 1e-13, "value");
    all_close(&power.1, &distance.1, 1e-13, "gradient");
    Ok(())
}

/// A uniform start against a label of two votes: CDFs that tie at ½ although the quantiles there differ. The loss is
/// smooth at such a tie, and a coupling that splits the gradient there would have the wrong one.
#[test]
fn a_tie_of_levels_keeps_the_gradient() -> Result<()> {
    let two_votes = Tensor::from_slice2(&[[0.0, 0.0, 0.0, 0.0, 0.5, 0.5]]);
    let gradient = |cost: Cost| -> Result<Vec<f64>> {
        let leaf = Tensor::zeros([1, 6], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let log = leaf.log_softmax(-1, Kind::Double);
        transport(cost).mean(&DistributionBatch::new(&categories(), log, two_votes.shallow_clone())?)?.backward();
        Ok(numbers(&leaf.grad()))
    };
    all_close(&gradient(Cost::power(1.0)?)?, &gradient(Cost::Distance)?, 1e-13, "gradient");
    Ok(())
}

/// Three labels of one vote each, two for the lowest category and one for the highest. Per threshold the median of their
/// CDFs is the majority's; the mean is (2/3, 0, …, 1/3).
#[test]
fn transport_fits_the_median_label_and_the_others_the_mean() -> Result<()> {
    let vote = |category: usize| oracle::masses(&[category]);
    let labels = [vote(0), vote(0), vote(5)];
    let mean = vec![2.0 / 3.0, 0.0, 0.0, 0.0, 0.0, 1.0 / 3.0];
    let of = |loss: &dyn DistributionLoss, prediction: &[f64]| -> Result<f64> {
        let predictions = vec![prediction.to_vec(); 3];
        Ok(number(&loss.mean(&batch(&labels, &predictions)?)?))
    };
    let range = 5.0;
    let expected: [(&dyn DistributionLoss, f64, f64); 3] = [
        (&transport(Cost::Distance), range / 3.0, 4.0 * range / 9.0),
        (&SquaredCdf, range / 3.0, 2.0 * range / 9.0),
        (&CrossEntropy, f64::INFINITY, (3.0_f64.ln() * 3.0 - 2.0_f64.ln() * 2.0) / 3.0),
    ];
    for (loss, at_the_median, at_the_mean) in expected {
        close(of(loss, &vote(0))?, at_the_median, 1e-12, 0.0, format_args!("{loss:?} at the median"));
        close(of(loss, &mean)?, at_the_mean, 1e-12, 0.0, format_args!("{loss:?} at the mean"));
    }
    Ok(())
}

/// 0 · ∞ is 0 in a cross-entropy, and the gradient of what was not there is no NaN.
#[test]
fn impossible_categories_cost_nothing_unless_they_occur() -> Result<()> {
    let (label, prediction) = (oracle::masses(&[1, 1, 2]), oracle::masses(&[1, 2, 2]));
    close(value(&CrossEntropy, &label, &prediction)?, oracle::cross_entropy(&label, &prediction), 1e-13, 0.0, "value");
    let leaf = rows(&[prediction]).log().set_requires_grad(true);
    let batch = DistributionBatch::new(&categories(), leaf.shallow_clone(), rows(&[label]))?;
    CrossEntropy.mean(&batch)?.backward();
    all_close(&numbers(&leaf.grad()), &[0.0, -2.0 / 3.0, -1.0 / 3.0, 0.0, 0.0, 0.0], 1e-13, "gradient");
    Ok(())
}

#[test]
fn single_precision_is_double_rounded() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let labels = rows(&draw(&mut rng, 8, 6.0)).softmax(-1, Kind::Double);
    let logits = rows(&draw(&mut rng, 8, 6.0));
    let losses_in = |kind: Kind, loss: &dyn DistributionLoss| -> Result<Tensor> {
        let log = logits.to_kind(kind).log_softmax(-1, kind);
        loss.per_row(&DistributionBatch::new(&categories(), log, labels.to_kind(kind))?)
    };
    for Row { name, loss, .. } in losses()? {
        let (single, double) = (losses_in(Kind::Float, loss.as_ref())?, losses_in(Kind::Double, loss.as_ref())?);
        assert_eq!((single.kind(), double.kind()), (Kind::Float, Kind::Double), "{name}");
        all_close(&numbers(&single), &numbers(&double), 2e-5, name);
    }
    Ok(())
}

#[test]
fn of_one_category_there_is_nothing_to_learn() -> Result<()> {
    let one = Categories::new(&[3.0])?;
    let sure = Tensor::zeros([2, 1], (Kind::Double, Device::Cpu));
    let batch = DistributionBatch::new(&one, sure.shallow_clone(), sure.exp())?;
    let costs: [&dyn DistributionLoss; 5] = [
        &transport(Cost::Distance),
        &transport(Cost::power(2.0)?),
        &transport(Cost::Unequal),
        &SquaredCdf,
        &CrossEntropy,
    ];
    for loss in costs {
        all_close(&numbers(&loss.per_row(&batch)?), &[0.0; 2], 1e-15, format_args!("{loss:?}"));
    }
    all_close(&numbers(&one.expectation(&sure)?), &[3.0; 2], 1e-15, "expected reward");
    Ok(())
}

fn hidden() -> Tensor {
    Tensor::from_slice2(&[[0.5_f32, -1.0], [2.0, 0.25], [-0.75, 1.5]])
}

fn set(variable: &Tensor, value: &Tensor) {
    let _no_grad = prefopt::tch::no_grad_guard();
    variable.shallow_clone().copy_(value);
}

#[test]
fn a_head_is_its_equation() -> Result<()> {
    let vs = nn::VarStore::new(Device::Cpu);
    let head = DistributionalHead::new(&vs.root(), 2, categories());
    assert_eq!(head.categories(), &categories());
    all_close(&numbers(&head.log_probabilities(&hidden())?), &[-(6.0_f64.ln()); 18], 1e-6, "starts uniform");
    all_close(&numbers(&head.scores(&hidden())?), &[W.iter().sum::<f64>() / 6.0; 3], 1e-6, "its reward");

    let weight: Vec<f32> = (0..12).map(|i| 0.3 * i as f32 - 1.5).collect();
    let bias: Vec<f32> = (0..6).map(|i| 0.2 * (i as f32) * (i as f32) - 1.0).collect();
    let variables = vs.variables();
    set(&variables["weight"], &Tensor::from_slice(&weight).view([6, 2]));
    set(&variables["bias"], &Tensor::from_slice(&bias));
    let logit = |x: &[f64], d: usize| {
        x[0] * f64::from(weight[2 * d]) + x[1] * f64::from(weight[2 * d + 1]) + f64::from(bias[d])
    };
    let expected: Vec<Vec<f64>> = numbers(&hidden())
        .chunks(2)
        .map(|x| oracle::softmax(&(0..6).map(|d| logit(x, d)).collect::<Vec<_>>()))
        .collect();
    let log = head.log_probabilities(&hidden())?;
    assert_eq!((log.size(), log.kind()), (vec![3, 6], Kind::Float));
    all_close(&numbers(&log.exp()), &expected.concat(), 3e-6, "probabilities");
    let rewards: Vec<f64> = expected.iter().map(|p| p.iter().zip(W).map(|(p, w)| p * w).sum()).collect();
    all_close(&numbers(&head.expected_reward(&log)?), &rewards, 3e-6, "expected reward");

    // As a reward model among others.
    let scores = head.scores(&hidden())?;
    assert_eq!((head.members(), scores.size()), (1, vec![1, 3]));
    all_close(&numbers(&scores), &rewards, 3e-6, "scores");
    let pairs = head.pair_scores(&hidden(), &hidden().flip([0]))?;
    all_close(&numbers(&pairs.margins()), &[rewards[0] - rewards[2], 0.0, rewards[2] - rewards[0]], 1e-5, "margins");
    Ok(())
}

/// A softmax loses its digits in half precision.
#[test]
fn log_probabilities_are_in_single_precision_at_least() -> Result<()> {
    for (kind, expected) in [(Kind::BFloat16, Kind::Float), (Kind::Float, Kind::Float), (Kind::Double, Kind::Double)] {
        let mut vs = nn::VarStore::new(Device::Cpu);
        let head = DistributionalHead::new(&vs.root(), 2, categories());
        vs.set_kind(kind);
        let log = head.log_probabilities(&hidden().to_kind(kind))?;
        assert_eq!((log.kind(), log.size()), (expected, vec![3, 6]));
    }
    Ok(())
}

/// Two items whose populations are two-humped, each fitted by every loss.
#[test]
fn a_head_trains_to_its_labels() -> Result<()> {
    let labels = [vec![0.35, 0.1, 0.05, 0.05, 0.1, 0.35], vec![0.05, 0.45, 0.1, 0.05, 0.3, 0.05]];
    let targets = rows(&labels).to_kind(Kind::Float);
    let items = Tensor::eye(2, (Kind::Float, Device::Cpu));
    for Row { name, loss, .. } in losses()? {
        let vs = nn::VarStore::new(Device::Cpu);
        let head = DistributionalHead::new(&vs.root(), 2, categories());
        let schedule = Warmup::new(0).then_cosine(301)?;
        let optimizer = AdamW::new(vs.trainable_variables(), AdamWConfig::default())?;
        let mut descent = Descent::new(optimizer, 0.1)?.with_schedule(schedule);
        for _ in 0..300 {
            let log = head.log_probabilities(&items)?;
            let batch = DistributionBatch::new(head.categories(), log, targets.shallow_clone())?;
            descent.descend(&loss.mean(&batch)?)?;
        }
        let log = head.log_probabilities(&items)?;
        let fitted = numbers(&log.exp());
        for (label, fitted) in labels.iter().zip(fitted.chunks(6)) {
            assert!(oracle::distance(label, fitted) < 0.05, "{name}: {fitted:?} for {label:?}");
        }
        let wanted = labels.each_ref().map(|p| p.iter().zip(W).map(|(p, w)| p * w).sum::<f64>());
        assert!(numbers(&head.expected_reward(&log)?).iter().zip(wanted).all(|(r, w)| (r - w).abs() < 0.05), "{name}");
    }
    Ok(())
}

#[test]
fn a_label_is_the_posterior_mean() -> Result<()> {
    let prior = DirichletPrior::new(array![0.5, 0.25, 0.25], 4.0)?;
    let mut label = prior.posterior();
    assert_eq!((label.votes(), label.mean().to_vec()), (0, vec![0.5, 0.25, 0.25]));
    label.observe(&[2, 2, 0, 2])?;
    // (4 · ½ + 1)/8, (4 · ¼ + 0)/8, (4 · ¼ + 3)/8: as many votes as the prior weighs, so half of each.
    assert_eq!((label.votes(), label.counts().to_vec()), (4, vec![1, 0, 3]));
    assert_eq!(label.mean().to_vec(), [0.375, 0.125, 0.5]);
    assert_eq!((prior.categories(), prior.mean().to_vec()), (3, vec![0.5, 0.25, 0.25]));
    assert_eq!(prior.concentration().get(), 4.0);
    assert_eq!(DirichletPrior::uniform(4, 4.0)?, DirichletPrior::new(array![0.25, 0.25, 0.25, 0.25], 4.0)?);
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn sequential_updates_are_one_pooled_update(
        votes in vec(0..6_usize, 0..40), cut in 0.0..1.0, mean in distribution(), kappa in 0.1..10.0
    ) {
        let prior = DirichletPrior::new(mean.into(), kappa)?;
        let [mut one, mut parts, mut single, mut counted] = [(); 4].map(|()| prior.posterior());
        one.observe(&votes)?;
        let (first, second) = votes.split_at((cut * votes.len() as f64) as usize);
        parts.observe(second)?;
        parts.observe(first)?;
        for vote in &votes {
            single.observe(&[*vote])?;
        }
        let mut counts = [0_u64; 6];
        votes.iter().for_each(|&vote| counts[vote] += 1);
        counted.observe_counts(&counts)?;
        for label in [&parts, &single, &counted] {
            prop_assert_eq!(label, &one);
        }
        let row = Array2::from_shape_vec((1, 6), counts.to_vec()).expect("one row");
        prop_assert_eq!(label_means(&prior, row.view())?.row(0).to_vec(), one.mean().to_vec());
        close(one.mean().sum(), 1.0, 1e-12, 0.0, "sum");
    }

    /// No votes are the prior; with votes the label differs from their shares by κ/(κ + N) of what the prior differs.
    #[test]
    fn labels_go_from_the_prior_to_the_shares(counts in vec(0..1000_u64, 6), mean in distribution(), kappa in 0.1..10.0) {
        let prior = DirichletPrior::new(mean.clone().into(), kappa)?;
        all_close(&prior.posterior().mean().to_vec(), &mean, 1e-14, "no votes");
        let total = counts.iter().sum::<u64>() as f64;
        prop_assume!(total > 0.0);
        let mut label = prior.posterior();
        label.observe_counts(&counts)?;
        let shares: Vec<f64> = counts.iter().map(|&n| n as f64 / total).collect();
        let expected: Vec<f64> = shares.iter().zip(&mean).map(|(s, p)| s + kappa / (kappa + total) * (p - s)).collect();
        all_close(&label.mean().to_vec(), &expected, 1e-12, "label");
        let many: Vec<u64> = counts.iter().map(|n| n * 1_000_000_000).collect();
        label.observe_counts(&many)?;
        all_close(&label.mean().to_vec(), &shares, 1e-6, "many votes");
    }
}

/// Enough items for several threads; each row is its own.
#[test]
fn many_items_are_labelled_as_one_is() -> Result<()> {
    const ITEMS: usize = 5000;
    let prior = DirichletPrior::new(array![0.5, 0.3, 0.2], 1.5)?;
    let counts = Array2::from_shape_fn((ITEMS, 3), |(item, category)| ((item * (category + 2)) % 7) as u64);
    let means = label_means(&prior, counts.view())?;
    assert_eq!(means.dim(), (ITEMS, 3));
    for item in (0..ITEMS).step_by(97).chain([ITEMS - 1]) {
        let mut label = prior.posterior();
        label.observe_counts(&counts.row(item).to_vec())?;
        assert_eq!(means.row(item), label.mean(), "item {item}");
    }
    let none = Array2::<u64>::zeros((0, 3));
    assert_eq!(label_means(&prior, none.view())?.dim(), (0, 3));
    // A transposed view is read as it is meant, whatever lies behind it.
    let turned = Array2::from_shape_fn((3, 4), |(category, item)| (category + 10 * item) as u64);
    let straight = turned.t().as_standard_layout().into_owned();
    assert_eq!(label_means(&prior, turned.t())?, label_means(&prior, straight.view())?);
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn priors_and_votes_are_refused_by_name() -> Result<()> {
    let prior = |mean: &[f64], kappa: f64| DirichletPrior::new(mean.to_vec().into(), kappa);
    let empty = "prior_mean is empty: shape [categories] needs at least one element";
    refused(prior(&[], 1.0), empty);
    refused(DirichletPrior::uniform(0, 1.0), empty);
    refused(prior(&[0.25, 0.25], 1.0), "row 0 of prior_mean must sum to 1, got 0.5");
    refused(prior(&[1.5, -0.5], 1.0), "prior_mean[1] must be at least 0 and finite, got -0.5");
    refused(prior(&[f64::NAN, 0.5], 1.0), "prior_mean[0] must be at least 0 and finite, got NaN");
    refused(prior(&[1.0, 0.0], 1.0), "prior_mean[1] must be positive (a vote for it would be impossible), got 0");
    for kappa in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = prior(&[0.5, 0.5], kappa).expect_err("must be refused").to_string();
        assert!(message.starts_with("concentration must be ") && message.ends_with(&kappa.to_string()), "{message}");
    }
    let known = DirichletPrior::uniform(4, 1.0)?;
    let mut label = known.posterior();
    refused(label.observe(&[0, 3, 4, 9]), "vote 2 is for category 4, but there are 4, numbered from 0");
    assert_eq!(label, known.posterior(), "a refused list counts nothing");
    refused(
        label.observe_counts(&[1, 2, 3]),
        "counts must have shape [categories] with categories = 4, got categories = 3",
    );
    refused(
        label_means(&known, Array2::<u64>::zeros((2, 5)).view()),
        "counts must have shape [items, categories] with categories = 4, got categories = 5",
    );
    Ok(())
}

#[test]
fn categories_and_batches_are_refused_by_name() -> Result<()> {
    refused(Categories::new(&[]), "positions is empty: shape [categories] needs at least one element");
    for (positions, said) in [
        (vec![0.0, 1.0, 1.0], "positions[2] must be finite and above the position before it, got 1"),
        (vec![0.0, -1.0], "positions[1] must be finite and above the position before it, got -1"),
        (vec![f64::NAN, 1.0], "positions[0] must be finite and above the position before it, got NaN"),
        (vec![0.0, f64::INFINITY], "positions[1] must be finite and above the position before it, got inf"),
    ] {
        refused(Categories::new(&positions), said);
    }
    let uniform = |batch: i64, categories: i64| {
        Tensor::full([batch, categories], 1.0 / categories as f64, (Kind::Double, Device::Cpu))
    };
    let of = |log: Tensor, targets: Tensor| DistributionBatch::new(&categories(), log, targets);
    let log = || uniform(2, 6).log();
    refused(of(log().get(0), uniform(2, 6)), "log_probabilities must have shape [batch, categories], got [6]");
    refused(
        of(uniform(2, 5).log(), uniform(2, 5)),
        "log_probabilities must have shape [batch, categories] with categories = 6, got categories = 5",
    );
    // Either would broadcast.
    refused(of(log(), uniform(1, 6)), "targets must have shape [batch, categories] with batch = 2, got batch = 1");
    refused(
        of(log(), uniform(2, 1)),
        "targets must have shape [batch, categories] with categories = 6, got categories = 1",
    );
    refused(
        of(log(), uniform(2, 6).to_kind(Kind::Float)),
        "targets must be Double like the tensors it goes with, got Float",
    );
    let half = "log_probabilities must be Float or Double (losses lose their digits in half precision), got Half";
    refused(of(log().to_kind(Kind::Half), uniform(2, 6)), half);
    let with = |changed: f64| {
        let mut row = vec![1.0 / 6.0; 6];
        row[1] = changed;
        rows(&[vec![1.0 / 6.0; 6], row])
    };
    refused(of(log(), with(-0.5)), "targets[7] must be at least 0 and finite, got -0.5");
    refused(of(log(), with(f64::NAN)), "targets[7] must be at least 0 and finite, got NaN");
    let sum = of(log(), with(1.0)).expect_err("sums to 11/6");
    assert!(
        matches!(sum, Error::Simplex { name: "targets", row: 1, sum } if (sum - 11.0 / 6.0).abs() < 1e-12),
        "{sum}"
    );
    let logits = Tensor::zeros([2, 6], (Kind::Double, Device::Cpu));
    refused(of(logits, uniform(2, 6)), "row 0 of exp(log_probabilities) must sum to 1, got 6");
    refused(
        categories().expectation(&uniform(2, 5)),
        "log_probabilities must have shape [batch, categories] with categories = 6, got categories = 5",
    );
    let vs = nn::VarStore::new(Device::Cpu);
    let head = DistributionalHead::new(&vs.root(), 4, categories());
    let wide = Tensor::zeros([2, 5], (Kind::Float, Device::Cpu));
    refused(head.scores(&wide), "hidden must have shape [batch, width] with width = 4, got width = 5");
    refused(head.scores(&wide.get(0)), "hidden must have shape [batch, width], got [5]");
    Ok(())
}

/// Under a concave cost one long move and one rest beat two short moves, which a monotone coupling would make.
#[test]
fn costs_that_are_not_monge_are_refused() -> Result<()> {
    let concave = |i: usize, j: usize| (W[i] - W[j]).abs().sqrt();
    let (from, to) = ([1, 3], [3, 5]);
    let monotone = oracle::corner(&oracle::masses(&from), &oracle::masses(&to), concave);
    assert!(oracle::assignment(&from, &to, concave) < monotone - 0.1, "so the refusal is no formality");
    let unequal = |i: usize, j: usize| f64::from(u8::from(i != j));
    for cost in [table(concave), table(unequal)] {
        let refusal = MongeTransport::new(cost.view()).expect_err("must be refused");
        let Error::NotMonge { row, column, excess } = refusal else { panic!("{refusal}") };
        let by_hand =
            cost[[row, column]] + cost[[row + 1, column + 1]] - cost[[row, column + 1]] - cost[[row + 1, column]];
        assert!(excess > 0.0 && (excess - by_hand).abs() < 1e-12, "{excess} and {by_hand}");
    }
    // Of two categories even 0/1 costs are Monge; so is the distance, whose condition holds with equality up to rounding.
    MongeTransport::new(array![[0.0, 1.0], [1.0, 0.0]].view())?;
    let thirds = |i: usize, j: usize| 1e6 * (i as f64 / 3.0 - j as f64 / 3.0).abs();
    MongeTransport::new(table(thirds).view())?;

    refused(
        MongeTransport::new(Array2::zeros((0, 0)).view()),
        "costs is empty: shape [categories, categories] needs at least one element",
    );
    let square = "costs must have shape [categories, categories] with categories = 2, got categories = 3";
    refused(MongeTransport::new(Array2::zeros((2, 3)).view()), square);
    refused(MongeTransport::new(array![[0.0, f64::NAN], [1.0, 0.0]].view()), "costs[1] must be finite, got NaN");
    let small = MongeTransport::new(array![[0.0, 1.0], [1.0, 0.0]].view())?;
    let uniform = vec![vec![1.0 / 6.0; 6]];
    refused(
        small.per_row(&batch(&uniform, &uniform)?),
        "costs must have shape [categories, categories] with categories = 6, got categories = 2",
    );
    Ok(())
}

#[test]
fn configurations_survive_and_are_checked_again() -> Result<()> {
    fn survives<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: T, json: &str) {
        assert_eq!(serde_json::to_string(&value).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<T>(json).expect("its own text"), value);
    }
    survives(transport(Cost::Distance), r#"{"cost":"distance"}"#);
    survives(transport(Cost::Unequal), r#"{"cost":"unequal"}"#);
    survives(transport(Cost::power(2.0)?), r#"{"cost":{"power":{"power":2.0}}}"#);
    survives(SquaredCdf, "null");
    survives(CrossEntropy, "null");
    survives(Categories::new(&[1.0, 2.5])?, "[1.0,2.5]");
    assert_eq!(serde_json::from_str::<OptimalTransport>("{}").expect("valid"), OptimalTransport::default());
    assert_eq!(OptimalTransport::default(), transport(Cost::Distance));

    for power in [0.5, -1.0, f64::NAN, f64::INFINITY] {
        let message = Cost::power(power).expect_err("must be refused").to_string();
        assert!(message.starts_with("cost_power must be ") && message.ends_with(&power.to_string()), "{message}");
    }
    let said = |refusal: serde_json::Error| refusal.to_string();
    let positions = said(serde_json::from_str::<Categories>("[1.0, 1.0]").expect_err("must be refused"));
    assert!(
        positions.starts_with("positions[1] must be finite and above the position before it, got 1"),
        "{positions}"
    );
    for (json, start) in [
        (r#"{"cost":{"power":{"power":0.5}}}"#, "cost_power must be "),
        (r#"{"cost":"distance","scale":1}"#, "unknown field `scale`"),
        (r#"{"cost":"nearness"}"#, "unknown variant `nearness`"),
    ] {
        let message = said(serde_json::from_str::<OptimalTransport>(json).expect_err("must be refused"));
        assert!(message.starts_with(start), "{message}");
    }
    Ok(())
}
