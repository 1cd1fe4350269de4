use std::{cell::RefCell, rc::Rc};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    PairLogps, PreferenceBatch, Result, RewardScores,
    loss::{Minimum, PessimisticDistillation},
    tch::{Device, Kind, Tensor},
    train::{
        AdamW, AdamWConfig, Checkpoint, Descent, PolicyTrainer, Position, RunningMinimum, StepReport, Trainer, Warmup,
    },
};

use super::bits;

/// 12 pairs in batches of two, of which a step takes two.
const PAIRS: i64 = 12;
const BATCHES: u64 = 6;

type Batch = Vec<i64>;
type Forward = Box<dyn Fn(&Batch) -> Result<PreferenceBatch>>;

/// A small training run with all that one can remember: moments, masters, a schedule, parts of a step, a tracker, an order that
/// is drawn anew for each pass.
pub struct Run {
    pub model: [(&'static str, Tensor); 2],
    pub trainer: PolicyTrainer<Batch, PessimisticDistillation, Forward>,
    tracker: Rc<RefCell<RunningMinimum>>,
    rng: ChaCha8Rng,
    /// Of this pass, with the generator's state before it was drawn; empty between passes.
    order: Vec<i64>,
    drawn_from: Generator,
    pub at: Position,
}

/// Seed and position of a generator.
type Generator = ([u8; 32], u64);

fn generator(rng: &ChaCha8Rng) -> Generator {
    (rng.get_seed(), u64::try_from(rng.get_word_pos()).expect("few numbers were drawn"))
}

impl Run {
    pub fn new(kind: Kind) -> Result<Self> {
        let leaf = |values: &[f64]| Tensor::from_slice(values).to_kind(kind).set_requires_grad(true);
        let model = [("weights", leaf(&[0.5, -0.25, 1.0])), ("bias", leaf(&[-0.5]))];
        let parameters = model.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        let optimizer = AdamW::new(parameters, AdamWConfig::new((0.9, 0.99), 1e-8, 0.1)?)?.with_masters();
        let descent =
            Descent::new(optimizer, 0.05)?.with_schedule(Warmup::new(3).then_cosine(25)?).with_max_norm(Some(0.5))?;
        let tracker = Rc::new(RefCell::new(RunningMinimum::new()));
        let hook = {
            let tracker = Rc::clone(&tracker);
            move |loss: &mut PessimisticDistillation, batch: &PreferenceBatch| -> Result<()> {
                let mut tracker = tracker.borrow_mut();
                tracker.observe(loss, batch)?;
                *loss = loss.with_minimum(Minimum::Dataset { member: tracker.member()? });
                Ok(())
            }
        };
        let forward = forward(&model[0].1, &model[1].1);
        let trainer = PolicyTrainer::new(PessimisticDistillation::new(0.5)?, forward, descent, 0.5)?.before_loss(hook);
        let rng = ChaCha8Rng::seed_from_u64(7);
        let drawn_from = generator(&rng);
        Ok(Self { model, trainer, tracker, rng, order: vec![], drawn_from, at: Position::default() })
    }

    pub fn resumed(kind: Kind, checkpoint: &Checkpoint) -> Result<Self> {
        let mut run = Self::new(kind)?;
        checkpoint.restore(run.named(), run.trainer.descent_mut())?;
        let sums = checkpoint.tensor("running sums")?.copy();
        *run.tracker.borrow_mut() = RunningMinimum::from_sums(sums, checkpoint.value("running weight")?)?;
        let (seed, word): Generator = checkpoint.value("rng")?;
        run.rng = ChaCha8Rng::from_seed(seed);
        run.rng.set_word_pos(word.into());
        run.at = checkpoint.position();
        if run.at.batch > 0 {
            run.draw();
        }
        Ok(run)
    }

    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.model.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect()
    }

    fn draw(&mut self) {
        self.drawn_from = generator(&self.rng);
        self.order = (0..PAIRS).collect();
        self.order.shuffle(&mut self.rng);
    }

    pub fn step(&mut self) -> Result<StepReport> {
        if self.order.is_empty() {
            self.draw();
        }
        let behind = self.at.batch as usize;
        let parts: Vec<Batch> = self.order.chunks(2).skip(behind).take(2).map(<[i64]>::to_vec).collect();
        let report = self.trainer.step_over(&parts)?;
        self.at.batch += 2;
        if self.at.batch == BATCHES {
            self.order.clear();
            self.at = Position { epoch: self.at.epoch + 1, batch: 0 };
        }
        Ok(report)
    }

    pub fn steps(&mut self, number: u64) -> Result<Vec<StepReport>> {
        (0..number).map(|_| self.step()).collect()
    }

    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let (sums, weight) = self.tracker.borrow().sums().expect("has seen a batch");
        let drawn_from = if self.order.is_empty() { generator(&self.rng) } else { self.drawn_from };
        Ok(Checkpoint::of(self.named(), self.trainer.descent())?
            .at(self.at)
            .with_value("rng", &drawn_from)?
            .with_value("running weight", &weight)?
            .with_tensor("running sums", &sums))
    }

    /// Every bit that decides what comes next.
    pub fn bits(&self) -> Vec<Vec<u8>> {
        let (sums, weight) = self.tracker.borrow().sums().expect("has seen a batch");
        let state = self.trainer.descent().state();
        let mut all: Vec<_> = self.model.iter().map(|(_, tensor)| bits(tensor)).collect();
        for moments in &state.moments {
            let always = [&moments.first, &moments.second, &moments.steps];
            all.extend(always.into_iter().chain(&moments.master).map(bits));
        }
        let at = [state.steps, self.at.epoch, self.at.batch].map(u64::to_le_bytes);
        all.extend([bits(&sums), weight.to_le_bytes().to_vec(), at.concat()]);
        all
    }
}

/// Log-probabilities are log σ of linear features; two reward models score each pair.
fn forward(weights: &Tensor, bias: &Tensor) -> Forward {
    let wide = if weights.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    // Any numbers without a pattern.
    let table = |rows: i64, columns: i64, pace: f64| {
        let numbers: Vec<f64> = (0..rows * columns).map(|i| (pace * (i * i + 1) as f64).sin()).collect();
        Tensor::from_slice(&numbers).view([rows, columns]).to_kind(wide)
    };
    let features = [table(PAIRS, 3, 0.7), table(PAIRS, 3, 1.3)];
    let scores = [table(2, PAIRS, 0.9), table(2, PAIRS, 1.9)];
    let (weights, bias) = (weights.shallow_clone(), bias.shallow_clone());
    Box::new(move |batch| {
        let rows = Tensor::from_slice(batch);
        let logps = |features: &Tensor| {
            (features.index_select(0, &rows).mv(&weights.to_kind(wide)) + bias.to_kind(wide)).log_sigmoid()
        };
        let reference = || Tensor::full([batch.len() as i64], -0.7, (wide, Device::Cpu));
        let logps = PairLogps::new(logps(&features[0]), logps(&features[1]), reference(), reference())?;
        let [chosen, rejected] = scores.each_ref().map(|scores| scores.index_select(1, &rows));
        PreferenceBatch::new(logps).with_rewards(RewardScores::new(chosen, rejected)?)
    })
}
