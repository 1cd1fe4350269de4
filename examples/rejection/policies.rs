//! Policies tuned on all labels, on those that were kept, and by the controls.

use anyhow::Result;
use ndarray::Array1;
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, RewardScores,
    loss::{Dpo, RewardDistillation},
    rejection::{Abstention, DensityRatio, LabelRisk, weight_column},
};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::{
    COVERAGE,
    preferences::{CANDIDATES, FLIPS, Setting, WIDTH},
    support::network::{Mlp, descend, matrix, vector},
};

/// One grid for every method.
pub const BETAS: [f64; 4] = [0.03, 0.1, 0.3, 1.0];
const LEARNING_RATE: f64 = 5e-3;
/// λ of the weights: σ(Δr/T), up to scale.
const LAMBDA: f64 = 1.0;

/// What becomes of the labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Method {
    All,
    DropByLabel,
    DropByEntropy,
    DownWeight,
    FlipRate,
    Distilled,
}

impl Method {
    pub const ALL: [Self; 6] =
        [Self::All, Self::DropByLabel, Self::DropByEntropy, Self::DownWeight, Self::FlipRate, Self::Distilled];

    pub fn name(self) -> &'static str {
        match self {
            Self::All => "DPO, all labels",
            Self::DropByLabel => "DPO, drop by label loss",
            Self::DropByEntropy => "DPO, drop by entropy",
            Self::DownWeight => "DPO, down-weight (KL)",
            Self::FlipRate => "cDPO, true flip rate",
            Self::Distilled => "d-DPO of the judges",
        }
    }

    fn loss(self, beta: f64) -> prefopt::Result<Box<dyn PreferenceLoss>> {
        Ok(match self {
            Self::FlipRate => Box::new(Dpo::new(beta)?.with_flip_rate(FLIPS)?),
            Self::Distilled => Box::new(RewardDistillation::new(beta)?),
            _ => Box::new(Dpo::new(beta)?),
        })
    }

    /// The pairs that the loss sees, and their weights.
    fn view(self, setting: &Setting) -> prefopt::Result<(Vec<usize>, Option<Array1<f64>>)> {
        let all = || (0..setting.pairs.len()).collect::<Vec<_>>();
        let kept =
            |risk| -> prefopt::Result<Vec<usize>> { Abstention::keep(COVERAGE)?.kept(setting.risks(risk)?.view()) };
        Ok(match self {
            Self::All | Self::FlipRate | Self::Distilled => (all(), None),
            Self::DropByLabel => (kept(LabelRisk::GivenLabel)?, None),
            Self::DropByEntropy => (kept(LabelRisk::Entropy)?, None),
            Self::DownWeight => {
                let abstention = Abstention::down_weight(DensityRatio::kl(LAMBDA)?);
                (all(), Some(abstention.weights(setting.risks(LabelRisk::GivenLabel)?.view())?))
            }
        })
    }
}

/// What came out, on test prompts.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub method: Method,
    pub beta: f64,
    pub seed: u64,
    /// E_π gold less the uniform reference's, in standard deviations of gold.
    pub gold: f64,
    /// KL(π ‖ π_ref), nats.
    pub kl: f64,
}

/// Tunes one policy from the uniform reference and judges it.
pub fn run(setting: &Setting, method: Method, beta: f64, steps: usize) -> Result<Outcome> {
    let (loss, (pairs, weights)) = (method.loss(beta)?, method.view(setting)?);
    let policy = Mlp::new(WIDTH, 32, 1, setting.seed)?;
    let features = matrix(&setting.features, WIDTH);
    let [chosen, rejected] = setting.sides(&pairs);
    let uniform = -(CANDIDATES as f64).ln();
    let reference = Tensor::full([pairs.len() as i64], uniform, (Kind::Float, Device::Cpu));
    let weights = weights.map(|weights| weight_column(weights.view(), &reference));
    let margins = vector(&pairs.iter().map(|&pair| setting.margins[pair]).collect::<Vec<_>>());
    descend(policy.parameters(), steps, LEARNING_RATE, |_| {
        let logps = log_policy(&policy, &features).flatten(0, -1);
        let [chosen, rejected] = [&chosen, &rejected].map(|rows| logps.index_select(0, rows));
        let logps = PairLogps::new(chosen, rejected, reference.shallow_clone(), reference.shallow_clone())?;
        // Only differences of scores matter, so that a margin can stand for the chosen one's.
        let scores = RewardScores::single(&margins, &margins.zeros_like())?;
        let mut batch = PreferenceBatch::new(logps).with_rewards(scores)?;
        if let Some(weights) = &weights {
            batch = batch.with_weights(weights.shallow_clone())?;
        }
        Ok(loss.mean(&batch)?)
    })?;

    let _no_grad = tch::no_grad_guard();
    let log_policy = log_policy(&policy, &matrix(&setting.test_features, WIDTH));
    let expectation = |values: &Tensor| {
        let sum = (log_policy.exp() * values).sum(Kind::Double).double_value(&[]);
        sum / log_policy.size()[0] as f64
    };
    let gold = expectation(&matrix(&setting.test_gold, CANDIDATES as i64));
    let kl = expectation(&(&log_policy - uniform));
    Ok(Outcome { method, beta, seed: setting.seed, gold, kl })
}

/// log π of every candidate, `[prompts, CANDIDATES]`.
fn log_policy(policy: &Mlp, features: &Tensor) -> Tensor {
    policy.forward(features).view([-1, CANDIDATES as i64]).log_softmax(-1, Kind::Float)
}
