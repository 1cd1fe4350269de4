//! This crate's own step.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use ndarray::Array2;
use prefopt::{
    PreferenceBatch, RewardScores,
    data::{BadLines, Cache, Limits, PairDataset, Policy, PreferenceReader, TextTokenizer, tokenize},
    lm::CausalLm,
    logps::{ResponseLogps, response_logps_of},
    loss::{Dpo, PessimisticDistillation},
    packed::PackedRow,
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent, PolicyTrainer, Trainer},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

use crate::{Args, measure::race};

const BETA: f64 = 0.1;
const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// What a system says of itself.
#[derive(Serialize)]
pub struct Figures {
    pub system: String,
    pub step_s: Vec<f64>,
    pub loss: Vec<f64>,
    pub peak_rss_mb: f64,
    /// Tokens that a step reads, padding included.
    pub tokens: Vec<f64>,
}

impl Figures {
    pub fn print(&self) {
        let list = |numbers: &[f64], digits: usize| {
            numbers.iter().map(|x| format!("{x:.digits$}")).collect::<Vec<_>>().join(" ")
        };
        println!(
            "{:24} {:>24} s a step   {:6.0} MB at the peak   losses {}   tokens {}",
            self.system,
            list(&self.step_s, 2),
            self.peak_rss_mb,
            list(&self.loss, 6),
            list(&self.tokens, 0)
        );
    }
}

pub fn run(args: &Args) -> Result<Figures> {
    let tokenizer = TextTokenizer::from_folder(&args.model)?;
    let records = PreferenceReader::open(&args.pairs_file)?.take(args.pairs.get());
    let limits = Limits::new(args.max_length)?;
    let pairs = tokenize(records, &tokenizer, limits, Policy::default(), BadLines::default())?.pairs;
    ensure!(pairs.len() == args.pairs.get(), "{} of {} pairs are usable", pairs.len(), args.pairs);
    let batches: Vec<Vec<usize>> =
        (0..pairs.len()).collect::<Vec<_>>().chunks(args.batch.get()).map(<[usize]>::to_vec).collect();

    let model = CausalLm::load(&args.model, Device::Cpu, Kind::Float)?;
    let start = Instant::now();
    let reference = reference(&model, &pairs, &batches)?;
    let pass = start.elapsed().as_secs_f64() / batches.len() as f64;

    let parameters = || model.parameters().into_iter().map(|(_, tensor)| tensor).collect::<Vec<_>>();
    let forward = |scores: Option<&Cache>, batch: &[usize]| -> prefopt::Result<PreferenceBatch> {
        let row = pairs.row(batch, Device::Cpu)?;
        let of = |side: &str| reference.gather(side, batch, CPU);
        let sums = Tensor::stack(&[of("chosen")?, of("rejected")?], 1).flatten(0, 1);
        let reference = ResponseLogps { sums, lengths: row.lengths() };
        let (logps, lengths) = response_logps_of(&model, &row)?.into_pairs(&reference)?;
        let parsed = PreferenceBatch::new(logps).with_lengths(lengths)?;
        let Some(scores) = scores else { return Ok(parsed) };
        let of = |side: &str| scores.gather(side, batch, CPU);
        parsed.with_rewards(RewardScores::new(of("chosen")?, of("rejected")?)?)
    };
    let descent = || Descent::new(AdamW::new(parameters(), AdamWConfig::default())?, 1e-6);

    let mut trainer = PolicyTrainer::new(Dpo::new(BETA)?, |batch: &Vec<usize>| forward(None, batch), descent()?, BETA)?;
    let (mut step_s, mut loss, mut tokens, mut shares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for batch in &batches {
        let row = pairs.row(batch, Device::Cpu)?;
        // Beside each step, as the machine is not always equally fast.
        let before = large_product();
        let start = Instant::now();
        loss.push(trainer.step(batch)?.loss);
        let seconds = start.elapsed().as_secs_f64();
        shares.push(operations(&model, &row) / seconds / (0.5 * (before + large_product())));
        step_s.push(seconds);
        tokens.push(row.len() as f64);
    }
    let figures = Figures { system: "prefopt".into(), step_s, loss, peak_rss_mb: peak()?, tokens };
    figures.print();
    println!("{:24} {pass:24.2} s for each batch's reference, once", "");
    println!(
        "{:24} {:>24} of the rate of a large product beside it, for each step's products",
        "",
        shares.iter().map(|share| format!("{share:.2}")).collect::<Vec<_>>().join(" ")
    );

    let scores = scores(args.members, pairs.len())?;
    let turn = |trainer: &mut dyn Trainer<Batch = Vec<usize>>| -> Result<()> {
        // Of one pair: the shorter the step, the larger the share of what scores add to it.
        trainer.step(&vec![0])?;
        Ok(())
    };
    // Of their own, so that both have the moments of as many steps.
    drop(trainer);
    let mut dpo = PolicyTrainer::new(Dpo::new(BETA)?, |batch: &Vec<usize>| forward(None, batch), descent()?, BETA)?;
    let pessimistic = PessimisticDistillation::new(BETA)?;
    let mut e_dpo =
        PolicyTrainer::new(pessimistic, |batch: &Vec<usize>| forward(Some(&scores), batch), descent()?, BETA)?;
    let [plain, ensemble] = race(15, [&mut || turn(&mut dpo), &mut || turn(&mut e_dpo)])?;
    println!(
        "{:24} {:24.4} of DPO's time a step, with the cached scores of {} reward models (medians of 15 steps of one pair in turn)",
        "e-DPO",
        ensemble / plain,
        args.members
    );
    Ok(figures)
}

/// The reference's log-probabilities of all pairs.
fn reference(model: &CausalLm, pairs: &PairDataset, batches: &[Vec<usize>]) -> Result<Cache> {
    let _no_grad = tch::no_grad_guard();
    let mut sums = Vec::new();
    for batch in batches {
        sums.extend(Vec::<f64>::try_from(response_logps_of(model, &pairs.row(batch, Device::Cpu)?)?.sums)?);
    }
    let side = |offset: usize| ndarray::Array1::from_iter(sums.iter().skip(offset).step_by(2).copied());
    Ok(Cache::default().with("chosen", side(0))?.with("rejected", side(1))?)
}

/// Standard normal margins would do as well: the cost does not depend on them.
fn scores(members: usize, pairs: usize) -> Result<Cache> {
    let mut rng = StdRng::seed_from_u64(0);
    let mut side = || Array2::from_shape_simple_fn((members, pairs), || rng.random::<f64>());
    Ok(Cache::default().with("chosen", side())?.with("rejected", side())?)
}

/// Floating-point operations of the matrix products that a step cannot do without.
fn operations(model: &CausalLm, row: &PackedRow) -> f64 {
    let is_matrix =
        |(name, tensor): &(&str, &Tensor)| tensor.dim() == 2 && (name.contains("layers.") || name.contains(".h."));
    let weights: usize = model.named_parameters().filter(is_matrix).map(|(_, tensor)| tensor.numel()).sum();
    let head = (model.config().vocab() * model.config().width()) as f64;
    let scored = row.lengths().sum(Kind::Int64).int64_value(&[]) as f64;
    // Forward, and a product for each gradient: of the weights and of what they were multiplied with.
    3.0 * 2.0 * (row.len() as f64 * weights as f64 + scored * head)
}

/// Operations a second of one large product, the best of some.
fn large_product() -> f64 {
    let (rows, depth, columns) = (1024, 576, 8192);
    let (a, b) = (Tensor::randn([rows, depth], CPU), Tensor::randn([depth, columns], CPU));
    let once = |_| {
        let start = Instant::now();
        let _ = a.matmul(&b);
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..10).map(once).fold(f64::INFINITY, f64::min);
    2.0 * (rows * depth * columns) as f64 / fastest
}

/// Most memory that was resident at a time, MB.
fn peak() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
