//! How costs grow: log-probabilities with tokens, vocabulary, width and budget, losses with pairs and members, attention with pairs, Pareto fronts
//! with points.
//!
//!     cargo bench --bench scaling [-- FILTER]

use std::time::Duration;

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, Result, RewardScores,
    diagnostics::{Monitor, Thresholds, batch_metrics, preference_metrics},
    diffusion::non_dominated_ranks,
    logps::VocabularyHead,
    loss::{Dpo, Minimum, PessimisticDistillation},
    ndarray::Array2,
    packed::PackedRow,
};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    tch::set_num_threads(2);
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group
}

/// Log-probabilities, forward and backward, all inputs trained.
fn head(tokens: i64, width: i64, vocab: i64, budget: u64) -> impl FnMut() -> Result<()> {
    let hidden = Tensor::randn([tokens, width], F32).set_requires_grad(true);
    let weight = (Tensor::randn([vocab, width], F32) * 0.02).set_requires_grad(true);
    let targets = Tensor::randint(vocab, [tokens], (Kind::Int64, Device::Cpu));
    move || {
        let logps = VocabularyHead::new(&weight)?.with_budget(budget).logps(&hidden, &targets)?;
        let _gradients = Tensor::f_run_backward(&[logps.sum(Kind::Float)], &[&hidden, &weight], false, false)?;
        Ok(())
    }
}

fn logps(criterion: &mut Criterion) {
    let mut group = group(criterion, "logps");
    let mut case = |axis: &str, value: i64, mut run: Box<dyn FnMut() -> Result<()>>| {
        group.bench_function(BenchmarkId::new(axis, value), |b| b.iter(|| run().expect("shapes that fit")));
    };
    const BUDGET: u64 = 40 << 20;
    for tokens in [128, 256, 512, 1024] {
        case("tokens", tokens, Box::new(head(tokens, 128, 8192, BUDGET)));
    }
    for vocab in [2048, 8192, 32768] {
        case("vocab", vocab, Box::new(head(256, 128, vocab, BUDGET)));
    }
    for width in [64, 128, 256, 512] {
        case("width", width, Box::new(head(256, width, 8192, BUDGET)));
    }
    for mebibytes in [1, 4, 16, 64] {
        case("budget in MiB", mebibytes, Box::new(head(1024, 128, 8192, (mebibytes as u64) << 20)));
    }
}

fn loss(loss: impl PreferenceLoss + 'static, pairs: i64, members: i64) -> impl FnMut() -> Result<()> {
    let columns: Vec<Tensor> = (0..4).map(|_| Tensor::randn([pairs], F32).set_requires_grad(true)).collect();
    let [chosen, rejected] = [0, 1].map(|_| Tensor::randn([members, pairs], F32));
    move || {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| columns[i].shallow_clone());
        let scores = RewardScores::new(chosen.shallow_clone(), rejected.shallow_clone())?;
        let batch = PreferenceBatch::new(PairLogps::new(a, b, c, d)?).with_rewards(scores)?;
        let _gradients = Tensor::f_run_backward(&[loss.mean(&batch)?], &columns[..2], false, false)?;
        Ok(())
    }
}

fn losses(criterion: &mut Criterion) {
    let mut group = group(criterion, "losses");
    let (dpo, e_dpo) = (Dpo::new(0.1).expect("positive"), PessimisticDistillation::new(0.1).expect("positive"));
    for pairs in [64, 1024, 16384] {
        group.throughput(Throughput::Elements(pairs as u64));
        let (mut a, mut b) = (loss(dpo, pairs, 1), loss(e_dpo, pairs, 8));
        group.bench_function(BenchmarkId::new("dpo, pairs", pairs), |bench| bench.iter(|| a().expect("a loss")));
        group.bench_function(BenchmarkId::new("e-dpo of 8, pairs", pairs), |bench| bench.iter(|| b().expect("a loss")));
    }
    for members in [2, 8, 32] {
        let (mut a, mut b) = (loss(e_dpo, 1024, members), loss(e_dpo.with_minimum(Minimum::Hull), 1024, members));
        group.bench_function(BenchmarkId::new("e-dpo of 1024, members", members), |bench| {
            bench.iter(|| a().expect("a loss"))
        });
        group.bench_function(BenchmarkId::new("hull of 1024, members", members), |bench| {
            bench.iter(|| b().expect("a loss"))
        });
    }
}

/// What a trainer adds to each step: all that a batch says, and the alarms; beside it the part that TRL names.
fn diagnostics(criterion: &mut Criterion) {
    let mut group = group(criterion, "diagnostics");
    for (pairs, members) in [(16_i64, 1_i64), (64, 8), (1024, 8), (1024, 32)] {
        let column = || Tensor::randn([pairs], F32) - 40.0;
        let scores = || Tensor::randn([members, pairs], F32);
        let tokens = || Tensor::randint_low(8, 64, [pairs], (Kind::Int64, Device::Cpu));
        let logps = PairLogps::new(column(), column(), column(), column()).expect("fit");
        let batch = PreferenceBatch::new(logps)
            .with_rewards(RewardScores::new(scores(), scores()).expect("fit"))
            .and_then(|batch| batch.with_lengths(ResponseLengths::new(tokens(), tokens())?))
            .and_then(|batch| batch.with_soft_labels(Tensor::rand([pairs], F32)))
            .expect("fit");
        let (mut monitor, mut step) = (Monitor::new(Thresholds::default()), 0);
        group.throughput(Throughput::Elements(pairs as u64));
        let shape = format!("{pairs} pairs, {members} members");
        group.bench_function(BenchmarkId::new("all and alarms", &shape), |bench| {
            bench.iter(|| {
                step += 1;
                monitor.observe(step, &batch_metrics(&batch, 0.1).expect("a batch"))
            })
        });
        group.bench_function(BenchmarkId::new("TRL's", &shape), |bench| {
            bench.iter(|| preference_metrics(&batch, 0.1).expect("a batch"))
        });
    }
}

fn attention(criterion: &mut Criterion) {
    let mut group = group(criterion, "attention");
    for pairs in [1, 4, 16] {
        let (prompt, response) = (vec![0; 192], vec![0; 64]);
        let row = (0..pairs).map(|_| (&prompt[..], &response[..], &response[..]));
        let row = PackedRow::pairs(row, Device::Cpu).expect("tokens");
        let inputs: Vec<Tensor> =
            (0..3).map(|_| Tensor::randn([row.len(), 9, 64], F32).set_requires_grad(true)).collect();
        group.throughput(Throughput::Elements(row.len() as u64));
        group.bench_function(BenchmarkId::new("pairs of 192 + 64 + 64 tokens, 9 heads", pairs), |bench| {
            bench.iter(|| {
                let seen = row.everything().attend(&inputs[0], &inputs[1], &inputs[2], 0.125).expect("shapes that fit");
                Tensor::f_run_backward(&[seen.sum(Kind::Float)], &inputs, false, false).expect("a graph")
            });
        });
    }
}

/// Non-dominated sorting of points of four rewards: a cloud, and a sheet in which all are in one front.
fn fronts(criterion: &mut Criterion) {
    let mut group = group(criterion, "fronts");
    for count in [2_500, 10_000] {
        let cloud = Array2::from_shape_fn((count, 4), |(i, j)| {
            ((i * 4 + j) as f64 * 12.9898).sin().mul_add(43758.547, 0.5).fract()
        });
        let mut sheet = cloud.clone();
        for mut row in sheet.outer_iter_mut() {
            row[3] = -(row[0] + row[1] + row[2]);
        }
        for (name, points) in [("cloud", cloud), ("sheet", sheet)] {
            let id = BenchmarkId::new(name, count);
            group.bench_function(id, |b| b.iter(|| non_dominated_ranks(points.view()).expect("finite points")));
        }
    }
}

criterion_group!(benches, logps, losses, attention, diagnostics, fronts);
criterion_main!(benches);
