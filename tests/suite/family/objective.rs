//! Bradley–Terry with soft labels and member weights.

use prefopt::{
    Result, RewardScores,
    reward::{BradleyTerry, RewardBatch, RewardObjective, WithLikelihood},
    tch::{Device, Kind, Tensor},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    case::{Built, Case, MEMBERS, PAIRS},
    refused,
};
use crate::{all_close, close, columns::Columns, number, numbers, oracle};

fn gradient(scores: &[Tensor; 2]) -> Vec<f64> {
    scores.iter().flat_map(|leaf| numbers(&leaf.grad())).collect()
}

#[test]
fn it_is_its_equation_under_any_columns() -> Result<()> {
    for (seed, centring) in [(1, 0.0), (2, 0.3)] {
        let objective = BradleyTerry::new(centring)?;
        for case in Case::each(seed) {
            let Built { batch, scores, data } = case.build()?;
            all_close(&numbers(&objective.per_pair(&batch)?), &case.losses(centring), 1e-13, "losses");
            let mean = objective.mean(&batch)?;
            close(number(&mean), case.mean(centring), 1e-13, 0.0, "mean");
            mean.backward();
            all_close(&gradient(&scores), &case.central_differences(centring), 1e-8, "gradient");
            assert!(data.iter().all(|column| column.requires_grad() && !column.grad().defined()));
        }
    }
    Ok(())
}

/// Bit for bit, in both kinds: what trained before must train alike.
#[test]
fn without_columns_nothing_has_changed() -> Result<()> {
    for kind in [Kind::Float, Kind::Double] {
        let [chosen, rejected] = Case::bare(3).scores.map(|scores| Tensor::from_slice2(&scores).to_kind(kind));
        let centring = (&chosen + &rejected).square() * 0.3;
        let before = (centring - (&chosen - &rejected).log_sigmoid()).mean_dim([0].as_slice(), false, kind);
        let batch = RewardBatch::new(RewardScores::new(chosen, rejected)?);
        assert_eq!(numbers(&BradleyTerry::new(0.3)?.per_pair(&batch)?), numbers(&before));
        assert!(batch.soft_labels().is_none() && batch.member_weights().is_none());
    }
    Ok(())
}

#[test]
fn labels_and_weights_of_one_change_nothing() -> Result<()> {
    let objective = BradleyTerry::new(0.3)?;
    let of = |case: &Case| -> Result<[Vec<f64>; 2]> {
        let built = case.build()?;
        objective.mean(&built.batch)?.backward();
        Ok([numbers(&objective.per_pair(&built.batch)?), gradient(&built.scores)])
    };
    let plain = Case { labels: None, weights: None, ..Case::whole(4) };
    let hard = Case { labels: Some(vec![1.0; PAIRS]), ..plain.clone() };
    let equal = Case { weights: Some(vec![vec![1.0; PAIRS]; MEMBERS]), ..plain.clone() };
    assert_eq!(of(&hard)?, of(&plain)?);
    assert_eq!(of(&equal)?, of(&plain)?);
    let batch = Case::whole(4).build()?.batch;
    assert_eq!(batch.soft_labels().map(numbers), Case::whole(4).labels);
    assert_eq!(batch.member_weights().map(numbers), Case::whole(4).weights.map(|weights| weights.concat()));
    Ok(())
}

/// 1 − ε is cDPO's smoothing, on scores in place of log-ratios.
#[test]
fn a_constant_label_is_label_smoothing() -> Result<()> {
    let case = Case { labels: Some(vec![0.875; PAIRS]), ..Case::bare(5) };
    let found = numbers(&BradleyTerry::new(0.0)?.per_pair(&case.build()?.batch)?);
    let [chosen, rejected] = &case.scores;
    let of = |pair: usize| {
        oracle::mean((0..MEMBERS).map(|member| oracle::dpo(chosen[member][pair] - rejected[member][pair], 0.125)))
    };
    all_close(&found, &(0..PAIRS).map(of).collect::<Vec<_>>(), 1e-14, "losses");
    Ok(())
}

#[test]
fn which_response_is_called_chosen_does_not_matter() -> Result<()> {
    let (case, objective) = (Case::whole(6), BradleyTerry::new(0.3)?);
    let [chosen, rejected] = case.scores.clone();
    let swapped = Case {
        scores: [rejected, chosen],
        margin: case.margin.clone().map(|margin| margin.iter().map(|m| -m).collect()),
        labels: case.labels.clone().map(|labels| labels.iter().map(|p| 1.0 - p).collect()),
        ..case.clone()
    };
    let of = |case: &Case| Ok::<_, prefopt::Error>(numbers(&objective.per_pair(&case.build()?.batch)?));
    all_close(&of(&swapped)?, &of(&case)?, 1e-14, "swapped");
    Ok(())
}

/// At Δr = m + log(p/(1 − p)) nothing pulls; beside it, towards it.
#[test]
fn its_minimiser_is_the_margin_and_the_labels_logit() -> Result<()> {
    let (labels, margin) = ([0.1_f64, 0.5, 0.8], [0.0, -1.0, 2.0]);
    for (offset, sign) in [(0.0, 0.0), (0.5, 1.0), (-0.5, -1.0)] {
        let best: Vec<f64> = (0..3).map(|i| margin[i] + (labels[i] / (1.0 - labels[i])).ln() + offset).collect();
        let chosen = Tensor::from_slice(&best).set_requires_grad(true);
        let batch = RewardBatch::new(RewardScores::single(&chosen, &chosen.detach().zeros_like())?)
            .with_margin(Tensor::from_slice(&margin))?
            .with_soft_labels(Tensor::from_slice(&labels))?;
        BradleyTerry::new(0.0)?.mean(&batch)?.backward();
        for slope in numbers(&chosen.grad()) {
            assert!(if sign == 0.0 { slope.abs() < 1e-15 } else { slope * sign > 0.01 }, "{slope} at {offset}");
        }
    }
    Ok(())
}

/// σ(Δr) is 0 or 1 in f32 there, and its logarithm infinite.
#[test]
fn certain_models_have_finite_losses_and_slopes() -> Result<()> {
    let chosen = Tensor::from_slice(&[1e4_f32, -1e4]).set_requires_grad(true);
    let batch = RewardBatch::new(RewardScores::single(&chosen, &chosen.detach().zeros_like())?)
        .with_soft_labels(Tensor::from_slice(&[0.75_f32; 2]))?;
    let losses = BradleyTerry::new(0.0)?.per_pair(&batch)?;
    assert_eq!(numbers(&losses), [2500.0, 7500.0]);
    losses.sum(Kind::Float).backward();
    assert_eq!(numbers(&chosen.grad()), [0.25, -0.75]);
    Ok(())
}

/// How often each pair was drawn, as weights of the data's own scores, is each member's loss on the pairs that it drew.
#[test]
fn counts_are_the_loss_on_the_resamples() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let objective = BradleyTerry::new(0.3)?;
    let drawn: Vec<Vec<i64>> =
        (0..MEMBERS).map(|_| (0..PAIRS).map(|_| rng.random_range(0..PAIRS as i64)).collect()).collect();
    let count = |of: &Vec<i64>| {
        (0..PAIRS as i64).map(|pair| of.iter().filter(|&&i| i == pair).count() as f64).collect::<Vec<_>>()
    };
    let whole = Case { weights: Some(drawn.iter().map(count).collect()), ..Case::whole(7) };
    let plain = Case { weights: None, ..whole.clone() }.build()?.batch;
    let of_member = |(member, drawn): (usize, &Vec<i64>)| -> Result<f64> {
        let index = Tensor::from_slice(drawn);
        let scores = plain.scores().member(member as i64)?;
        let at = |column: Option<&Tensor>| column.expect("has it").index_select(0, &index);
        let [chosen, rejected] = [scores.chosen(), scores.rejected()].map(|side| side.index_select(1, &index));
        let batch = RewardBatch::new(RewardScores::new(chosen, rejected)?)
            .with_margin(at(plain.margin()))?
            .with_soft_labels(at(plain.soft_labels()))?;
        Ok(number(&objective.mean(&batch)?))
    };
    let members = drawn.iter().enumerate().map(of_member).collect::<Result<Vec<_>>>()?;
    let mean = number(&objective.mean(&whole.build()?.batch)?);
    close(mean, oracle::mean(members.into_iter()), 1e-13, 0.0, "mean");
    Ok(())
}

#[test]
fn a_pair_that_a_member_did_not_draw_does_not_move_it() -> Result<()> {
    let case = Case::partly_drawn(8);
    let built = case.build()?;
    BradleyTerry::new(0.3)?.mean(&built.batch)?.backward();
    let weights = case.weights.expect("has weights").concat();
    for (index, slope) in gradient(&built.scores).into_iter().enumerate() {
        assert_eq!(slope == 0.0, weights[index % weights.len()] == 0.0, "{index}: {slope}");
    }
    Ok(())
}

#[test]
fn a_likelihood_beside_it_is_not_weighted() -> Result<()> {
    let objective = BradleyTerry::new(0.3)?;
    let case = Case::whole(9);
    let logps = Columns::random(PAIRS, 1, 9).chosen;
    let batch = case.build()?.batch.with_chosen_logps(Tensor::from_slice(&logps))?;
    let expected: Vec<f64> = case.losses(0.3).iter().zip(&logps).map(|(loss, logp)| loss - 0.5 * logp).collect();
    all_close(&numbers(&WithLikelihood::new(objective, 0.5)?.per_pair(&batch)?), &expected, 1e-13, "losses");
    Ok(())
}

#[test]
fn columns_that_do_not_fit_are_refused() -> Result<()> {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    let batch = || RewardScores::new(zeros(&[2, 3]), zeros(&[2, 3])).map(RewardBatch::new);
    let labels = |tensor: Tensor| batch().and_then(|batch| batch.with_soft_labels(tensor));
    let weights = |tensor: Tensor| batch().and_then(|batch| batch.with_member_weights(tensor));
    let row = |x: [f64; 3]| Tensor::from_slice(&x);

    refused(labels(zeros(&[3, 1])), "soft_labels must have shape [batch], got [3, 1]");
    refused(labels(zeros(&[2])), "soft_labels must have shape [batch] with batch = 3, got batch = 2");
    let narrow = zeros(&[3]).to_kind(Kind::Float);
    refused(labels(narrow), "soft_labels must be Double like the rest of its batch, got Float");
    refused(labels(row([0.0, 1.0, 1.5])), "soft_labels[2] must be in [0, 1], got 1.5");
    refused(labels(row([0.0, -0.5, 1.0])), "soft_labels[1] must be in [0, 1], got -0.5");
    refused(labels(row([f64::NAN, 1.0, 1.0])), "soft_labels[0] must be in [0, 1], got NaN");

    refused(weights(zeros(&[3])), "member_weights must have shape [members, batch], got [3]");
    let shape = "member_weights must have shape [members, batch] with";
    refused(weights(zeros(&[1, 3])), &format!("{shape} members = 2, got members = 1"));
    refused(weights(zeros(&[2, 1])), &format!("{shape} batch = 3, got batch = 1"));
    let narrow = zeros(&[2, 3]).to_kind(Kind::Float);
    refused(weights(narrow), "member_weights must be Double like the rest of its batch, got Float");
    let at = |row: [f64; 3]| weights(Tensor::from_slice2(&[[1.0; 3], row]));
    refused(at([1.0, -1.0, 1.0]), "member_weights[4] must be at least 0 and finite, got -1");
    refused(at([1.0, 1.0, f64::INFINITY]), "member_weights[5] must be at least 0 and finite, got inf");
    refused(at([f64::NAN, 1.0, 1.0]), "member_weights[3] must be at least 0 and finite, got NaN");
    // A member that drew none of a batch's pairs is no fault of the batch.
    assert!(at([0.0; 3]).is_ok() && weights(zeros(&[2, 3])).is_ok());
    Ok(())
}
