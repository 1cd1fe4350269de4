//! Conservative fine-tuning (BRAID): the elliptical bonus against A⁻¹ by elimination, the chain's divergence against that of joint Gaussians,
//! optima against Gibbs forms, and the theorem on what pessimism can lose.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    autograd::checkpoint,
    diffusion::{ConservativeObjective, EllipticalBonus, ReverseStep, bootstrap_minimum, step_kl},
    tch::{Device, Kind, Tensor},
};

use crate::{all_close, close, identities::config, number, numbers, oracle};

type Rows = Vec<Vec<f64>>;

fn random(count: usize, width: usize, seed: u64) -> Rows {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| (0..width).map(|_| rng.random_range(-2.0..2.0)).collect()).collect()
}

/// `[rows, width]`, f64.
fn tensor(rows: &[Vec<f64>]) -> Tensor {
    Tensor::from_slice(&rows.concat()).view([-1, rows[0].len() as i64])
}

fn leaf(rows: &[Vec<f64>]) -> Tensor {
    tensor(rows).set_requires_grad(true)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

// The bonus in plain f64

/// (features, 1).
fn extended(row: &[f64]) -> Vec<f64> {
    [row, &[1.0]].concat()
}

/// Σ φφᵀ + λI.
fn gram(data: &[Vec<f64>], width: usize, ridge: f64) -> Rows {
    let entry = |i: usize, j: usize| {
        let products = data.iter().map(|row| extended(row)[i] * extended(row)[j]);
        products.sum::<f64>() + if i == j { ridge } else { 0.0 }
    };
    (0..=width).map(|i| (0..=width).map(|j| entry(i, j)).collect()).collect()
}

/// a⁻¹b by elimination with pivots.
fn solved(mut a: Rows, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i][k].abs().total_cmp(&a[j][k].abs())).expect("a row is left");
        a.swap(k, pivot);
        b.swap(k, pivot);
        for i in k + 1..n {
            let share = a[i][k] / a[k][k];
            let above = a[k].clone();
            a[i].iter_mut().zip(above).skip(k).for_each(|(below, above)| *below -= share * above);
            b[i] -= share * b[k];
        }
    }
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| a[k][j] * b[j]).sum();
        b[k] = (b[k] - known) / a[k][k];
    }
    b
}

/// c √(φᵀA⁻¹φ).
fn expected(data: &[Vec<f64>], ridge: f64, scale: f64, row: &[f64]) -> f64 {
    let phi = extended(row);
    scale * dot(&phi, &solved(gram(data, row.len(), ridge), phi.clone())).sqrt()
}

fn bonus(data: &[Vec<f64>], ridge: f64, scale: f64) -> Result<EllipticalBonus> {
    let mut bonus = EllipticalBonus::new(data[0].len() as i64, ridge, scale)?;
    bonus.update(&tensor(data))?;
    Ok(bonus)
}

#[test]
fn the_bonus_is_the_papers_quadratic_form() -> Result<()> {
    for (count, width, ridge, scale) in [(1, 1, 1.0, 1.0), (3, 5, 0.1, 2.0), (40, 4, 1e-3, 0.5), (200, 8, 10.0, 3.0)] {
        let (data, rows) = (random(count, width, 1), random(6, width, 2));
        let found = bonus(&data, ridge, scale)?;
        assert_eq!(found.rows(), count as i64);
        let each: Vec<f64> = rows.iter().map(|row| expected(&data, ridge, scale, row)).collect();
        all_close(&numbers(&found.penalty(&tensor(&rows))?), &each, 1e-10, format!("{count} rows of {width}"));
    }
    Ok(())
}

#[test]
fn without_data_it_is_the_norm_over_the_root_of_the_ridge() -> Result<()> {
    let rows = random(5, 3, 3);
    let found = EllipticalBonus::new(3, 0.25, 2.0)?.penalty(&tensor(&rows))?;
    let each: Vec<f64> = rows.iter().map(|row| 4.0 * norm(&extended(row))).collect();
    all_close(&numbers(&found), &each, 1e-14, "no data");
    Ok(())
}

#[test]
fn blocks_of_any_size_and_order_are_one_update() -> Result<()> {
    let (data, rows) = (random(24, 4, 4), tensor(&random(5, 4, 5)));
    let whole = numbers(&bonus(&data, 0.3, 1.0)?.penalty(&rows)?);
    for size in [1, 5, 7, 23] {
        let mut found = EllipticalBonus::new(4, 0.3, 1.0)?;
        for block in data.chunks(size).rev() {
            found.update(&tensor(block))?;
        }
        assert_eq!(found.rows(), 24);
        all_close(&numbers(&found.penalty(&rows)?), &whole, 1e-12, format!("blocks of {size}"));
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    /// A row twice, or a new one: A grows, A⁻¹ falls, in every direction.
    #[test]
    fn no_row_makes_it_grow(seed in any::<u64>(), count in 1..12_usize, width in 1..6_usize, ridge in 1e-3..10.0, twice in any::<prop::sample::Index>()) {
        let (data, rows) = (random(count, width, seed), tensor(&random(8, width, seed ^ 1)));
        let mut found = bonus(&data, ridge, 1.0)?;
        let before = numbers(&found.penalty(&rows)?);
        found.update(&tensor(&data[twice.index(count)..][..1]))?;
        let duplicated = numbers(&found.penalty(&rows)?);
        found.update(&tensor(&random(1, width, seed ^ 2)))?;
        let added = numbers(&found.penalty(&rows)?);
        for ((b, d), a) in before.iter().zip(&duplicated).zip(&added) {
            prop_assert!(*d <= b * (1.0 + 1e-9) && *a <= d * (1.0 + 1e-9), "{} {} {}", b, d, a);
        }
    }

    /// A rotation of the features is none of the sample.
    #[test]
    fn it_does_not_see_a_rotation(seed in any::<u64>(), angle in 0.0..6.3_f64, ridge in 1e-2..10.0) {
        let turned = |rows: &Rows| -> Rows {
            let (sin, cos) = angle.sin_cos();
            rows.iter().map(|r| vec![cos * r[0] - sin * r[1], sin * r[0] + cos * r[1], r[2]]).collect()
        };
        let (data, rows) = (random(6, 3, seed), random(4, 3, seed ^ 1));
        let plain = numbers(&bonus(&data, ridge, 1.0)?.penalty(&tensor(&rows))?);
        let found = numbers(&bonus(&turned(&data), ridge, 1.0)?.penalty(&tensor(&turned(&rows)))?);
        all_close(&found, &plain, 1e-9, "turned");
    }

    /// Ridge regression on scores without noise: θ − A⁻¹Σφr = λA⁻¹θ, so that |r̂ − r| ≤ √λ ‖θ‖ √(φᵀA⁻¹φ).
    #[test]
    fn it_bounds_the_error_of_ridge_regression(seed in any::<u64>(), count in 1..9_usize, ridge in 1e-2..5.0) {
        let table = Regressed::new(seed, count, ridge)?;
        for ((learned, reward), penalty) in table.learned.iter().zip(&table.rewards).zip(&table.penalties) {
            prop_assert!((learned - reward).abs() <= penalty * (1.0 + 1e-9) + 1e-9, "{} {} {}", learned, reward, penalty);
        }
    }
}

#[test]
fn its_gradient_is_that_of_the_root() -> Result<()> {
    const STEP: f64 = 1e-6;
    let (data, mut rows) = (random(7, 3, 6), random(4, 3, 7));
    rows.push(vec![0.0; 3]);
    let (scale, ridge) = (1.5, 0.2);
    let at = leaf(&rows);
    bonus(&data, ridge, scale)?.penalty(&at)?.sum(Kind::Double).backward();
    let found = numbers(&at.grad());
    for (i, row) in rows.iter().enumerate() {
        let inverse = solved(gram(&data, 3, ridge), extended(row));
        let root = dot(&extended(row), &inverse).sqrt();
        for (j, inverse) in inverse[..3].iter().enumerate() {
            close(found[3 * i + j], scale * inverse / root, 1e-10, 1.0, "closed form");
            let moved = |step: f64| {
                let mut row = row.clone();
                row[j] += step;
                expected(&data, ridge, scale, &row)
            };
            close(found[3 * i + j], (moved(STEP) - moved(-STEP)) / (2.0 * STEP), 1e-7, 1.0, "central difference");
        }
    }
    Ok(())
}

/// The constant feature: where all others are 0, n rows of zeros leave c/√(n + λ), with a finite slope.
#[test]
fn vanishing_features_are_penalised() -> Result<()> {
    let zeros = vec![vec![0.0; 4]; 3];
    let found = bonus(&zeros, 0.5, 2.0)?;
    let at = leaf(&zeros);
    let penalty = found.penalty(&at)?;
    all_close(&numbers(&penalty), &[2.0 / 3.5_f64.sqrt(); 3], 1e-14, "zeros");
    penalty.sum(Kind::Double).backward();
    assert_eq!(numbers(&at.grad()), [0.0; 12]);
    Ok(())
}

#[test]
fn it_is_linear_in_its_scale_and_fades_with_the_ridge() -> Result<()> {
    let (data, rows) = (random(9, 3, 8), random(4, 3, 9));
    let one = numbers(&bonus(&data, 0.7, 1.0)?.penalty(&tensor(&rows))?);
    let three = numbers(&bonus(&data, 0.7, 1.0)?.with_scale(3.0)?.penalty(&tensor(&rows))?);
    all_close(&three, &one.iter().map(|b| 3.0 * b).collect::<Vec<_>>(), 1e-14, "scale");
    let faded = numbers(&bonus(&data, 1e12, 1.0)?.penalty(&tensor(&rows))?);
    all_close(&faded, &rows.iter().map(|r| norm(&extended(r)) * 1e-6).collect::<Vec<_>>(), 1e-12, "ridge");
    let at = leaf(&rows);
    let none = bonus(&data, 0.7, 0.0)?.penalty(&at)?;
    none.sum(Kind::Double).backward();
    assert_eq!((numbers(&none), numbers(&at.grad())), (vec![0.0; 4], vec![0.0; 12]));
    Ok(())
}

/// Features about 1000 apart by 1: a Gram matrix in f32 would keep nothing of them. They are multiples of 1/64, so f32 holds them exactly.
#[test]
fn single_precision_is_computed_in_double() -> Result<()> {
    let far = |seed| -> Rows {
        let near = random(20, 3, seed);
        near.iter().map(|row| row.iter().map(|x| 1000.0 + (x * 64.0).round() / 64.0).collect()).collect()
    };
    let (data, rows) = (far(10), far(11));
    let mut found = EllipticalBonus::new(3, 0.1, 1.0)?;
    found.update(&tensor(&data).to_kind(Kind::Float))?;
    let at = tensor(&rows).to_kind(Kind::Float).set_requires_grad(true);
    let penalty = found.penalty(&at)?;
    assert_eq!(penalty.kind(), Kind::Float);
    let each: Vec<f64> = rows.iter().map(|row| expected(&data, 0.1, 1.0, row)).collect();
    all_close(&numbers(&penalty), &each, 1e-5, "far from 0");
    penalty.sum(Kind::Float).backward();
    assert_eq!(at.grad().kind(), Kind::Float);
    assert_eq!(found.penalty(&tensor(&rows).to_kind(Kind::BFloat16))?.kind(), Kind::Float);
    Ok(())
}

#[test]
fn no_gradient_reaches_the_data() -> Result<()> {
    let (data, at) = (leaf(&random(5, 2, 12)), leaf(&random(3, 2, 13)));
    let mut found = EllipticalBonus::new(2, 1.0, 1.0)?;
    found.update(&data)?;
    found.penalty(&at)?.sum(Kind::Double).backward();
    assert!(at.grad().defined() && !data.grad().defined());
    Ok(())
}

// The bootstrap minimum

#[test]
fn the_minimum_is_each_samples_worst_member() -> Result<()> {
    let scores = random(4, 9, 14);
    let worst: Vec<f64> = (0..9).map(|i| scores.iter().map(|m| m[i]).fold(f64::INFINITY, f64::min)).collect();
    assert_eq!(numbers(&bootstrap_minimum(&tensor(&scores))?), worst);
    let reversed: Rows = scores.iter().rev().cloned().collect();
    assert_eq!(numbers(&bootstrap_minimum(&tensor(&reversed))?), worst);
    // Of one sample members 0 and 2 tie, of the other member 1 is alone: one member gets all of the gradient.
    let at = leaf(&[vec![1.0, 5.0], vec![2.0, 3.0], vec![1.0, 4.0]]);
    bootstrap_minimum(&at)?.sum(Kind::Double).backward();
    let found = numbers(&at.grad());
    assert!(found == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0] || found == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0], "{found:?}");
    Ok(())
}

// The divergence of a chain

/// KL of normal densities in the plain integral, by the trapezium rule.
fn integrated_kl(mean: f64, other: f64, sigma: f64) -> f64 {
    const STEP: f64 = 1e-3;
    let log = |x: f64, m: f64| -0.5 * ((x - m) / sigma).powi(2) - (sigma * std::f64::consts::TAU.sqrt()).ln();
    let at = |i: i32| mean + f64::from(i) * STEP;
    (-8000..8000).map(|i| log(at(i), mean).exp() * (log(at(i), mean) - log(at(i), other)) * STEP).sum()
}

#[test]
fn a_steps_divergence_is_that_of_normal_densities() -> Result<()> {
    let kl = |policy: &[Vec<f64>], pretrained: &[Vec<f64>], sigma| step_kl(&tensor(policy), &tensor(pretrained), sigma);
    for (mean, other, sigma) in [(0.3, -0.4, 0.7), (2.0, 1.9, 0.1), (-1.0, 0.5, 1.3)] {
        let found = number(&kl(&[vec![mean]], &[vec![other]], sigma)?);
        close(found, integrated_kl(mean, other, sigma), 1e-6, 0.0, format!("{mean} {other} {sigma}"));
    }
    // Summed over all dimensions of a sample, of any shape.
    let (policy, pretrained) = (random(3, 8, 15), random(3, 8, 16));
    let each: Vec<f64> = (0..3)
        .map(|i| policy[i].iter().zip(&pretrained[i]).map(|(p, q)| (p - q).powi(2)).sum::<f64>() / (2.0 * 0.36))
        .collect();
    all_close(&numbers(&kl(&policy, &pretrained, 0.6)?), &each, 1e-13, "rows");
    let image = |rows: &Rows| tensor(rows).view([3, 2, 2, 2]);
    all_close(&numbers(&step_kl(&image(&policy), &image(&pretrained), 0.6)?), &each, 1e-13, "images");
    Ok(())
}

/// (μ_θ − μ_pre)/σ² and its opposite; at the pretrained model 0 with a gradient of 0.
#[test]
fn a_steps_divergence_pulls_the_means_together() -> Result<()> {
    let (policy, pretrained) = (leaf(&random(2, 3, 17)), leaf(&random(2, 3, 18)));
    step_kl(&policy, &pretrained, 0.5)?.sum(Kind::Double).backward();
    let pull = numbers(&((&policy - &pretrained) * 4.0));
    all_close(&numbers(&policy.grad()), &pull, 1e-13, "policy");
    all_close(&numbers(&pretrained.grad()), &pull.iter().map(|g| -g).collect::<Vec<_>>(), 1e-13, "pretrained");
    let same = leaf(&random(2, 3, 17));
    let none = step_kl(&same, &same.detach(), 0.5)?;
    none.sum(Kind::Double).backward();
    assert_eq!((numbers(&none), numbers(&same.grad())), (vec![0.0; 2], vec![0.0; 6]));
    Ok(())
}

/// Two steps x_2 → x_1 → x_0 that are linear: the expected sum is KL of the joint normal distributions of (x_1, x_0). Three nodes integrate a
/// quadratic over x_1 exactly.
#[test]
fn the_sum_over_steps_is_the_divergence_of_the_chains() -> Result<()> {
    let (first, last): (f64, f64) = (0.8, 0.3);
    // Mean of x_1; slope and offset of the mean of x_0.
    let (policy, pretrained) = ([0.7, 1.2, -0.4], [0.1, 0.9, 0.2]);
    let nodes = [-1.0, 0.0, 1.0].map(|z| policy[0] + 3.0_f64.sqrt() * first * z);
    let step = |t: usize, sigma: f64| {
        let mean = |of: &[f64; 3], x: f64| if t == 1 { of[1] * x + of[2] } else { of[0] };
        let column = |of: &[f64; 3]| tensor(&nodes.map(|x| vec![mean(of, x)]));
        ReverseStep { policy_mean: column(&policy), pretrained_mean: column(&pretrained), sigma }
    };
    let steps = [step(2, first), step(1, last)];
    let found = numbers(&ConservativeObjective::new(1.0, 2)?.divergence(&steps)?);
    let found = found[0] / 6.0 + found[1] * 2.0 / 3.0 + found[2] / 6.0;

    let joint = |[m, a, b]: [f64; 3]| {
        let (v, w) = (first.powi(2), last.powi(2));
        ([m, a * m + b], [[v, a * v], [a * v, a * a * v + w]])
    };
    let ((mean, cov), (other, wide)) = (joint(policy), joint(pretrained));
    let determinant = |c: [[f64; 2]; 2]| c[0][0] * c[1][1] - c[0][1] * c[1][0];
    let d = determinant(wide);
    let inverse = [[wide[1][1] / d, -wide[0][1] / d], [-wide[1][0] / d, wide[0][0] / d]];
    let shift = [mean[0] - other[0], mean[1] - other[1]];
    let trace: f64 = (0..2).flat_map(|i| (0..2).map(move |j| (i, j))).map(|(i, j)| inverse[i][j] * cov[j][i]).sum();
    let square: f64 = (0..2).map(|i| shift[i] * dot(&inverse[i], &shift)).sum();
    close(found, 0.5 * (trace + square - 2.0 + (d / determinant(cov)).ln()), 1e-12, 0.0, "joint");
    Ok(())
}

// The objective

/// A chain of `steps` from x_T with means tanh(θx) in its last n steps, .9x before and in the pretrained model; one θ for all.
struct Toy {
    start: Rows,
    noise: Vec<Rows>,
    last: usize,
    checkpointed: bool,
}

impl Toy {
    const SIGMA: f64 = 0.4;
    const ALPHA: f64 = 0.3;

    fn new(last: usize) -> Self {
        let noise = (0..3).map(|t| random(5, 2, 20 + t)).collect();
        Self { start: random(5, 2, 19), noise, last, checkpointed: false }
    }

    /// Mean loss under r̂ − ĝ = −‖x_0 − 1‖.
    fn loss(&self, theta: &Tensor) -> Result<Tensor> {
        let mut x = tensor(&self.start);
        let mut steps = Vec::new();
        for t in (1..=self.noise.len()).rev() {
            let pretrained_mean = &x * 0.9;
            let kept = t <= self.last;
            let mean = if kept { self.mean(&x, theta)? } else { pretrained_mean.shallow_clone() };
            x = &mean + tensor(&self.noise[t - 1]) * Self::SIGMA;
            if kept {
                steps.push(ReverseStep { policy_mean: mean, pretrained_mean, sigma: Self::SIGMA });
            }
        }
        let rewards = -(x - 1.0).square().sum_dim_intlist([1].as_slice(), false, Kind::Double).sqrt();
        ConservativeObjective::new(Self::ALPHA, self.last)?.mean(&rewards, &steps)
    }

    fn mean(&self, x: &Tensor, theta: &Tensor) -> Result<Tensor> {
        let own = theta.shallow_clone();
        let f = move |inputs: &[Tensor]| Ok((&inputs[0] * &own).tanh());
        if self.checkpointed { checkpoint(&[x], &[theta], f) } else { f(&[x.shallow_clone()]) }
    }

    /// The loss in plain f64.
    fn expected(&self, theta: f64) -> f64 {
        let samples = self.start.iter().enumerate().map(|(i, start)| {
            let (mut x, mut kl) = (start.clone(), 0.0);
            for t in (1..=self.noise.len()).rev() {
                for (j, x) in x.iter_mut().enumerate() {
                    let mean = if t <= self.last { (theta * *x).tanh() } else { 0.9 * *x };
                    kl += (mean - 0.9 * *x).powi(2) / (2.0 * Self::SIGMA.powi(2));
                    *x = mean + Self::SIGMA * self.noise[t - 1][i][j];
                }
            }
            let reward = -norm(&x.iter().map(|x| x - 1.0).collect::<Vec<_>>());
            Self::ALPHA * kl - reward
        });
        samples.sum::<f64>() / self.start.len() as f64
    }

    fn gradient(&self, theta: f64) -> Result<f64> {
        let leaf = Tensor::from(theta).set_requires_grad(true);
        let loss = self.loss(&leaf)?;
        close(number(&loss), self.expected(theta), 1e-12, 1.0, format!("loss, last {}", self.last));
        loss.backward();
        Ok(number(&leaf.grad()))
    }
}

/// Value and gradient through 1, 2 and all 3 steps: with the pretrained model before them, truncation loses nothing.
#[test]
fn the_loss_and_its_gradient_through_the_chain() -> Result<()> {
    const STEP: f64 = 1e-6;
    for last in 1..=3 {
        let toy = Toy::new(last);
        for theta in [0.4, 1.1] {
            let difference = (toy.expected(theta + STEP) - toy.expected(theta - STEP)) / (2.0 * STEP);
            close(toy.gradient(theta)?, difference, 1e-7, 1.0, format!("last {last}, {theta}"));
            let checkpointed = Toy { checkpointed: true, ..Toy::new(last) };
            close(checkpointed.gradient(theta)?, toy.gradient(theta)?, 1e-12, 0.0, "checkpointed");
        }
    }
    Ok(())
}

/// ĝ = 0, by c = 0 or by one head that is r̂ (or copies of it): the plain KL-regularised loss, number for number.
#[test]
fn without_a_penalty_it_is_the_plain_objective() -> Result<()> {
    let (score, features) = (random(1, 4, 23), random(4, 3, 24));
    let step = || ReverseStep {
        policy_mean: tensor(&random(4, 2, 25)),
        pretrained_mean: tensor(&random(4, 2, 26)),
        sigma: 0.5,
    };
    let objective = ConservativeObjective::new(0.2, 1)?;
    let learned = tensor(&score).squeeze_dim(0);
    let plain = numbers(&objective.per_sample(&learned, &[step()])?);
    let kl = numbers(&step().kl()?);
    let by_hand: Vec<f64> = kl.iter().zip(&score[0]).map(|(kl, r)| 0.2 * kl - r).collect();
    all_close(&plain, &by_hand, 1e-15, "by hand");
    let none = &learned - bonus(&random(5, 3, 27), 1.0, 0.0)?.penalty(&tensor(&features))?;
    assert_eq!(numbers(&objective.per_sample(&none, &[step()])?), plain);
    for members in [1, 3] {
        let head = bootstrap_minimum(&tensor(&vec![score[0].clone(); members]))?;
        assert_eq!(numbers(&objective.per_sample(&head, &[step()])?), plain, "{members} heads");
    }
    let unanchored = ConservativeObjective::new(0.0, 1)?.per_sample(&learned, &[step()])?;
    assert_eq!(numbers(&unanchored), score[0].iter().map(|r| -r).collect::<Vec<_>>());
    Ok(())
}

/// Where the loss of one step x_0 = μ + σz is stationary in μ, for r̂ − ĝ = w x − k x²/2: its gradient is linear in μ. Two z of opposite sign are
/// enough for a quadratic.
fn stationary(alpha: f64, [pretrained, sigma, w, k]: [f64; 4]) -> Result<f64> {
    let gradient = |mean: f64| -> Result<f64> {
        let at = Tensor::from(mean).set_requires_grad(true);
        let policy_mean = at.expand([2, 1], false);
        let sample = (&policy_mean + tensor(&[vec![sigma], vec![-sigma]])).squeeze_dim(1);
        let rewards = &sample * w - sample.square() * (0.5 * k);
        let pretrained_mean = policy_mean.detach() * 0.0 + pretrained;
        ConservativeObjective::new(alpha, 1)?
            .mean(&rewards, &[ReverseStep { policy_mean, pretrained_mean, sigma }])?
            .backward();
        Ok(number(&at.grad()))
    };
    let (low, high) = (gradient(0.0)?, gradient(1.0)?);
    assert!(high > low, "a minimum");
    Ok(low / (low - high))
}

/// The mean of p_pre e^{r/α}, by the trapezium rule.
fn tilted_mean(alpha: f64, [pretrained, sigma, w, k]: [f64; 4]) -> f64 {
    let log = |x: f64| -0.5 * ((x - pretrained) / sigma).powi(2) + (w * x - 0.5 * k * x * x) / alpha;
    let grid = || (-20_000..20_000).map(|i| f64::from(i) * 1e-3);
    let top = grid().map(log).fold(f64::NEG_INFINITY, f64::max);
    let (mass, moment) =
        grid().map(|x| (x, (log(x) - top).exp())).fold((0.0, 0.0), |(m, s), (x, p)| (m + p, s + p * x));
    moment / mass
}

#[test]
fn the_optimum_of_a_step_is_the_gibbs_form() -> Result<()> {
    let toy = [0.3, 0.6, 1.1, 0.8];
    for alpha in [0.05, 0.3, 2.0] {
        close(stationary(alpha, toy)?, tilted_mean(alpha, toy), 1e-9, 1.0, format!("α = {alpha}"));
    }
    close(stationary(1e9, toy)?, 0.3, 1e-8, 0.0, "α → ∞ is the pretrained model");
    close(stationary(0.0, toy)?, 1.1 / 0.8, 1e-12, 0.0, "α = 0 is the reward's maximum");
    Ok(())
}

// What pessimism can lose

/// A table of outcomes: E r − α KL(π ‖ p_pre) of log π.
fn value(policy: &[f64], pretrained: &[f64], rewards: &[f64], alpha: f64) -> f64 {
    expectation(policy, rewards) - alpha * oracle::kl(policy, pretrained)
}

fn expectation(policy: &[f64], values: &[f64]) -> f64 {
    policy.iter().zip(values).map(|(p, v)| p.exp() * v).sum()
}

/// p_pre, the best policy, one outcome alone, and strangers.
fn comparators(pretrained: &[f64], rewards: &[f64], alpha: f64, seed: u64) -> Rows {
    let best = (0..rewards.len()).max_by(|&i, &j| rewards[i].total_cmp(&rewards[j])).expect("outcomes");
    let alone = (0..rewards.len()).map(|i| if i == best { 0.0 } else { f64::NEG_INFINITY }).collect();
    let strangers = random(6, rewards.len(), seed);
    let mut policies = vec![pretrained.to_vec(), oracle::gibbs(pretrained, rewards, alpha), alone];
    policies.extend(
        strangers.iter().map(|logits| oracle::log_softmax(&logits.iter().map(|l| 3.0 * l).collect::<Vec<_>>())),
    );
    policies
}

/// J(π) − J(π̂) ≤ 2 E_π ĝ for each comparator π, with π̂ ∝ p_pre e^{(r̂−ĝ)/α}; and π̂ is the best under r̂ − ĝ.
#[track_caller]
fn loses_little(learned: &[f64], penalties: &[f64], rewards: &[f64], alpha: f64, seed: u64) {
    let pretrained = oracle::log_softmax(&random(1, rewards.len(), seed ^ 3)[0]);
    let lowered: Vec<f64> = learned.iter().zip(penalties).map(|(r, g)| r - g).collect();
    let found = oracle::gibbs(&pretrained, &lowered, alpha);
    for rival in comparators(&pretrained, rewards, alpha, seed ^ 4) {
        let lost = value(&rival, &pretrained, rewards, alpha) - value(&found, &pretrained, rewards, alpha);
        let bound = 2.0 * expectation(&rival, penalties);
        assert!(lost <= bound + 1e-7, "lost {lost}, at most {bound}");
        let [own, other] = [&found, &rival].map(|policy| value(policy, &pretrained, &lowered, alpha));
        assert!(other <= own + 1e-9, "{other} is better than {own}");
    }
}

/// Outcomes whose true reward is θᵀφ, some of them scored without noise, r̂ by ridge regression, ĝ by the bonus at c = √λ ‖θ‖.
struct Regressed {
    rewards: Vec<f64>,
    learned: Vec<f64>,
    penalties: Vec<f64>,
}

impl Regressed {
    fn new(seed: u64, count: usize, ridge: f64) -> Result<Self> {
        let (outcomes, theta) = (random(10, 3, seed), random(1, 4, seed ^ 1).remove(0));
        let reward = |row: &Vec<f64>| dot(&theta, &extended(row));
        let data = &outcomes[..count];
        let moments: Vec<f64> = (0..4).map(|j| data.iter().map(|row| extended(row)[j] * reward(row)).sum()).collect();
        let fitted = solved(gram(data, 3, ridge), moments);
        let penalties = bonus(data, ridge, ridge.sqrt() * norm(&theta))?.penalty(&tensor(&outcomes))?;
        let learned = outcomes.iter().map(|row| dot(&fitted, &extended(row))).collect();
        Ok(Self { rewards: outcomes.iter().map(reward).collect(), learned, penalties: numbers(&penalties) })
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn at_most_twice_the_comparators_penalty_with_the_bonus(seed in any::<u64>(), count in 1..9_usize, ridge in 1e-2..5.0, alpha in 0.05..3.0) {
        let Regressed { rewards, learned, penalties } = Regressed::new(seed, count, ridge)?;
        loses_little(&learned, &penalties, &rewards, alpha, seed);
    }

    /// Any table with |r̂ − r| ≤ ĝ, the penalty that of four heads about their mean.
    #[test]
    fn at_most_twice_the_comparators_penalty_with_heads(seed in any::<u64>(), outcomes in 2..12_usize, alpha in 0.05..3.0) {
        let heads = random(4, outcomes, seed);
        let lowest = numbers(&bootstrap_minimum(&tensor(&heads))?);
        let learned = oracle::mix(&heads, &[0.25; 4]);
        let penalties: Vec<f64> = learned.iter().zip(&lowest).map(|(r, low)| r - low).collect();
        let errors = random(1, outcomes, seed ^ 5).remove(0);
        let rewards: Vec<f64> = (0..outcomes).map(|i| learned[i] + penalties[i] * errors[i] / 2.0).collect();
        loses_little(&learned, &penalties, &rewards, alpha, seed);
    }
}

/// The factor of 2 is needed: the better of two outcomes is taken for one that is worse by 2ĝ, and 1.9 of it are lost.
#[test]
fn nearly_twice_the_penalty_can_be_lost() {
    let (learned, penalties, rewards) = ([1.0, 0.1], [1.0, 0.0], [2.0, 0.1]);
    let pretrained = [0.5_f64.ln(); 2];
    let found = oracle::gibbs(&pretrained, &[0.0, 0.1], 1e-3);
    let alone = [0.0, f64::NEG_INFINITY];
    let lost = value(&alone, &pretrained, &rewards, 1e-3) - value(&found, &pretrained, &rewards, 1e-3);
    close(lost, 1.9, 1e-9, 0.0, "lost");
    loses_little(&learned, &penalties, &rewards, 1e-3, 31);
}

// Refusals

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

fn zeros(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::zeros(shape, (kind, Device::Cpu))
}

#[test]
fn numbers_outside_their_domain() -> Result<()> {
    for ridge in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(EllipticalBonus::new(2, ridge, 1.0), &format!("ridge must be positive and finite, got {ridge}"));
    }
    for scale in [-1.0, f64::NAN, f64::INFINITY] {
        let said = format!("scale must be at least 0 and finite, got {scale}");
        refused(EllipticalBonus::new(2, 1.0, scale), &said);
        refused(EllipticalBonus::new(2, 1.0, 1.0)?.with_scale(scale), &said);
    }
    refused(EllipticalBonus::new(0, 1.0, 1.0), "width must be at least 1, got 0");
    refused(ConservativeObjective::new(0.1, 0), "last_steps must be at least 1, got 0");
    for weight in [-0.1, f64::NAN, f64::INFINITY] {
        refused(
            ConservativeObjective::new(weight, 1),
            &format!("kl_weight must be at least 0 and finite, got {weight}"),
        );
    }
    let mean = zeros(&[2, 3], Kind::Double);
    for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(step_kl(&mean, &mean, sigma), &format!("sigma must be positive and finite, got {sigma}"));
    }
    Ok(())
}

#[test]
fn features_that_do_not_fit() -> Result<()> {
    let mut bonus = bonus(&random(4, 3, 28), 1.0, 1.0)?;
    let rows = tensor(&random(2, 3, 29));
    let before = numbers(&bonus.penalty(&rows)?);
    let mut holed = random(2, 3, 30);
    holed[1][0] = f64::NAN;
    let (nan, integers) = (tensor(&holed), zeros(&[2, 3], Kind::Int64));
    holed[1][0] = f64::NEG_INFINITY;
    for (features, said) in [
        (zeros(&[2, 4], Kind::Double), "features must have shape [batch, width] with width = 3, got width = 4"),
        (zeros(&[3], Kind::Double), "features must have shape [batch, width], got [3]"),
        (zeros(&[0, 3], Kind::Double), "features is empty: shape [batch, width] needs at least one element"),
        (integers, "features must be of a floating-point kind, got Int64"),
        (nan, "features[3] must be finite, got NaN"),
        (tensor(&holed), "features[3] must be finite, got -inf"),
    ] {
        refused(bonus.penalty(&features), said);
        refused(bonus.update(&features), said);
    }
    // Finite, but their squares are not.
    let lost = "ridge must be large enough beside φᵀφ for a Cholesky factor in f64, got 1";
    refused(bonus.update(&(zeros(&[1, 3], Kind::Double) + 1e200)), lost);
    assert_eq!((bonus.rows(), numbers(&bonus.penalty(&rows)?)), (4, before));
    Ok(())
}

#[test]
fn scores_and_steps_that_do_not_fit() -> Result<()> {
    refused(bootstrap_minimum(&zeros(&[3], Kind::Double)), "scores must have shape [members, batch], got [3]");
    refused(
        bootstrap_minimum(&zeros(&[0, 3], Kind::Double)),
        "scores is empty: shape [members, batch] needs at least one element",
    );
    let half = "scores must be Float or Double (losses lose their digits in half precision), got Half";
    refused(bootstrap_minimum(&zeros(&[2, 3], Kind::Half)), half);

    let mean = || zeros(&[2, 3], Kind::Double);
    // Any of these would broadcast in silence.
    for shape in [&[3_i64] as &[i64], &[1, 3], &[2, 1]] {
        let said = format!("pretrained_mean must have shape [batch, ..dims] of policy_mean, got {shape:?}");
        refused(step_kl(&mean(), &zeros(shape, Kind::Double), 1.0), &said);
    }
    let flat = zeros(&[3], Kind::Double);
    refused(step_kl(&flat, &flat, 1.0), "policy_mean must have shape [batch, ..dims], got [3]");
    let single = "pretrained_mean must be Double like the tensors it goes with, got Float";
    refused(step_kl(&mean(), &zeros(&[2, 3], Kind::Float), 1.0), single);

    let step = |batch: i64| ReverseStep {
        policy_mean: zeros(&[batch, 3], Kind::Double),
        pretrained_mean: zeros(&[batch, 3], Kind::Double),
        sigma: 1.0,
    };
    let two = ConservativeObjective::new(0.1, 2)?;
    assert_eq!(two.last_steps(), 2);
    for steps in [vec![], vec![step(4)]] {
        let said = format!("steps must have shape [last_steps] with last_steps = 2, got last_steps = {}", steps.len());
        refused(two.divergence(&steps), &said);
    }
    let uneven = "KL of a step must have shape [batch] with batch = 4, got batch = 5";
    refused(two.divergence(&[step(4), step(5)]), uneven);
    let steps = [step(4), step(4)];
    let said = "rewards must have shape [batch] with batch = 4, got batch = 1";
    refused(two.per_sample(&zeros(&[1], Kind::Double), &steps), said);
    refused(two.mean(&zeros(&[4, 1], Kind::Double), &steps), "rewards must have shape [batch], got [4, 1]");
    let single = "rewards must be Double like the rest of its batch, got Float";
    refused(two.mean(&zeros(&[4], Kind::Float), &steps), single);
    Ok(())
}

#[test]
fn the_objective_survives_a_configuration_file() -> Result<()> {
    let objective = ConservativeObjective::new(0.25, 7)?;
    let text = r#"{"kl_weight":0.25,"last_steps":7}"#;
    assert_eq!(serde_json::to_string(&objective).expect("plain data"), text);
    assert_eq!(serde_json::from_str::<ConservativeObjective>(text).expect("its own text"), objective);
    for (json, start) in [
        (r#"{"kl_weight": -1, "last_steps": 1}"#, "kl_weight must be at least 0 and finite, got -1"),
        (r#"{"kl_weight": 1, "last_steps": 0}"#, "invalid value: integer `0`, expected a nonzero"),
        (r#"{"kl_weight": 1, "last_steps": 1, "alpha": 1}"#, "unknown field `alpha`"),
        (r#"{"kl_weight": 1}"#, "missing field `last_steps`"),
    ] {
        let said = serde_json::from_str::<ConservativeObjective>(json).expect_err("must be refused").to_string();
        assert!(said.starts_with(start), "{said}");
    }
    Ok(())
}
