//! Heads on one kind of network, their training, and how far their predictions are from the population.

use anyhow::Result;
use ndarray::Array2;
use prefopt::reward::{
    Categories, Cost, CrossEntropy, DistributionBatch, DistributionLoss, DistributionalHead, OptimalTransport,
    RewardScorer, ScalarHead, SquaredCdf,
};
use serde::Serialize;
use tch::{Device, Kind, Tensor, nn};

use crate::{
    Size,
    support::network::{Mlp, descend, matrix, numbers, vector},
    world::{CATEGORIES, FEATURES, World},
};

const HIDDEN: i64 = 32;

/// What a head is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Posterior mean of a Dirichlet–categorical model.
    Posterior,
    /// The votes' shares as they are.
    Shares,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Transport,
    SquaredCdf,
    CrossEntropy,
    OrderedLogit,
    TransportOfShares,
    CrossEntropyOfShares,
}

impl Method {
    pub const ALL: [Self; 6] = [
        Self::Transport,
        Self::SquaredCdf,
        Self::CrossEntropy,
        Self::OrderedLogit,
        Self::TransportOfShares,
        Self::CrossEntropyOfShares,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Transport => "transport",
            Self::SquaredCdf => "squared CDF",
            Self::CrossEntropy => "cross-entropy",
            Self::OrderedLogit => "ordered logit",
            Self::TransportOfShares => "transport, raw shares",
            Self::CrossEntropyOfShares => "cross-entropy, raw shares",
        }
    }

    fn labels(self) -> Labels {
        match self {
            Self::TransportOfShares | Self::CrossEntropyOfShares => Labels::Shares,
            _ => Labels::Posterior,
        }
    }

    fn loss(self) -> Box<dyn DistributionLoss> {
        match self {
            Self::Transport | Self::TransportOfShares => Box::new(OptimalTransport::new(Cost::Distance)),
            Self::SquaredCdf => Box::new(SquaredCdf),
            Self::CrossEntropy | Self::CrossEntropyOfShares | Self::OrderedLogit => Box::new(CrossEntropy),
        }
    }
}

/// One head to be trained.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub method: Method,
    /// Known of each item.
    pub votes: usize,
    /// Learning rate.
    pub rate: f64,
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub method: Method,
    pub votes: usize,
    pub rate: f64,
    pub seed: u64,
    /// Mean 1-Wasserstein distance of prediction and population over unseen items, in categories.
    pub distance: f64,
    /// Mean absolute error of the expected grade.
    pub grade_error: f64,
    /// The prediction for the most divided unseen item.
    pub shown: Vec<f64>,
}

/// Trains one head and judges it.
pub fn run(job: &Job, size: Size) -> Result<Outcome> {
    let &Job { method, votes, rate, seed } = job;
    let world = World::new(seed, size);
    let grades: Vec<f64> = (0..CATEGORIES).map(|category| category as f64).collect();
    let categories = Categories::new(&grades)?;
    let trunk = Mlp::new(FEATURES as i64, HIDDEN, 1, seed)?;
    let store = nn::VarStore::new(Device::Cpu);
    let head = Head::new(method, &store.root(), &categories);

    let (features, labels) = (tensor(&world.features), tensor(&world.labels(votes, method.labels())?));
    let loss = method.loss();
    let parameters = trunk.parameters().into_iter().chain(store.trainable_variables()).collect();
    descend(parameters, size.steps, rate, |_| {
        let predicted = head.log_probabilities(&trunk.hidden(&features))?;
        Ok(loss.mean(&DistributionBatch::new(&categories, predicted, labels.shallow_clone())?)?)
    })?;

    let _no_grad = tch::no_grad_guard();
    let (truth, unseen) = (tensor(&world.unseen), tensor(&world.unseen_features));
    let predicted = head.log_probabilities(&trunk.hidden(&unseen))?;
    let error = categories.expectation(&predicted)? - categories.expectation(&truth.log())?;
    let shown = numbers(&predicted.get(world.most_divided() as i64).exp())?;
    let batch = DistributionBatch::new(&categories, predicted, truth)?;
    let distance = OptimalTransport::new(Cost::Distance).mean(&batch)?.double_value(&[]);
    let grade_error = error.abs().mean(Kind::Double).double_value(&[]);
    Ok(Outcome { method, votes, rate, seed, distance, grade_error, shown })
}

fn tensor(rows: &Array2<f64>) -> Tensor {
    matrix(&rows.iter().copied().collect::<Vec<_>>(), rows.ncols() as i64)
}

#[derive(Debug)]
enum Head {
    Distribution(DistributionalHead),
    OrderedLogit(OrderedLogit),
}

impl Head {
    fn new(method: Method, vs: &nn::Path, categories: &Categories) -> Self {
        match method {
            Method::OrderedLogit => Self::OrderedLogit(OrderedLogit::new(vs)),
            _ => Self::Distribution(DistributionalHead::new(vs, HIDDEN, categories.clone())),
        }
    }

    /// log p̂, `[n, CATEGORIES]`.
    fn log_probabilities(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Distribution(head) => Ok(head.log_probabilities(hidden)?),
            Self::OrderedLogit(head) => head.log_probabilities(hidden),
        }
    }
}

/// The scalar baseline (McCullagh 1980): P(vote ≤ d) = σ(θ_d − s) with one score s an item and thresholds θ_0 < θ_1 < …
/// shared by all.
#[derive(Debug)]
struct OrderedLogit {
    score: ScalarHead,
    /// θ_0, `[1]`.
    lowest: Tensor,
    /// What softplus turns into θ_{d+1} − θ_d, `[CATEGORIES − 2]`.
    gaps: Tensor,
}

impl OrderedLogit {
    /// It starts where the other heads start: every category as likely as another.
    fn new(vs: &nn::Path) -> Self {
        let threshold = |below: usize| (below as f64 / (CATEGORIES - below) as f64).ln();
        let gaps: Vec<f64> =
            (1..CATEGORIES - 1).map(|below| (threshold(below + 1) - threshold(below)).exp_m1().ln()).collect();
        Self {
            score: ScalarHead::new(&(vs / "score"), HIDDEN),
            lowest: vs.var_copy("lowest", &vector(&[threshold(1)])),
            gaps: vs.var_copy("gaps", &vector(&gaps)),
        }
    }

    fn log_probabilities(&self, hidden: &Tensor) -> Result<Tensor> {
        const INNER: i64 = CATEGORIES as i64 - 2;
        let gaps = self.gaps.softplus();
        let thresholds = Tensor::cat(&[&self.lowest, &(&self.lowest + gaps.cumsum(0, Kind::Float))], 0);
        let below = thresholds.unsqueeze(0) - self.score.scores(hidden)?.tr();
        let (low, high) = (below.narrow(1, 0, INNER), below.narrow(1, 1, INNER));
        // σ(b) − σ(a) = σ(b) σ(−a) (1 − e^{a − b}), without a difference of two numbers near 1.
        let inner = high.log_sigmoid() + (-low).log_sigmoid() + (-(-gaps).expm1()).log();
        let first = below.narrow(1, 0, 1).log_sigmoid();
        let last = (-below.narrow(1, INNER, 1)).log_sigmoid();
        Ok(Tensor::cat(&[first, inner, last], 1))
    }
}
