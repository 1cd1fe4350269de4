//! A classifier under label noise, and rules that accept a share of what it says.

use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView1};
use prefopt::rejection::{AccuracyCoverage, Calibration, DensityRatio, Rejector, Risk};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{
    COVERAGE,
    support::network::{Mlp, descend, indices, matrix, normal, numbers},
};

const CLASSES: usize = 6;
const FEATURES: usize = 6;
/// Clouds of each class.
const CLOUDS: usize = 3;
const LEARNING_RATE: f64 = 1e-2;
/// λ of every density ratio, nats.
const LAMBDA: f64 = 1.0;

pub struct Size {
    train: usize,
    held_out: usize,
    test: usize,
    steps: usize,
}

pub const FULL: Size = Size { train: 600, held_out: 400, test: 3000, steps: 150 };
pub const QUICK: Size = Size { train: 120, held_out: 80, test: 300, steps: 20 };

/// What decides which predictions are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Rule {
    Kl,
    Alpha2,
    Alpha3,
    Alpha5,
    KlOfError,
    Chow,
    Confidence,
}

impl Rule {
    pub const ALL: [Self; 7] =
        [Self::Kl, Self::Alpha2, Self::Alpha3, Self::Alpha5, Self::KlOfError, Self::Chow, Self::Confidence];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kl => "KL of entropy",
            Self::Alpha2 => "alpha 2 of entropy",
            Self::Alpha3 => "alpha 3 of entropy",
            Self::Alpha5 => "alpha 5 of entropy",
            Self::KlOfError => "KL of 1 - max p",
            Self::Chow => "Chow",
            Self::Confidence => "confidence, T = 1",
        }
    }

    fn ratio(self) -> prefopt::Result<Option<DensityRatio>> {
        Ok(match self {
            Self::Kl | Self::KlOfError => Some(DensityRatio::kl(LAMBDA)?),
            Self::Alpha2 => Some(DensityRatio::alpha(2.0, LAMBDA)?),
            Self::Alpha3 => Some(DensityRatio::alpha(3.0, LAMBDA)?),
            Self::Alpha5 => Some(DensityRatio::alpha(5.0, LAMBDA)?),
            Self::Chow | Self::Confidence => None,
        })
    }

    fn risks(self, fitted: Calibration, logits: &Array2<f64>) -> prefopt::Result<Array1<f64>> {
        match self {
            Self::Kl | Self::Alpha2 | Self::Alpha3 | Self::Alpha5 => fitted.risks(logits.view(), Risk::Entropy),
            Self::KlOfError | Self::Chow => fitted.risks(logits.view(), Risk::ZeroOne),
            Self::Confidence => Calibration::new(1.0)?.risks(logits.view(), Risk::ZeroOne),
        }
    }

    /// The rule that accepts the coverage of held-out rows, and the ratio at its limit.
    fn rejector(self, held_out: ArrayView1<f64>) -> prefopt::Result<(Rejector, Option<f64>)> {
        let Some(ratio) = self.ratio()? else {
            return Ok((Rejector::for_coverage(held_out, COVERAGE)?, None));
        };
        let fitted = ratio.fit(held_out)?;
        let rejector = fitted.threshold_for_coverage(COVERAGE)?;
        Ok((rejector, Some(fitted.ratio(rejector.limit()))))
    }
}

/// One rule on one model.
#[derive(Debug, Serialize)]
pub struct Judgement {
    pub rule: Rule,
    /// Accuracy of the 80 % of test rows of least risk.
    pub matched: f64,
    /// Share of test rows within the limit that keeps 80 % of the held-out rows.
    pub coverage: f64,
    /// Their accuracy.
    pub accepted: f64,
    /// τ.
    pub threshold: Option<f64>,
    /// Accuracy at each of [`coverages`].
    pub curve: Vec<f64>,
}

#[derive(Debug, Serialize)]
pub struct Outcome {
    pub noise: f64,
    pub seed: u64,
    pub temperature: f64,
    /// Of all test rows.
    pub accuracy: f64,
    /// In the order of [`Rule::ALL`].
    pub rules: Vec<Judgement>,
}

/// Where curves are kept.
pub fn coverages() -> impl Iterator<Item = f64> {
    (6..=20).map(|i| f64::from(i) / 20.0)
}

/// Trains one classifier and judges every rule on it.
pub fn run(noise: f64, seed: u64, size: &Size) -> Result<Outcome> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let world = World::new(&mut rng);
    let [train, held_out] = [size.train, size.held_out].map(|rows| world.draw(rows, noise, &mut rng));
    let test = world.draw(size.test, 0.0, &mut rng);

    let network = Mlp::new(FEATURES as i64, 32, CLASSES as i64, seed)?;
    let (features, labels) = (matrix(&train.features, FEATURES as i64), indices(&train.labels));
    descend(network.parameters(), size.steps, LEARNING_RATE, |_| {
        Ok(network.forward(&features).cross_entropy_for_logits(&labels))
    })?;

    let [of_held_out, of_test] = [logits(&network, &held_out)?, logits(&network, &test)?];
    let calibration = Calibration::fit(of_held_out.view(), &held_out.labels)?;
    let rows = of_test.rows().into_iter().zip(&test.labels);
    let correct: Vec<bool> = rows.map(|(row, &label)| top(row) == label).collect();
    let share = |rows: &[usize]| rows.iter().filter(|&&row| correct[row]).count() as f64 / rows.len().max(1) as f64;
    let judge = |rule: Rule| -> Result<Judgement> {
        let (rejector, threshold) = rule.rejector(rule.risks(calibration, &of_held_out)?.view())?;
        let risks = rule.risks(calibration, &of_test)?;
        let accepted = rejector.accepted(risks.view());
        let curve = AccuracyCoverage::new(risks.view(), &correct)?;
        Ok(Judgement {
            rule,
            matched: curve.accuracy_at(COVERAGE)?,
            coverage: accepted.len() as f64 / correct.len() as f64,
            accepted: share(&accepted),
            threshold,
            curve: coverages().map(|coverage| curve.accuracy_at(coverage)).collect::<prefopt::Result<_>>()?,
        })
    };
    Ok(Outcome {
        noise,
        seed,
        temperature: calibration.temperature(),
        accuracy: share(&(0..correct.len()).collect::<Vec<_>>()),
        rules: Rule::ALL.into_iter().map(judge).collect::<Result<_>>()?,
    })
}

fn logits(network: &Mlp, data: &Data) -> Result<Array2<f64>> {
    let _no_grad = tch::no_grad_guard();
    let logits = numbers(&network.forward(&matrix(&data.features, FEATURES as i64)))?;
    Ok(Array2::from_shape_vec((data.labels.len(), CLASSES), logits)?)
}

fn top(row: ArrayView1<f64>) -> usize {
    (1..row.len()).fold(0, |top, class| if row[class] > row[top] { class } else { top })
}

/// Clouds of differing widths.
struct World {
    centres: Vec<f64>,
    widths: Vec<f64>,
}

struct Data {
    features: Vec<f64>,
    labels: Vec<usize>,
}

impl World {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let centres = normal(rng, CLASSES * CLOUDS * FEATURES).into_iter().map(|x| 2.0 * x).collect();
        let widths = normal(rng, CLASSES * CLOUDS).into_iter().map(|x| (0.4 * x).exp()).collect();
        Self { centres, widths }
    }

    /// The same random numbers whatever the noise, so that seeds are paired over it too.
    fn draw(&self, rows: usize, noise: f64, rng: &mut ChaCha8Rng) -> Data {
        let (mut features, mut labels) = (Vec::with_capacity(rows * FEATURES), Vec::with_capacity(rows));
        for _ in 0..rows {
            let cloud = rng.random_range(0..CLASSES * CLOUDS);
            let centre = &self.centres[cloud * FEATURES..][..FEATURES];
            features.extend(normal(rng, FEATURES).iter().zip(centre).map(|(x, c)| c + self.widths[cloud] * x));
            let (flip, other) = (rng.random_range(0.0..1.0) < noise, rng.random_range(1..CLASSES));
            let class = cloud % CLASSES;
            labels.push(if flip { (class + other) % CLASSES } else { class });
        }
        Data { features, labels }
    }
}
