//! Reward heads and the objective that trains them.

use prefopt::{
    Result, RewardScores,
    reward::{BradleyTerry, EnsembleHead, RewardBatch, RewardObjective, RewardScorer, ScalarHead},
    tch::{Device, Kind, Tensor, nn},
    train::{AdamW, AdamWConfig, Descent, RewardTrainer, Trainer},
};

use crate::{all_close, close, columns::Columns, number, numbers, oracle};

fn hidden(rows: usize) -> Tensor {
    Tensor::from_slice2(&[vec![0.5, -1.0], vec![2.0, 0.25], vec![-0.75, 1.5], vec![1.0, 1.0]][..rows])
        .to_kind(Kind::Float)
}

fn set(variable: &Tensor, value: &Tensor) {
    let _no_grad = prefopt::tch::no_grad_guard();
    variable.shallow_clone().copy_(value);
}

#[test]
fn a_scalar_head_is_linear_and_starts_indifferent() -> Result<()> {
    let vs = nn::VarStore::new(Device::Cpu);
    let head = ScalarHead::new(&vs.root(), 2);
    assert_eq!((head.members(), head.scores(&hidden(3))?.size()), (1, vec![1, 3]));
    assert_eq!(numbers(&head.scores(&hidden(3))?), [0.0; 3]);
    let variables = vs.variables();
    set(&variables["weight"], &Tensor::from_slice2(&[[2.0_f32, -1.0]]));
    set(&variables["bias"], &Tensor::from_slice(&[0.5_f32]));
    assert_eq!(numbers(&head.scores(&hidden(3))?), [2.5, 4.25, -2.5]);
    let scores = head.pair_scores(&hidden(2), &hidden(2).flip([0]))?;
    assert_eq!((scores.members(), numbers(&scores.margins())), (1, vec![-1.75, 1.75]));
    Ok(())
}

/// r_m = w_m·tanh(A_m x + b_m), by hand.
#[test]
fn an_ensemble_head_is_its_equation() -> Result<()> {
    const MEMBERS: usize = 3;
    const FEATURES: usize = 4;
    let vs = nn::VarStore::new(Device::Cpu);
    let head = EnsembleHead::new(&vs.root(), 2, MEMBERS as i64, FEATURES as i64);
    assert_eq!(head.members(), 3);
    assert_eq!(numbers(&head.scores(&hidden(4))?), [0.0; 12], "starts indifferent");
    let variables = vs.variables();
    let readout: Vec<f32> = (0..12).map(|i| 0.25 * i as f32 - 1.0).collect();
    let readout = Tensor::from_slice(&readout).view([3, 4]);
    set(&variables["readout"], &readout);
    let [a, b, w, x] = [&variables["features.weight"], &variables["features.bias"], &readout, &hidden(4)].map(numbers);
    let feature = |m: usize, f: usize, row: usize| {
        let unit = m * FEATURES + f;
        (a[2 * unit] * x[2 * row] + a[2 * unit + 1] * x[2 * row + 1] + b[unit]).tanh()
    };
    let score = |m: usize, row: usize| (0..FEATURES).map(|f| w[m * FEATURES + f] * feature(m, f, row)).sum::<f64>();
    let expected: Vec<f64> =
        (0..MEMBERS).flat_map(|m| (0..4).map(move |row| (m, row))).map(|(m, row)| score(m, row)).collect();
    let scores = head.scores(&hidden(4))?;
    assert_eq!(scores.size(), [3, 4]);
    all_close(&numbers(&scores), &expected, 1e-6, "scores");
    Ok(())
}

#[test]
fn members_do_not_learn_from_each_other() -> Result<()> {
    let vs = nn::VarStore::new(Device::Cpu);
    let head = EnsembleHead::new(&vs.root(), 2, 3, 4);
    let variables = vs.variables();
    set(&variables["readout"], &variables["readout"].ones_like());
    head.scores(&hidden(4))?.get(1).sum(Kind::Float).backward();
    let of_member = |name: &str| {
        numbers(&variables[name].grad().view([3, -1]).abs().sum_dim_intlist([1].as_slice(), false, Kind::Double))
    };
    for name in ["features.weight", "features.bias", "readout"] {
        let moved = of_member(name);
        assert!(moved[0] == 0.0 && moved[1] > 0.0 && moved[2] == 0.0, "{name}: {moved:?}");
    }
    Ok(())
}

#[test]
fn bradley_terry_is_its_equation() -> Result<()> {
    for centring in [0.0, 0.3] {
        let columns = Columns::random(4, 3, 5);
        let [chosen, rejected] = [&columns.chosen_scores, &columns.rejected_scores].map(|s| Tensor::from_slice2(s));
        let scores = RewardScores::new(chosen.shallow_clone(), rejected.shallow_clone())?;
        let margin = [0.5, -1.0, 0.0, 2.0];
        for target in [None, Some(margin)] {
            let batch = RewardBatch::new(RewardScores::new(chosen.shallow_clone(), rejected.shallow_clone())?);
            let batch = match target {
                Some(margin) => batch.with_margin(Tensor::from_slice(&margin))?,
                None => batch,
            };
            let of = |m: usize, i: usize| {
                let (w, l) = (columns.chosen_scores[m][i], columns.rejected_scores[m][i]);
                -oracle::log_sigmoid(w - l - target.map_or(0.0, |t| t[i])) + centring * (w + l).powi(2)
            };
            let expected: Vec<f64> = (0..4).map(|i| oracle::mean((0..3).map(|m| of(m, i)))).collect();
            let objective = BradleyTerry::new(centring)?;
            all_close(&numbers(&objective.per_pair(&batch)?), &expected, 1e-13, "losses");
            close(number(&objective.mean(&batch)?), oracle::mean(expected.into_iter()), 1e-13, 0.0, "mean");
        }
        assert_eq!(scores.members(), 3);
    }
    Ok(())
}

/// Scores as free numbers: two responses, of which the first always wins.
fn fitted(centring: f64, margin: f64, start: f64) -> Result<(Vec<f64>, prefopt::diagnostics::Metrics)> {
    let leaf = Tensor::from_slice(&[start, start]).set_requires_grad(true);
    let free = leaf.shallow_clone();
    let forward = move |(): &()| {
        let scores = RewardScores::single(&free.narrow(0, 0, 1), &free.narrow(0, 1, 1))?;
        RewardBatch::new(scores).with_margin(Tensor::from_slice(&[margin]))
    };
    let descent = Descent::new(AdamW::new(vec![leaf.shallow_clone()], AdamWConfig::default())?, 0.05)?;
    let mut trainer = RewardTrainer::new(BradleyTerry::new(centring)?, forward, descent);
    trainer.fit(std::iter::repeat_n((), 300), &mut [])?;
    let metrics = trainer.evaluate(&())?;
    Ok((numbers(&leaf), metrics))
}

#[test]
fn centring_pulls_the_level_to_zero_and_a_margin_widens_the_gap() -> Result<()> {
    let ((free, _), (centred, metrics)) = (fitted(0.0, 0.0, 3.0)?, fitted(1.0, 0.0, 3.0)?);
    close(free[0] + free[1], 6.0, 1e-9, 0.0, "nothing fixes the level");
    assert!((centred[0] + centred[1]).abs() < 1e-3 && centred[0] > centred[1], "{centred:?}");
    assert_eq!(metrics.get("eval_accuracy"), Some(1.0));
    let loss = metrics.get("eval_loss").expect("measured");
    close(loss, -oracle::log_sigmoid(centred[0] - centred[1]) + (centred[0] + centred[1]).powi(2), 1e-12, 0.0, "loss");
    let (wide, _) = fitted(1.0, 4.0, 3.0)?;
    assert!(wide[0] - wide[1] > centred[0] - centred[1] + 1.0);
    Ok(())
}

/// A family on a separable toy: every member ranks every pair right.
#[test]
fn a_family_learns_what_can_be_separated() -> Result<()> {
    prefopt::tch::manual_seed(3);
    let vs = nn::VarStore::new(Device::Cpu);
    let head = EnsembleHead::new(&vs.root(), 3, 4, 8);
    let optimizer = AdamW::new(vs.trainable_variables(), AdamWConfig::default())?;
    let forward =
        move |(chosen, rejected): &(Tensor, Tensor)| Ok(RewardBatch::new(head.pair_scores(chosen, rejected)?));
    let mut trainer = RewardTrainer::new(BradleyTerry::new(0.01)?, forward, Descent::new(optimizer, 0.03)?);
    let noise = Tensor::randn([2, 64, 3], (Kind::Float, Device::Cpu));
    // The truth is the first coordinate, on which the chosen response is better by at least 1.
    let shift = Tensor::from_slice(&[3.0_f32, 0.0, 0.0]);
    let (chosen, rejected) = (noise.get(0).tanh() + &shift, noise.get(1).tanh());
    let data = || (chosen.shallow_clone(), rejected.shallow_clone());
    let before = trainer.evaluate(&data())?;
    assert_eq!([before.get("eval_accuracy"), before.get("eval_margin")], [Some(0.5), Some(0.0)]);
    let last = trainer.fit((0..150).map(|_| data()), &mut [])?.expect("took steps");
    assert_eq!((last.step, last.metrics.get("accuracy")), (150, Some(1.0)));
    assert!(last.loss < 0.1, "{last:?}");
    Ok(())
}
