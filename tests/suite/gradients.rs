//! Every row's gradient against central differences of its oracle, and where no gradient may arrive.

use prefopt::{
    PreferenceBatch, PreferenceLoss, Result,
    loss::{Dpo, Ipo, PessimisticDistillation, RewardDistillation},
    tch::{Device, Kind, Tensor},
};

use crate::{
    all_close,
    columns::{Built, Columns},
    numbers, oracle,
    table::{BETA, Row, table},
};

/// The gradient at every number of the policy, 0 where none arrived.
fn gradient(built: &Built) -> Vec<f64> {
    let of = |leaf: &Tensor| if leaf.grad().defined() { leaf.grad() } else { leaf.zeros_like() };
    built.policy.iter().flat_map(|leaf| numbers(&of(leaf))).collect()
}

/// (f(x + δ) − f(x − δ)) / 2δ of the mean loss, at each number of the policy.
fn central_differences(row: &Row, columns: &Columns) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let at = |index: usize, step: f64| {
        let mut moved = columns.clone();
        *moved.policy()[index] += step;
        moved.mean(&(row.oracle)(&moved))
    };
    let count = columns.clone().policy().len();
    (0..count).map(|i| (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP)).collect()
}

/// Of the mean and not of each pair: the weights of the hull and the choice of a member are held fixed inside a loss, which is
/// right for the minimised mean only (Danskin's theorem).
#[test]
fn equal_central_differences() -> Result<()> {
    for row in table()?.iter().filter(|row| !row.surrogate) {
        for seed in 100..110 {
            let columns = Columns::random(4, row.members, seed);
            for columns in [columns.clone(), columns.unweighted()] {
                let built = columns.build(Kind::Double, Device::Cpu)?;
                row.loss.mean(&built.batch)?.backward();
                all_close(&gradient(&built), &central_differences(row, &columns), 1e-7, row.name);
            }
        }
    }
    Ok(())
}

/// Catches a table whose columns no loss would read: the test above would then compare zeros.
#[test]
fn every_loss_moves_the_policy() -> Result<()> {
    for row in table()? {
        let built = Columns::random(4, row.members, 5).build(Kind::Double, Device::Cpu)?;
        row.loss.mean(&built.batch)?.backward();
        assert!(gradient(&built).iter().any(|g| g.abs() > 1e-3), "{}", row.name);
    }
    Ok(())
}

#[test]
fn none_arrives_at_the_data() -> Result<()> {
    for row in table()? {
        let built = Columns::random(4, row.members, 6).build(Kind::Double, Device::Cpu)?;
        row.loss.mean(&built.batch)?.backward();
        for (name, leaf) in &built.data {
            assert!(leaf.requires_grad() && !leaf.grad().defined(), "{} sent a gradient to {name}", row.name);
        }
    }
    Ok(())
}

#[test]
fn scores_keep_theirs_outside_a_batch() -> Result<()> {
    let built = Columns::random(4, 2, 7).build(Kind::Double, Device::Cpu)?;
    let [chosen, rejected] = [2, 3].map(|i| built.data[i].1.shallow_clone());
    prefopt::RewardScores::new(chosen, rejected)?.margins().sum(Kind::Double).backward();
    assert_eq!(numbers(&built.data[2].1.grad()), [1.0; 8]);
    assert_eq!(numbers(&built.data[3].1.grad()), [-1.0; 8]);
    Ok(())
}

/// ∂L/∂log π(y_w) = −2β(Δr − βh), and its opposite at the rejected response.
#[test]
fn of_distillation_is_minus_two_beta_the_residual() -> Result<()> {
    let columns = Columns::random(6, 1, 8).unweighted();
    let built = columns.build(Kind::Double, Device::Cpu)?;
    RewardDistillation::new(BETA)?.per_pair(&built.batch)?.sum(Kind::Double).backward();
    let margins = columns.reward_margins();
    let expected: Vec<f64> = (0..6).map(|i| -2.0 * BETA * (margins[0][i] - BETA * columns.h()[i])).collect();
    all_close(&numbers(&built.policy[0].grad()), &expected, 1e-12, "chosen");
    let opposite: Vec<f64> = expected.iter().map(|g| -g).collect();
    all_close(&numbers(&built.policy[1].grad()), &opposite, 1e-12, "rejected");
    Ok(())
}

/// −βσ(−βh) at the chosen response, finite and right where σ itself is 0 or 1 in f32.
#[test]
fn of_dpo_is_a_sigmoid_far_out() -> Result<()> {
    let margins = [-4e4, -400.0, 0.0, 400.0, 4e4];
    let columns = Columns::random(5, 1, 8).unweighted().with_margins(&margins);
    let built = columns.build(Kind::Float, Device::Cpu)?;
    Dpo::new(BETA)?.per_pair(&built.batch)?.sum(Kind::Float).backward();
    let expected = margins.map(|h| -BETA * oracle::sigmoid(-BETA * h));
    all_close(&numbers(&built.policy[0].grad()), &expected, 1e-7, "chosen");
    Ok(())
}

#[test]
fn none_flows_through_a_weight() -> Result<()> {
    let columns = Columns::random(4, 1, 9).unweighted();
    let weight = |batch: &PreferenceBatch| batch.logps().chosen_log_ratio().sigmoid();
    let (plain, weighted) = (columns.build(Kind::Double, Device::Cpu)?, columns.build(Kind::Double, Device::Cpu)?);
    let by_hand = Ipo::new(0.3)?.per_pair(&plain.batch)? * weight(&plain.batch).detach();
    by_hand.sum(Kind::Double).backward();
    Ipo::new(0.3)?.weighted_by(weight).per_pair(&weighted.batch)?.sum(Kind::Double).backward();
    all_close(&gradient(&weighted), &gradient(&plain), 1e-14, "weighted");
    Ok(())
}

/// A tie's gradient goes to one member: an even split would leave the same sum here only because the members are equal, so
/// two different members at equal distance on both sides are taken.
#[test]
fn of_a_tie_goes_to_one_member() -> Result<()> {
    use prefopt::loss::Minimum;
    let columns =
        Columns::random(1, 2, 10).unweighted().with_margins(&[0.0]).with_reward_margins(&[vec![1.0], vec![-1.0]]);
    for minimum in [Minimum::Batch, Minimum::Pair] {
        let built = columns.build(Kind::Double, Device::Cpu)?;
        PessimisticDistillation::new(BETA)?.with_minimum(minimum).mean(&built.batch)?.backward();
        let found = numbers(&built.policy[0].grad())[0];
        assert_eq!(found.abs(), 2.0 * BETA, "{minimum:?}");
    }
    Ok(())
}
