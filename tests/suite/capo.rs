//! Calibrated rewards, Pareto fronts, pairs and the denoising log-ratio of CaPO, against the formulas in plain f64.

use ndarray::{Array2, Array3, ArrayView2, Axis, array};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, Result, RewardScores,
    diffusion::{
        Calibration, Denoising, Dimensions, Frontier, NoisePredictions, SamplePair, TemperatureUnit, extremes,
        lower_front, non_dominated_ranks, upper_front, weighted_sum,
    },
    loss::{Dpo, Ipo, Minimum, PessimisticDistillation, RewardDistillation},
    tch::{Device, Kind, Tensor},
};

use crate::{all_close, close, identities::config, numbers, oracle};

// Calibrated rewards

/// The paper's sum, one sample of one prompt at a time.
fn calibrated(rewards: &[f64], temperature: f64) -> Vec<f64> {
    let n = rewards.len();
    let against = |i: usize, k: usize| oracle::sigmoid((rewards[i] - rewards[k]) / temperature);
    (0..n).map(|i| (0..n).filter(|&k| k != i).map(|k| against(i, k)).sum::<f64>() / (n as f64 - 1.0)).collect()
}

/// Population standard deviation within rows, pooled over rows.
fn deviation(rows: ArrayView2<f64>) -> f64 {
    let squares = rows.outer_iter().flat_map(|row| {
        let mean = row.sum() / row.len() as f64;
        row.iter().map(|r| (r - mean).powi(2)).collect::<Vec<_>>()
    });
    (squares.sum::<f64>() / rows.len() as f64).sqrt()
}

fn random(models: usize, prompts: usize, samples: usize, seed: u64) -> Array3<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array3::from_shape_fn((models, prompts, samples), |_| rng.random_range(-3.0..3.0))
}

fn flat(array: &Array2<f64>) -> Vec<f64> {
    array.iter().copied().collect()
}

#[test]
fn calibration_is_the_papers_sum() -> Result<()> {
    let rewards = random(1, 5, 7, 1).index_axis_move(Axis(0), 0);
    for (temperature, unit) in [(0.7, TemperatureUnit::Reward), (0.7, TemperatureUnit::Deviation)] {
        let found = Calibration::new(temperature)?.with_unit(unit).calibrate(rewards.view())?;
        let scale = if unit == TemperatureUnit::Reward { 1.0 } else { deviation(rewards.view()) };
        for (found, row) in found.outer_iter().zip(rewards.outer_iter()) {
            all_close(&found.to_vec(), &calibrated(&row.to_vec(), temperature * scale), 1e-14, format!("{unit:?}"));
        }
    }
    Ok(())
}

/// Rows and columns of a view that is not contiguous must not be mixed up.
#[test]
fn calibration_reads_any_layout() -> Result<()> {
    let rewards = random(1, 4, 6, 2).index_axis_move(Axis(0), 0);
    let transposed = rewards.t().to_owned();
    let calibration = Calibration::new(1.0)?;
    assert_eq!(calibration.calibrate(transposed.t())?, calibration.calibrate(rewards.view())?);
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_shares_of_a_prompt_sum_to_half_its_samples(samples in 2..9_usize, seed in any::<u64>(), temperature in 0.01..5.0) {
        for unit in [TemperatureUnit::Reward, TemperatureUnit::Deviation] {
            let calibrated = Calibration::new(temperature)?.with_unit(unit).average(random(3, 4, samples, seed).view())?;
            for row in calibrated.outer_iter() {
                close(row.sum(), samples as f64 / 2.0, 1e-13, 0.0, "sum");
                prop_assert!(row.iter().all(|r| (0.0..=1.0).contains(r)));
            }
        }
    }

    #[test]
    fn of_two_samples_the_gap_is_a_hyperbolic_tangent(a in -9.0..9.0, b in -9.0..9.0, temperature in 0.05..5.0) {
        let found = Calibration::new(temperature)?.calibrate(array![[a, b]].view())?;
        let half: f64 = (a - b) / (2.0 * temperature);
        close(found[[0, 0]] - found[[0, 1]], half.tanh(), 1e-13, 1.0, "gap");
    }

    /// An offset of each prompt, and with deviations as unit a positive scale of the model too.
    #[test]
    fn an_offset_of_the_prompt_changes_nothing(seed in any::<u64>(), offsets in prop::collection::vec(-50.0..50.0, 4), scale in 0.01..100.0_f64) {
        let rewards = random(1, 4, 5, seed).index_axis_move(Axis(0), 0);
        let offsets = Array2::from_shape_vec((4, 1), offsets).expect("four prompts");
        let moved = &rewards + &offsets;
        let in_rewards = Calibration::new(0.8)?;
        all_close(&flat(&in_rewards.calibrate(moved.view())?), &flat(&in_rewards.calibrate(rewards.view())?), 1e-11, "offset");
        let in_deviations = in_rewards.with_unit(TemperatureUnit::Deviation);
        let stretched = moved * scale;
        all_close(&flat(&in_deviations.calibrate(stretched.view())?), &flat(&in_deviations.calibrate(rewards.view())?), 1e-9, "scale");
    }

    /// Rising within a prompt: the order stays, and with it every front.
    #[test]
    fn calibration_keeps_the_fronts(seed in any::<u64>()) {
        let rewards = random(3, 4, 8, seed);
        let calibrated = Calibration::new(1.0)?.per_model(rewards.view())?;
        prop_assert_eq!(Frontier::of_prompts(calibrated.view())?, Frontier::of_prompts(rewards.view())?);
    }

    #[test]
    fn one_reward_without_ties_has_one_pair(seed in any::<u64>()) {
        let rewards = random(1, 3, 6, seed);
        let calibrated = Calibration::new(1.0)?.average(rewards.view())?;
        let pairs = extremes(calibrated.view())?;
        prop_assert_eq!(&pairs, &extremes(rewards.index_axis(Axis(0), 0))?);
        for (frontier, pair) in Frontier::of_prompts(rewards.view())?.iter().zip(pairs) {
            let pair = pair.expect("no ties");
            prop_assert_eq!(frontier.chosen(), [pair.chosen]);
            prop_assert_eq!(frontier.rejected(), [pair.rejected]);
        }
    }
}

/// T → 0 counts wins, a tie as half of one; T → ∞ tells nothing; a constant model has no opinion in either unit.
#[test]
fn calibration_at_its_limits() -> Result<()> {
    let rewards = array![[3.0, -1.0, 3.0, 8.0]];
    let shares = [0.5, 0.0, 0.5, 1.0];
    all_close(&flat(&Calibration::new(1e-9)?.calibrate(rewards.view())?), &shares, 1e-15, "cold");
    all_close(&flat(&Calibration::new(1e12)?.calibrate(rewards.view())?), &[0.5; 4], 1e-11, "hot");
    for unit in [TemperatureUnit::Reward, TemperatureUnit::Deviation] {
        let found = Calibration::new(1.0)?.with_unit(unit).calibrate(array![[0.1, 0.1, 0.1]].view())?;
        assert_eq!(flat(&found), [0.5; 3], "{unit:?}");
    }
    let far = Calibration::new(1.0)?.calibrate(array![[1e308, -1e308, 0.0]].view())?;
    assert_eq!(flat(&far), [1.0, 0.0, 0.5]);
    Ok(())
}

/// Calibrated first and averaged then: the other order lets the largest scale decide.
#[test]
fn models_are_averaged_after_calibration() -> Result<()> {
    let rewards = random(3, 4, 5, 3);
    let calibration = Calibration::new(0.6)?;
    let each: Vec<_> = rewards.outer_iter().map(|r| calibration.calibrate(r)).collect::<Result<_>>()?;
    let stacked = calibration.per_model(rewards.view())?;
    for (found, expected) in stacked.outer_iter().zip(&each) {
        assert_eq!(found, expected.view());
    }
    let mean = (&each[0] + &each[1] + &each[2]) / 3.0;
    all_close(&flat(&calibration.average(rewards.view())?), &flat(&mean), 1e-14, "average");
    let weighted = (&each[0] * 2.0 + &each[2] * 6.0) / 8.0;
    let found = calibration.weighted_average(rewards.view(), &[2.0, 0.0, 6.0])?;
    all_close(&flat(&found), &flat(&weighted), 1e-14, "weighted");
    let raw = weighted_sum(rewards.view(), &[2.0, -1.0, 0.5])?;
    let expected: Vec<f64> = (0..20)
        .map(|i| 2.0 * rewards[[0, i / 5, i % 5]] - rewards[[1, i / 5, i % 5]] + 0.5 * rewards[[2, i / 5, i % 5]])
        .collect();
    all_close(&flat(&raw), &expected, 1e-14, "weighted sum");
    Ok(())
}

// Pareto fronts

fn dominates(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(x, y)| x >= y) && a.iter().zip(b).any(|(x, y)| x > y)
}

/// Peels one front after the other.
fn peeled(points: &[Vec<f64>]) -> Vec<usize> {
    let mut ranks = vec![usize::MAX; points.len()];
    for front in 0.. {
        let left: Vec<usize> = (0..points.len()).filter(|&i| ranks[i] == usize::MAX).collect();
        if left.is_empty() {
            break;
        }
        let free: Vec<usize> =
            left.iter().copied().filter(|&i| !left.iter().any(|&k| dominates(&points[k], &points[i]))).collect();
        free.into_iter().for_each(|i| ranks[i] = front);
    }
    ranks
}

fn stacked(points: &[Vec<f64>]) -> Array2<f64> {
    Array2::from_shape_fn((points.len(), points[0].len()), |(i, j)| points[i][j])
}

/// Small whole numbers, so that ties and equal points abound; −0 is written for half of the zeros.
fn clouds() -> impl Strategy<Value = Vec<Vec<f64>>> {
    let number = (-2..3_i8, any::<bool>()).prop_map(|(x, minus)| if minus { -f64::from(-x) } else { f64::from(x) });
    (1..5_usize).prop_flat_map(move |width| prop::collection::vec(prop::collection::vec(number.clone(), width), 1..40))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..config() })]

    #[test]
    fn ranks_are_those_of_peeling(points in clouds()) {
        let ranks = non_dominated_ranks(stacked(&points).view())?;
        prop_assert_eq!(&ranks, &peeled(&points));
        let first: Vec<usize> = (0..points.len()).filter(|&i| ranks[i] == 0).collect();
        prop_assert_eq!(upper_front(stacked(&points).view())?, first);
        let reversed: Vec<Vec<f64>> = points.iter().map(|p| p.iter().map(|x| -x).collect()).collect();
        let below = peeled(&reversed);
        let last: Vec<usize> = (0..points.len()).filter(|&i| below[i] == 0).collect();
        prop_assert_eq!(lower_front(stacked(&points).view())?, last);
    }
}

#[test]
fn fronts_of_a_small_example() -> Result<()> {
    // 0 and 3 are equal; 4 is beaten by 1 alone; 5 by all; 2 beats nobody but 5.
    let points = array![[2.0, 2.0], [3.0, 1.0], [0.0, 3.0], [2.0, 2.0], [3.0, 0.0], [-1.0, -1.0]];
    assert_eq!(non_dominated_ranks(points.view())?, [0, 0, 0, 0, 1, 2]);
    assert_eq!(upper_front(points.view())?, [0, 1, 2, 3]);
    assert_eq!(lower_front(points.view())?, [5]);
    // Points of a falling line: none dominates another, upper and lower front are the same.
    let line = array![[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]];
    assert_eq!(upper_front(line.view())?, [0, 1, 2]);
    assert_eq!(lower_front(line.view())?, [0, 1, 2]);
    // Points of one rising line: as many fronts as points, and one reward alone is such a line.
    let chain = array![[1.0], [3.0], [2.0], [3.0]];
    assert_eq!(non_dominated_ranks(chain.view())?, [2, 0, 1, 0]);
    Ok(())
}

/// Many points of four rewards: a cloud, and a sheet where nobody dominates anybody. How fast: `benches/scaling.rs`.
#[test]
fn a_sheet_is_one_front() -> Result<()> {
    let count = 600;
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let cloud = Array2::from_shape_fn((count, 4), |_| rng.random::<f64>());
    // The last coordinate takes back what the others have: nobody dominates anybody.
    let mut sheet = cloud.clone();
    for mut row in sheet.outer_iter_mut() {
        row[3] = -(row[0] + row[1] + row[2]);
    }
    for (name, points, fronts) in [("cloud", &cloud, None), ("sheet", &sheet, Some(1))] {
        let ranks = non_dominated_ranks(points.view())?;
        let (upper, lower) = (upper_front(points.view())?, lower_front(points.view())?);
        let found = ranks.iter().max().map_or(0, |last| last + 1);
        assert!(fronts.is_none_or(|fronts| fronts == found), "{name}: {found} fronts");
        assert_eq!(upper.len(), ranks.iter().filter(|rank| **rank == 0).count());
        assert!(!lower.is_empty());
    }
    Ok(())
}

// Pairs

#[test]
fn extremes_take_the_first_of_equals() -> Result<()> {
    let scores = array![[1.0, 4.0, 4.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0], [5.0, 1.0, 2.0, 3.0, 4.0]];
    let expected = [Some(SamplePair { chosen: 1, rejected: 3 }), None, Some(SamplePair { chosen: 0, rejected: 1 })];
    assert_eq!(extremes(scores.view())?, expected);
    assert_eq!(extremes(array![[3.0]].view())?, [None::<SamplePair>]);
    Ok(())
}

/// Sample 2 is on both fronts (nothing dominates it, it dominates nothing) and is left out.
#[test]
fn samples_on_both_fronts_are_left_out() -> Result<()> {
    let rewards = array![[3.0, 3.0], [4.0, 2.0], [0.0, 9.0], [1.0, 1.0], [2.0, 0.0], [2.0, 2.0]];
    let frontier = Frontier::new(rewards.view())?;
    assert_eq!(frontier.chosen(), [0, 1]);
    assert_eq!(frontier.rejected(), [3, 4]);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut seen = [[0; 6]; 6];
    for _ in 0..4_000 {
        let pair = frontier.draw(&mut rng).expect("both sides are there");
        seen[pair.chosen][pair.rejected] += 1;
    }
    for (chosen, rejected) in [(0, 3), (0, 4), (1, 3), (1, 4)] {
        // Four standard deviations of a binomial of 4,000 at ¼.
        assert!((seen[chosen][rejected] - 1_000_i32).abs() < 110, "{seen:?}");
    }
    Ok(())
}

#[test]
fn a_side_without_samples_makes_no_pair() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    // A falling line, and equal samples: both fronts are everything.
    for rewards in [array![[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]], array![[1.0, 1.0], [1.0, 1.0]]] {
        let frontier = Frontier::new(rewards.view())?;
        assert!(frontier.chosen().is_empty() && frontier.rejected().is_empty());
        assert_eq!(frontier.draw(&mut rng), None);
    }
    Ok(())
}

/// `[models, prompts, samples]` is read as that: two models that agree within a prompt, and disagree between prompts.
#[test]
fn frontiers_of_prompts_are_those_of_each() -> Result<()> {
    let rewards = array![[[0.0, 1.0, 2.0], [5.0, 4.0, 3.0]], [[0.0, 10.0, 20.0], [9.0, 8.0, 7.0]]];
    let frontiers = Frontier::of_prompts(rewards.view())?;
    assert_eq!((frontiers[0].chosen(), frontiers[0].rejected()), ([2].as_slice(), [0].as_slice()));
    assert_eq!((frontiers[1].chosen(), frontiers[1].rejected()), ([0].as_slice(), [2].as_slice()));
    Ok(())
}

// The denoising log-ratio

const BATCH: usize = 3;
const DIMS: [i64; 2] = [2, 4];

/// ε, ε_θ(x⁺), ε_θ(x⁻), ε_ref(x⁺), ε_ref(x⁻), each `[BATCH, 2, 4]` flattened, and λ_t.
struct Noised {
    tensors: [Vec<f64>; 5],
    log_snr: Vec<f64>,
}

impl Noised {
    fn random(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-2.0..2.0)).collect::<Vec<f64>>();
        Self { tensors: [0; 5].map(|_| draw(BATCH * 8)), log_snr: draw(BATCH) }
    }

    fn at_reference(self) -> Self {
        let [noise, _, _, chosen, rejected] = self.tensors;
        Self { tensors: [noise, chosen.clone(), rejected.clone(), chosen, rejected], ..self }
    }

    /// Leaves, all of which ask for a gradient.
    fn leaves(&self) -> ([Tensor; 5], Tensor) {
        let shape = [BATCH as i64, DIMS[0], DIMS[1]];
        let leaf = |values: &Vec<f64>| Tensor::from_slice(values).view(shape).set_requires_grad(true);
        (self.tensors.each_ref().map(leaf), Tensor::from_slice(&self.log_snr).set_requires_grad(true))
    }

    /// ‖ε − prediction‖² over `count` dimensions, summed, of pair i.
    fn error(&self, which: usize, i: usize) -> f64 {
        (8 * i..8 * (i + 1)).map(|j| (self.tensors[0][j] - self.tensors[which][j]).powi(2)).sum()
    }

    fn weight(&self, shift: f64, i: usize) -> f64 {
        oracle::sigmoid(shift - self.log_snr[i])
    }

    /// R_θ(x⁺) − R_θ(x⁻) from the paper's line, with mean over dimensions.
    fn h(&self, shift: f64) -> Vec<f64> {
        let ratio = |policy: usize, reference: usize, i: usize| {
            self.weight(shift, i) * (self.error(reference, i) - self.error(policy, i)) / 8.0
        };
        (0..BATCH).map(|i| ratio(1, 3, i) - ratio(2, 4, i)).collect()
    }
}

fn logps(denoising: Denoising, leaves: &([Tensor; 5], Tensor)) -> Result<PairLogps> {
    let [noise, chosen, rejected, ref_chosen, ref_rejected] = leaves.0.each_ref().map(Tensor::shallow_clone);
    denoising.logps(&noise, &leaves.1, &NoisePredictions { chosen, rejected, ref_chosen, ref_rejected })
}

fn scores(chosen: &[f64], rejected: &[f64]) -> Result<RewardScores> {
    RewardScores::single(&Tensor::from_slice(chosen), &Tensor::from_slice(rejected))
}

#[test]
fn log_probabilities_are_minus_the_weighted_error() -> Result<()> {
    for (shift, seed) in [(0.0, 7), (1.5, 8), (-2.0, 9)] {
        let noised = Noised::random(seed);
        for (dimensions, divisor) in [(Dimensions::Mean, 8.0), (Dimensions::Sum, 1.0)] {
            let found = logps(Denoising::new(shift)?.with_dimensions(dimensions), &noised.leaves())?;
            let sides = [found.chosen(), found.rejected(), found.ref_chosen(), found.ref_rejected()];
            for (which, side) in sides.into_iter().enumerate() {
                let expected: Vec<f64> =
                    (0..BATCH).map(|i| -noised.weight(shift, i) * noised.error(which + 1, i) / divisor).collect();
                all_close(&numbers(side), &expected, 1e-13, format!("{dimensions:?} {which}"));
            }
        }
        let found = logps(Denoising::new(shift)?, &noised.leaves())?;
        all_close(&numbers(&found.log_ratio_margin()), &noised.h(shift), 1e-13, "h");
    }
    Ok(())
}

/// σ(−λ_t + b): noisy steps count fully, clean ones less, half at λ_t = b.
#[test]
fn the_weight_falls_in_the_log_snr() -> Result<()> {
    let log_snr = Tensor::from_slice(&[-40.0, -1.0, 2.0, 3.0, 40.0]);
    let found = numbers(&Denoising::new(2.0)?.weight(&log_snr));
    all_close(&found, &[1.0, oracle::sigmoid(3.0), 0.5, oracle::sigmoid(-1.0), (-38_f64).exp()], 1e-14, "weight");
    Ok(())
}

/// CaPO's loss written out, and every other loss of the same h.
#[test]
fn any_loss_reads_the_denoising_ratio() -> Result<()> {
    let noised = Noised::random(10);
    let (chosen, rejected) = ([0.9, 0.6, 0.7], [0.2, 0.3, 0.1]);
    let batch = PreferenceBatch::new(logps(Denoising::new(1.0)?, &noised.leaves())?)
        .with_rewards(scores(&chosen, &rejected)?)?;
    let (h, beta) = (noised.h(1.0), 3.0);
    let each =
        |loss: fn(f64, f64) -> f64| -> Vec<f64> { (0..BATCH).map(|i| loss(chosen[i] - rejected[i], h[i])).collect() };
    let capo = each(|margin, h| (margin - 3.0 * h).powi(2));
    all_close(&numbers(&RewardDistillation::new(beta)?.per_pair(&batch)?), &capo, 1e-13, "CaPO");
    all_close(&numbers(&Dpo::new(beta)?.per_pair(&batch)?), &each(|_, h| (1.0 + (-3.0 * h).exp()).ln()), 1e-13, "DPO");
    all_close(&numbers(&Ipo::new(beta)?.per_pair(&batch)?), &each(|_, h| (h - 1.0 / 6.0).powi(2)), 1e-13, "IPO");
    let ensemble = PessimisticDistillation::new(beta)?;
    for minimum in [Minimum::Batch, Minimum::Pair, Minimum::Hull] {
        all_close(&numbers(&ensemble.with_minimum(minimum).per_pair(&batch)?), &capo, 1e-12, format!("{minimum:?}"));
    }
    Ok(())
}

#[test]
fn at_the_reference_the_loss_is_the_squared_gap() -> Result<()> {
    let calibrated = Calibration::new(1.0)?.average(random(2, BATCH, 6, 11).view())?;
    let pairs: Vec<SamplePair> = extremes(calibrated.view())?.into_iter().flatten().collect();
    let side = |index: fn(&SamplePair) -> usize| -> Vec<f64> {
        pairs.iter().enumerate().map(|(prompt, pair)| calibrated[[prompt, index(pair)]]).collect()
    };
    let (chosen, rejected) = (side(|p| p.chosen), side(|p| p.rejected));
    let found = logps(Denoising::new(0.5)?, &Noised::random(12).at_reference().leaves())?;
    assert_eq!(numbers(&found.log_ratio_margin()), [0.0; BATCH]);
    let batch = PreferenceBatch::new(found).with_rewards(scores(&chosen, &rejected)?)?;
    let gaps: Vec<f64> = chosen.iter().zip(&rejected).map(|(c, r)| (c - r).powi(2)).collect();
    assert_eq!(numbers(&RewardDistillation::new(7.0)?.per_pair(&batch)?), gaps);
    Ok(())
}

/// ∂(Σ h)/∂ε_θ(x⁺) = 2w(ε − ε_θ)/D and its opposite at x⁻; nothing arrives at the reference, the noise or λ_t.
#[test]
fn gradients_reach_the_policy_alone() -> Result<()> {
    let noised = Noised::random(13);
    let leaves = noised.leaves();
    logps(Denoising::new(0.3)?, &leaves)?.log_ratio_margin().sum(Kind::Double).backward();
    for (which, sign) in [(1, 1.0), (2, -1.0)] {
        let slope =
            |j: usize| sign * noised.weight(0.3, j / 8) * 2.0 * (noised.tensors[0][j] - noised.tensors[which][j]) / 8.0;
        let expected: Vec<f64> = (0..BATCH * 8).map(slope).collect();
        all_close(&numbers(&leaves.0[which].grad()), &expected, 1e-13, format!("predictions {which}"));
    }
    for (name, leaf) in [("noise", &leaves.0[0]), ("ref⁺", &leaves.0[3]), ("ref⁻", &leaves.0[4]), ("λ", &leaves.1)]
    {
        assert!(!leaf.grad().defined(), "a gradient arrived at {name}");
    }
    Ok(())
}

/// A step down any of the losses makes the chosen sample easier to denoise and the rejected one harder: catches a turned sign.
#[test]
fn a_step_denoises_the_chosen_sample_better() -> Result<()> {
    let losses: [Box<dyn PreferenceLoss>; 3] =
        [Box::new(RewardDistillation::new(1.0)?), Box::new(Dpo::new(1.0)?), Box::new(Ipo::new(1.0)?)];
    for loss in losses {
        let noised = Noised::random(14).at_reference();
        let leaves = noised.leaves();
        let found = logps(Denoising::new(0.0)?, &leaves)?;
        let batch = PreferenceBatch::new(found).with_rewards(scores(&[1.0; BATCH], &[0.0; BATCH])?)?;
        loss.mean(&batch)?.backward();
        let error = |which: usize, step: f64| {
            let _no_grad = prefopt::tch::no_grad_guard();
            let moved = &leaves.0[which] - leaves.0[which].grad() * step;
            (&leaves.0[0] - moved).square().sum(Kind::Double).double_value(&[])
        };
        assert!(error(1, 1e-3) < error(1, 0.0), "{loss:?}: chosen");
        assert!(error(2, 1e-3) > error(2, 0.0), "{loss:?}: rejected");
    }
    Ok(())
}

// Refusals

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn rewards_that_cannot_be_calibrated() -> Result<()> {
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(Calibration::new(temperature), &format!("temperature must be positive and finite, got {temperature}"));
    }
    let one = Calibration::new(1.0)?;
    let alone = "samples must be at least 2 a prompt (a reward is calibrated against the others), got 1";
    refused(one.calibrate(array![[1.0], [2.0]].view()), alone);
    refused(one.average(Array3::zeros((2, 3, 1)).view()), alone);
    refused(one.calibrate(array![[1.0, 2.0], [f64::NAN, 0.0]].view()), "rewards[2] must be finite, got NaN");
    let infinite = array![[[1.0, 2.0]], [[0.0, f64::INFINITY]]];
    refused(one.average(infinite.view()), "rewards[3] must be finite, got inf");
    refused(weighted_sum(infinite.view(), &[1.0, 1.0]), "rewards[3] must be finite, got inf");
    refused(
        one.calibrate(Array2::zeros((0, 4)).view()),
        "rewards is empty: shape [prompts, samples] needs at least one element",
    );
    refused(
        one.average(Array3::zeros((0, 2, 4)).view()),
        "rewards is empty: shape [models, prompts, samples] needs at least one element",
    );
    Ok(())
}

#[test]
fn weights_that_do_not_fit() -> Result<()> {
    let (rewards, one) = (random(3, 2, 4, 15), Calibration::new(1.0)?);
    let short = "weights must have shape [models] with models = 3, got models = 2";
    refused(one.weighted_average(rewards.view(), &[1.0, 1.0]), short);
    refused(weighted_sum(rewards.view(), &[1.0, 1.0]), short);
    let negative = "weights[1] must be at least 0 and finite, got -1";
    refused(one.weighted_average(rewards.view(), &[1.0, -1.0, 1.0]), negative);
    refused(one.weighted_average(rewards.view(), &[0.0; 3]), "sum of weights must be positive, got 0");
    refused(weighted_sum(rewards.view(), &[1.0, f64::NAN, 1.0]), "weights[1] must be finite, got NaN");
    Ok(())
}

#[test]
fn points_that_have_no_order() {
    let nan = array![[1.0, 2.0], [0.0, f64::NAN]];
    let none = Array2::<f64>::zeros((0, 2));
    let (said, empty) =
        ("points[3] must be finite, got NaN", "points is empty: shape [points, rewards] needs at least one element");
    refused(non_dominated_ranks(nan.view()), said);
    refused(upper_front(nan.view()), said);
    refused(lower_front(nan.view()), said);
    refused(Frontier::new(nan.view()), said);
    refused(non_dominated_ranks(none.view()), empty);
    refused(upper_front(none.view()), empty);
    refused(Frontier::new(none.view()), empty);
    refused(extremes(nan.view()), "rewards[3] must be finite, got NaN");
    refused(extremes(none.view()), "rewards is empty: shape [prompts, samples] needs at least one element");
    let three = array![[[1.0, 2.0]], [[f64::NAN, 0.0]]];
    refused(Frontier::of_prompts(three.view()), "rewards[2] must be finite, got NaN");
}

#[test]
fn predictions_that_do_not_fit() -> Result<()> {
    refused(Denoising::new(f64::NAN), "shift must be finite, got NaN");
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    let with = |noise: Tensor, log_snr: Tensor, rejected: Tensor| {
        let same = || noise.shallow_clone();
        let predictions = NoisePredictions { chosen: same(), rejected, ref_chosen: same(), ref_rejected: same() };
        Denoising::new(0.0)?.logps(&noise, &log_snr, &predictions)
    };
    let (full, batch) = (|| zeros(&[3, 2, 2]), || zeros(&[3]));
    refused(with(zeros(&[3]), batch(), zeros(&[3])), "noise must have shape [batch, ..dims], got [3]");
    refused(
        with(zeros(&[0, 2]), zeros(&[0]), zeros(&[0, 2])),
        "noise is empty: shape [batch, ..dims] needs at least one element",
    );
    // Any of these would broadcast in silence.
    for shape in [&[3_i64, 2] as &[i64], &[1, 2, 2], &[3, 2, 1], &[3, 4]] {
        let said = format!("predictions.rejected must have shape [batch, ..dims] of the noise, got {shape:?}");
        refused(with(full(), batch(), zeros(shape)), &said);
    }
    refused(with(full(), zeros(&[3, 1]), full()), "log_snr must have shape [batch], got [3, 1]");
    refused(with(full(), zeros(&[2]), full()), "log_snr must have shape [batch] with batch = 3, got batch = 2");
    refused(
        with(full(), batch().to_kind(Kind::Float), full()),
        "log_snr must be Double like the tensors it goes with, got Float",
    );
    refused(
        with(full(), batch(), full().to_kind(Kind::Float)),
        "predictions.rejected must be Double like the tensors it goes with, got Float",
    );
    refused(
        with(full().to_kind(Kind::Half), batch().to_kind(Kind::Half), full().to_kind(Kind::Half)),
        "noise must be Float or Double (losses lose their digits in half precision), got Half",
    );
    Ok(())
}

#[test]
fn configurations_survive_a_file() -> Result<()> {
    let calibration = Calibration::new(0.5)?.with_unit(TemperatureUnit::Deviation);
    let text = r#"{"temperature":0.5,"unit":"deviation"}"#;
    assert_eq!(serde_json::to_string(&calibration).expect("plain data"), text);
    assert_eq!(serde_json::from_str::<Calibration>(text).expect("its own text"), calibration);
    let left_out = serde_json::from_str::<Calibration>(r#"{"temperature": 2}"#).expect("valid");
    assert_eq!(left_out, Calibration::new(2.0)?);
    let denoising = Denoising::new(-1.5)?.with_dimensions(Dimensions::Sum);
    let text = r#"{"shift":-1.5,"dimensions":"sum"}"#;
    assert_eq!(serde_json::to_string(&denoising).expect("plain data"), text);
    assert_eq!(serde_json::from_str::<Denoising>(text).expect("its own text"), denoising);
    assert_eq!(serde_json::from_str::<Denoising>(r#"{"shift": 0}"#).expect("valid"), Denoising::new(0.0)?);
    let cold = serde_json::from_str::<Calibration>(r#"{"temperature": 0}"#).expect_err("must be refused").to_string();
    assert!(cold.starts_with("temperature must be positive and finite, got 0"), "{cold}");
    let unknown = serde_json::from_str::<Denoising>(r#"{"shift": 0, "bias": 1}"#).expect_err("must be refused");
    assert!(unknown.to_string().starts_with("unknown field `bias`"), "{unknown}");
    Ok(())
}
