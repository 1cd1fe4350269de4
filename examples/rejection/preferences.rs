//! Preference labels of which some are flipped, and judges that were not trained on what they judge.

use anyhow::Result;
use ndarray::Array1;
use prefopt::{
    RewardScores,
    rejection::{Abstention, Calibration, LabelRisk, mean_margins},
    reward::{BradleyTerry, RewardBatch, RewardObjective},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::Tensor;

use crate::{
    COVERAGE,
    support::network::{Mlp, descend, indices, matrix, normal},
};

pub const CANDIDATES: usize = 8;
/// Features of a prompt, and of a response.
const FEATURES: usize = 3;
/// Features of a prompt with a response.
pub const WIDTH: i64 = 2 * FEATURES as i64;
/// Share of labels that are flipped.
pub const FLIPS: f64 = 0.25;
/// Nats of Bradley–Terry preference for one standard deviation of gold.
const SHARPNESS: f64 = 3.0;
/// Units of the gold reward.
const UNITS: usize = 8;
/// Reward models of each half.
const MEMBERS: u64 = 2;
const LEARNING_RATE: f64 = 1e-2;

pub struct Size {
    prompts: usize,
    test_prompts: usize,
    pairs_per_prompt: usize,
    pub policy_steps: usize,
}

pub const FULL: Size = Size { prompts: 150, test_prompts: 300, pairs_per_prompt: 3, policy_steps: 250 };
pub const QUICK: Size = Size { prompts: 24, test_prompts: 24, pairs_per_prompt: 3, policy_steps: 10 };

/// Rows of the features, of one prompt.
pub struct Pair {
    pub chosen: usize,
    pub rejected: usize,
    /// The prompt is of this half of the data.
    half: usize,
    /// Whether gold agrees with the label.
    right: bool,
}

/// One world with its labels, judged. On the host, so that policies can share it.
pub struct Setting {
    pub seed: u64,
    pub reward_steps: usize,
    /// `[prompts · CANDIDATES, WIDTH]`.
    pub features: Vec<f64>,
    pub test_features: Vec<f64>,
    /// `[prompts · CANDIDATES]`, in standard deviations, less the mean of each prompt.
    pub test_gold: Vec<f64>,
    pub pairs: Vec<Pair>,
    /// Δr/T of each pair under the judges that were trained on the other half, nats.
    pub margins: Array1<f64>,
    /// Of the judges of each half.
    pub temperatures: [f64; 2],
    /// Mean −log σ(Δr/T).
    pub held_out_loss: f64,
}

impl Setting {
    pub fn new(seed: u64, reward_steps: usize, size: &Size) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let gold = Gold::new(&mut rng);
        let [features, test_features] =
            [size.prompts, size.test_prompts].map(|prompts| prompts_with(prompts, &mut rng));
        let raw = gold.centred(&features);
        let deviation = (raw.iter().map(|g| g * g).sum::<f64>() / raw.len() as f64).sqrt();
        let [of_pairs, test_gold] = [raw, gold.centred(&test_features)]
            .map(|values| values.iter().map(|g| g / deviation).collect::<Vec<f64>>());
        let pairs = label(&of_pairs, size.pairs_per_prompt, &mut rng);
        let mut setting = Self {
            seed,
            reward_steps,
            features,
            test_features,
            test_gold,
            margins: Array1::zeros(pairs.len()),
            pairs,
            temperatures: [1.0; 2],
            held_out_loss: 0.0,
        };
        setting.judge()?;
        Ok(setting)
    }

    /// Cross-fitting: the judges of each half score the pairs of the other, and their one temperature is fitted there
    /// too.
    fn judge(&mut self) -> Result<()> {
        let features = matrix(&self.features, WIDTH);
        for half in 0..2 {
            let of =
                |wanted: usize| (0..self.pairs.len()).filter(|&i| self.pairs[i].half == wanted).collect::<Vec<_>>();
            let (own, others) = (of(half), of(1 - half));
            let seeds = (0..MEMBERS).map(|member| (self.seed << 8) + 2 * member + half as u64);
            let judges = seeds.map(|seed| self.reward_model(&features, &own, seed)).collect::<Result<Vec<_>>>()?;
            let margins = self.scored(&features, &judges, &others)?;
            let calibration = Calibration::of_margins(margins.view())?;
            let losses = calibration.label_risks(margins.view(), LabelRisk::GivenLabel)?;
            self.temperatures[half] = calibration.temperature();
            self.held_out_loss += losses.sum() / self.pairs.len() as f64;
            for (&pair, margin) in others.iter().zip(&margins) {
                self.margins[pair] = margin / calibration.temperature();
            }
        }
        Ok(())
    }

    fn reward_model(&self, features: &Tensor, pairs: &[usize], seed: u64) -> Result<Mlp> {
        let (network, objective) = (Mlp::new(WIDTH, 32, 1, seed)?, BradleyTerry::new(0.0)?);
        let [chosen, rejected] = self.sides(pairs).map(|rows| features.index_select(0, &rows));
        descend(network.parameters(), self.reward_steps, LEARNING_RATE, |_| {
            let [chosen, rejected] = [&chosen, &rejected].map(|x| network.forward(x).squeeze_dim(1));
            Ok(objective.mean(&RewardBatch::new(RewardScores::single(&chosen, &rejected)?))?)
        })?;
        Ok(network)
    }

    /// Δr of these pairs, averaged over the judges.
    fn scored(&self, features: &Tensor, judges: &[Mlp], pairs: &[usize]) -> Result<Array1<f64>> {
        let _no_grad = tch::no_grad_guard();
        let [chosen, rejected] = self.sides(pairs).map(|rows| {
            let x = features.index_select(0, &rows);
            Tensor::stack(&judges.iter().map(|judge| judge.forward(&x).squeeze_dim(1)).collect::<Vec<_>>(), 0)
        });
        Ok(mean_margins(&RewardScores::new(chosen, rejected)?)?)
    }

    /// Rows of the chosen and the rejected responses of some pairs.
    pub fn sides(&self, pairs: &[usize]) -> [Tensor; 2] {
        let rows = |side: fn(&Pair) -> usize| indices(&pairs.iter().map(|&i| side(&self.pairs[i])).collect::<Vec<_>>());
        [rows(|pair| pair.chosen), rows(|pair| pair.rejected)]
    }

    /// The risk of each label.
    pub fn risks(&self, risk: LabelRisk) -> prefopt::Result<Array1<f64>> {
        Calibration::new(1.0)?.label_risks(self.margins.view(), risk)
    }

    pub fn labels(&self) -> Result<Labels> {
        let right = |kept: &[usize]| kept.iter().filter(|&&i| self.pairs[i].right).count() as f64 / kept.len() as f64;
        let kept = |risk| -> prefopt::Result<Vec<usize>> { Abstention::keep(COVERAGE)?.kept(self.risks(risk)?.view()) };
        Ok(Labels {
            seed: self.seed,
            all: right(&(0..self.pairs.len()).collect::<Vec<_>>()),
            given: right(&kept(LabelRisk::GivenLabel)?),
            entropy: right(&kept(LabelRisk::Entropy)?),
            temperatures: self.temperatures,
        })
    }
}

/// Share of labels with which gold agrees: of all, and of the 80 % that are kept.
#[derive(Debug, Serialize)]
pub struct Labels {
    pub seed: u64,
    pub all: f64,
    pub given: f64,
    pub entropy: f64,
    pub temperatures: [f64; 2],
}

/// Σ_u w_u tanh(a_u · z), z the features of a prompt with a response.
struct Gold {
    weights: Vec<f64>,
    readout: Vec<f64>,
}

impl Gold {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let scale = 1.5 / (WIDTH as f64).sqrt();
        let weights = normal(rng, UNITS * WIDTH as usize).into_iter().map(|w| w * scale).collect();
        Self { weights, readout: normal(rng, UNITS) }
    }

    fn of(&self, row: &[f64]) -> f64 {
        let units = self.weights.chunks_exact(row.len());
        let unit = |a: &[f64]| a.iter().zip(row).map(|(a, z)| a * z).sum::<f64>().tanh();
        units.zip(&self.readout).map(|(a, w)| w * unit(a)).sum()
    }

    /// Less the mean of each prompt.
    fn centred(&self, features: &[f64]) -> Vec<f64> {
        let values: Vec<f64> = features.chunks_exact(WIDTH as usize).map(|row| self.of(row)).collect();
        let centre = |prompt: &[f64]| {
            let mean = prompt.iter().sum::<f64>() / prompt.len() as f64;
            prompt.iter().map(|v| v - mean).collect::<Vec<_>>()
        };
        values.chunks_exact(CANDIDATES).flat_map(centre).collect()
    }
}

fn prompts_with(prompts: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut features = Vec::with_capacity(prompts * CANDIDATES * WIDTH as usize);
    for _ in 0..prompts {
        let prompt = normal(rng, FEATURES);
        for _ in 0..CANDIDATES {
            features.extend_from_slice(&prompt);
            features.extend(normal(rng, FEATURES));
        }
    }
    features
}

/// Pairs of different candidates; Bradley–Terry labels on gold, then flips.
fn label(gold: &[f64], pairs_per_prompt: usize, rng: &mut ChaCha8Rng) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for prompt in 0..gold.len() / CANDIDATES {
        for _ in 0..pairs_per_prompt {
            let first = rng.random_range(0..CANDIDATES);
            let second = (first + rng.random_range(1..CANDIDATES)) % CANDIDATES;
            let [first, second] = [first, second].map(|candidate| prompt * CANDIDATES + candidate);
            let preference = 1.0 / (1.0 + (-SHARPNESS * (gold[first] - gold[second])).exp());
            let (preferred, flipped) = (rng.random_range(0.0..1.0) < preference, rng.random_range(0.0..1.0) < FLIPS);
            let (chosen, rejected) = if preferred != flipped { (first, second) } else { (second, first) };
            pairs.push(Pair { chosen, rejected, half: prompt % 2, right: gold[chosen] > gold[rejected] });
        }
    }
    pairs
}
