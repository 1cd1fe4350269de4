//! Tabular softmax policies where the optimum is known in closed form.

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseTable, Result, RewardScores,
    loss::{Dpo, ForwardKl, ProbabilityMatching, RewardDistillation},
    tch::{Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, PolicyTrainer, Trainer, Warmup},
};

use crate::{all_close, close, number, numbers, oracle};

/// One prompt, its responses numbered from 0, and pairs of them.
#[derive(Debug, Clone)]
pub struct Toy {
    /// log π_ref.
    pub reference: Vec<f64>,
    /// `[members][responses]`.
    pub rewards: Vec<Vec<f64>>,
    pub pairs: Vec<(i64, i64)>,
}

impl Toy {
    pub fn new(reference: &[f64], rewards: &[&[f64]], pairs: Vec<(i64, i64)>) -> Self {
        let reference = oracle::log_softmax(&reference.iter().map(|p| p.ln()).collect::<Vec<_>>());
        Self { reference, rewards: rewards.iter().map(|r| r.to_vec()).collect(), pairs }
    }

    pub fn all_pairs(responses: i64) -> Vec<(i64, i64)> {
        (0..responses).flat_map(|a| (a + 1..responses).map(move |b| (a, b))).collect()
    }

    /// The batch of a policy's logits, with the gradient's path to them.
    pub fn batch(&self, logits: &Tensor) -> Result<PreferenceBatch> {
        let (chosen, rejected): (Vec<i64>, Vec<i64>) = self.pairs.iter().copied().unzip();
        let [chosen, rejected] = [chosen, rejected].map(|index| Tensor::from_slice(&index));
        let (policy, reference) = (logits.log_softmax(-1, Kind::Double), Tensor::from_slice(&self.reference));
        let rewards = Tensor::from_slice2(&self.rewards);
        let of = |row: &Tensor, index: &Tensor| row.index_select(-1, index);
        let logps = PairLogps::new(
            of(&policy, &chosen),
            of(&policy, &rejected),
            of(&reference, &chosen),
            of(&reference, &rejected),
        )?;
        let shape = [self.pairs.len() as i64, self.reference.len() as i64];
        PreferenceBatch::new(logps)
            .with_rewards(RewardScores::new(of(&rewards, &chosen), of(&rewards, &rejected))?)?
            .with_all_responses(ResponseTable::new(policy.expand(shape, false), reference.expand(shape, false))?)
    }

    /// log π after gradient descent from the reference, with momentum.
    pub fn descend(&self, loss: &impl PreferenceLoss, rate: f64, momentum: f64, steps: usize) -> Result<Vec<f64>> {
        let mut logits = Tensor::from_slice(&self.reference).set_requires_grad(true);
        let mut velocity = logits.detach().zeros_like();
        for _ in 0..steps {
            logits.zero_grad();
            loss.mean(&self.batch(&logits)?)?.backward();
            velocity = velocity * momentum + logits.grad();
            let moved = logits.detach() - &velocity * rate;
            logits = moved.set_requires_grad(true);
        }
        Ok(numbers(&logits.log_softmax(-1, Kind::Double)))
    }
}

const BETA: f64 = 0.5;
const REFERENCE: [f64; 5] = [0.1, 0.3, 0.05, 0.35, 0.2];
const REWARDS: [f64; 5] = [0.7, -0.4, 1.2, 0.1, -0.9];

/// L_distill = 0 ⇔ π ∝ π_ref e^{r/β} where the pairs connect all responses: with all pairs, along a path, and with the labels at
/// random, since they enter only through r.
#[test]
fn distillation_ends_at_the_gibbs_policy() -> Result<()> {
    let path = vec![(0, 1), (2, 1), (2, 3), (4, 3)];
    for pairs in [Toy::all_pairs(5), path] {
        let toy = Toy::new(&REFERENCE, &[&REWARDS], pairs);
        let found = toy.descend(&RewardDistillation::new(BETA)?, 1.0, 0.8, 600)?;
        all_close(&found, &oracle::gibbs(&toy.reference, &REWARDS, BETA), 1e-5, "log π");
    }
    Ok(())
}

#[test]
fn so_does_matching_of_probabilities() -> Result<()> {
    let toy = Toy::new(&REFERENCE, &[&REWARDS], Toy::all_pairs(5));
    let found = toy.descend(&ProbabilityMatching::to_rewards(BETA)?, 3.0, 0.8, 800)?;
    all_close(&found, &oracle::gibbs(&toy.reference, &REWARDS, BETA), 1e-5, "log π");
    Ok(())
}

/// The same through the crate's own trainer and optimiser.
#[test]
fn the_trainer_gets_there_too() -> Result<()> {
    let toy = Toy::new(&REFERENCE, &[&REWARDS], Toy::all_pairs(5));
    let logits = Tensor::from_slice(&toy.reference).set_requires_grad(true);
    let (leaf, known) = (logits.shallow_clone(), toy.clone());
    let optimizer = AdamW::new(vec![logits.shallow_clone()], AdamWConfig::default())?;
    let descent = Descent::new(optimizer, 0.03)?.with_schedule(Warmup::new(10).then_cosine(1500)?);
    let mut trainer =
        PolicyTrainer::new(RewardDistillation::new(BETA)?, move |(): &()| toy.batch(&leaf), descent, BETA)?;
    let last = trainer.fit(std::iter::repeat_n((), 1500), &mut [])?.expect("took steps");
    assert!(last.loss < 1e-9, "{last:?}");
    let found = numbers(&logits.log_softmax(-1, Kind::Double));
    all_close(&found, &oracle::gibbs(&known.reference, &REWARDS, BETA), 1e-5, "log π");
    Ok(())
}

/// Pairs that leave two islands fix the odds inside each and say nothing between them.
#[test]
fn unconnected_responses_keep_their_shares() -> Result<()> {
    // The islands' mean rewards differ, or descent from the reference would meet the odds between them by chance.
    let rewards = [1.7, 0.6, 1.2, 0.1, -0.9];
    let toy = Toy::new(&REFERENCE, &[&rewards], vec![(0, 1), (2, 3), (3, 4)]);
    let found = toy.descend(&RewardDistillation::new(BETA)?, 1.0, 0.8, 600)?;
    let gibbs = oracle::gibbs(&toy.reference, &rewards, BETA);
    for (a, b) in [(0, 1), (2, 3), (2, 4)] {
        close(found[a] - found[b], gibbs[a] - gibbs[b], 1e-5, 1.0, "odds inside");
    }
    assert!((found[0] - found[2] - (gibbs[0] - gibbs[2])).abs() > 0.1);
    Ok(())
}

/// DPO falls while both responses of the pair vanish; the forward divergence is the only one to object.
#[test]
fn dpo_degenerates() -> Result<()> {
    let toy = Toy::new(&[1.0, 1.0, 1.0], &[&[0.0; 3]], vec![(0, 1)]);
    for (epsilon, loss, divergence) in [(1e-2_f64, 0.335, 5.0), (1e-4, 0.147, 11.2), (1e-6, 0.061, 17.3)] {
        let masses = [epsilon, epsilon.powi(3), 1.0 - epsilon - epsilon.powi(3)];
        let batch = toy.batch(&Tensor::from_slice(&masses.map(f64::ln)))?;
        let (found, kl) = (number(&Dpo::new(0.1)?.mean(&batch)?), number(&ForwardKl::Exact.mean(&batch)?));
        assert!((found - loss).abs() < 5e-4, "loss {found} at {epsilon}, {loss} in methods.md");
        assert!((kl - divergence).abs() < 5e-2, "divergence {kl} at {epsilon}, {divergence} in methods.md");
    }
    Ok(())
}

/// π_w = ref_w + s/γ, π_l = ref_l − s/γ, s = βσ(−βh); responses that no pair contains keep exactly their mass.
#[test]
fn the_anchored_dpo_has_a_finite_minimiser() -> Result<()> {
    for (beta, gamma) in [(0.1, 0.1), (0.5, 0.6), (0.2, 1.0)] {
        let toy = Toy::new(&[0.2, 0.5, 0.3], &[&[0.0; 3]], vec![(0, 1)]);
        let loss = Dpo::new(beta)?.plus(gamma, ForwardKl::Exact);
        let found = toy.descend(&loss, 2.0 / gamma, 0.7, 800)?;
        let h = (found[0] - toy.reference[0]) - (found[1] - toy.reference[1]);
        let s = beta * oracle::sigmoid(-beta * h);
        let masses: Vec<f64> = found.iter().map(|l| l.exp()).collect();
        all_close(&masses, &[0.2 + s / gamma, 0.5 - s / gamma, 0.3], 1e-9, format_args!("β {beta}, γ {gamma}"));
        assert!(s / gamma > 0.01, "the pair moved nothing");
    }
    Ok(())
}

/// With the pair's own responses as the anchor the unseen mass is not held: it falls on, where the exact sum keeps it.
#[test]
fn own_responses_do_not_hold_the_unseen_mass() -> Result<()> {
    let toy = Toy::new(&[0.2, 0.5, 0.3], &[&[0.0; 3]], vec![(0, 1)]);
    let found = toy.descend(&Dpo::new(0.5)?.plus(1.0, ForwardKl::OwnResponses), 1.0, 0.9, 1000)?;
    assert!(found[2].exp() < 1e-3, "unseen mass {}", found[2].exp());
    Ok(())
}
