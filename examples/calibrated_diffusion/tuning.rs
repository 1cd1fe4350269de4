//! Tunes a copy of a pretrained model on pairs of its own samples, by any loss of the library.

use anyhow::{Result, ensure};
use ndarray::Array3;
use prefopt::{
    PreferenceBatch, RewardScores,
    diffusion::{Denoising, NoisePredictions, SamplePair},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::{
    methods::Method,
    pool::{Pool, Pretrained},
    support::{
        diffusion::{Denoiser, gaussian, one_hot},
        network::{descend, matrix},
    },
};

/// b of the weight σ(−λ_t + b).
const SHIFT: f64 = 2.0;

/// Which sample of a pair.
const SIDES: [fn(&SamplePair) -> usize; 2] = [|pair| pair.chosen, |pair| pair.rejected];

/// The budget, the same for every method.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    pub steps: usize,
    /// Pairs in a step.
    pub pairs: usize,
    pub rate: f64,
}

/// Every method of a seed draws its prompts, steps and noise from the same random numbers.
pub fn tune(
    pretrained: &Pretrained,
    pool: &Pool,
    method: Method,
    beta: f64,
    tuning: Tuning,
    seed: u64,
) -> Result<Denoiser> {
    let (policy, reference) = (pretrained.copy()?, pretrained.copy()?);
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(2 << 32));
    // Of its own, so that drawing pairs does not change the noise.
    let mut pairing = ChaCha8Rng::seed_from_u64(seed.wrapping_add(3 << 32));
    let (pairs, scores) = (method.pairs(pool.rewards.view())?, method.scores(pool.rewards.view())?);
    let usable: Vec<usize> = (0..pool.conditions.len()).filter(|&p| pairs.of(p, &mut pairing).is_some()).collect();
    ensure!(!usable.is_empty(), "{}: no prompt has a pair", method.name());
    let (loss, denoising) = (method.loss(beta)?, Denoising::new(SHIFT)?);
    descend(policy.parameters(), tuning.steps, tuning.rate, |_| {
        let drawn: Vec<(usize, SamplePair)> = (0..tuning.pairs)
            .filter_map(|_| {
                let prompt = usable[rng.random_range(0..usable.len())];
                Some((prompt, pairs.of(prompt, &mut pairing)?))
            })
            .collect();
        let batch = batch(&policy, &reference, denoising, pool, &scores, &drawn, &mut rng)?;
        Ok(loss.mean(&batch)?)
    })?;
    Ok(policy)
}

/// One t and one ε for both samples of a pair and for both networks.
fn batch(
    policy: &Denoiser,
    reference: &Denoiser,
    denoising: Denoising,
    pool: &Pool,
    scores: &Array3<f64>,
    drawn: &[(usize, SamplePair)],
    rng: &mut ChaCha8Rng,
) -> Result<PreferenceBatch> {
    let (n, schedule) = (drawn.len(), policy.schedule());
    let (t, noise) = (schedule.draw(n, rng), gaussian(n, pool.dims, rng));
    let twice = |t: &[usize]| [t, t].concat();
    let conditions: Vec<usize> = drawn.iter().map(|(prompt, _)| pool.conditions[*prompt]).collect();
    let condition = one_hot(&twice(&conditions), pool.kinds);
    let values: Vec<f64> = SIDES
        .iter()
        .flat_map(|side| drawn.iter().flat_map(move |(prompt, pair)| pool.sample(*prompt, side(pair))))
        .copied()
        .collect();
    let clean = matrix(&values, pool.dims as i64);
    let x = schedule.noised(&clean, &Tensor::cat(&[&noise, &noise], 0), &twice(&t));

    let predicted = policy.noise(&x, &twice(&t), &condition);
    let expected = {
        let _no_grad = tch::no_grad_guard();
        reference.noise(&x, &twice(&t), &condition)
    };
    let half = |of: &Tensor, side: i64| of.narrow(0, side * n as i64, n as i64);
    let predictions = NoisePredictions {
        chosen: half(&predicted, 0),
        rejected: half(&predicted, 1),
        ref_chosen: half(&expected, 0),
        ref_rejected: half(&expected, 1),
    };
    let logps = denoising.logps(&noise, &schedule.log_snrs(&t), &predictions)?;
    let of_side = |side: fn(&SamplePair) -> usize| {
        let members = scores.outer_iter();
        let flat = members.flat_map(|member| drawn.iter().map(move |(prompt, pair)| member[[*prompt, side(pair)]]));
        matrix(&flat.collect::<Vec<_>>(), n as i64)
    };
    let scores = RewardScores::new(of_side(SIDES[0]), of_side(SIDES[1]))?;
    Ok(PreferenceBatch::new(logps).with_rewards(scores)?)
}
