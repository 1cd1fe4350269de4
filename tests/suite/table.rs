//! The table: each loss beside its equation.

use prefopt::{
    PreferenceBatch, PreferenceLoss, Result,
    domain::MassPower,
    loss::{
        AlphaPo, ApoDown, ApoZero, Average, BcoPair, Contrast, Cpo, DiscoPop, Dpo, Drdo, ExoPair, FDivergence,
        ForwardKl, Hinge, Ipo, Likelihood, MarginLoss, Minimum, NcaPair, OddsRatio, PairWeight,
        PessimisticDistillation, ProbabilityMatching, ReverseKl, RewardDistillation, RobustDpo, Sft, SimPo, Spo, Sppo,
        Spread, UncertaintyPenalised, UncertaintyWeighted, from_fn,
    },
};

use crate::{columns::Columns, oracle, uncertainty::uncertainties};

/// A power of two, so that βh is exact in f32.
pub const BETA: f64 = 0.25;
const FLIP: f64 = 0.2;
const TAU: f64 = 0.3;
const GAMMA: f64 = 0.5;
const ALPHA: f64 = 0.5;
const MASS: f64 = 0.125;
const PESSIMISM: f64 = 0.5;
const TEMPERATURE: f64 = 1.5;

pub struct Row {
    pub name: &'static str,
    pub loss: Box<dyn PreferenceLoss>,
    /// Loss of each pair.
    pub oracle: fn(&Columns) -> Vec<f64>,
    /// Size of the family that the loss takes.
    pub members: usize,
    /// Whether |βh| = 1e4 has a finite answer in f32.
    pub extremes: bool,
    /// Added to |expected| in a relative comparison: 1 where the equation itself subtracts, near 0 where small values are exact.
    pub floor: f64,
    /// The column without which the loss refuses, and the name under which it does.
    pub needs: Option<(&'static str, &'static str)>,
    /// Whether the gradient is by design not that of the value (a detached weight, a score function): then it has a test of its own.
    pub surrogate: bool,
}

const ALONE: usize = 1;
const FAMILY: usize = 3;
const EXACT: f64 = 1e-30;

const LENGTHS: &str = "lengths";
const SCORES: &str = "rewards";
const LABELS: &str = "soft_labels";
const SAMPLES: &str = "reference_samples";
const OWN: &str = "policy_samples";
const ALL: &str = "all_responses";

fn row(name: &'static str, loss: impl PreferenceLoss + 'static, oracle: fn(&Columns) -> Vec<f64>) -> Row {
    Row {
        name,
        loss: Box::new(loss),
        oracle,
        members: FAMILY,
        extremes: true,
        floor: 1.0,
        needs: None,
        surrogate: false,
    }
}

impl Row {
    fn exact(self) -> Self {
        Self { floor: EXACT, ..self }
    }

    fn alone(self) -> Self {
        Self { members: ALONE, ..self }
    }

    fn without_extremes(self) -> Self {
        Self { extremes: false, ..self }
    }

    fn surrogate(self) -> Self {
        Self { surrogate: true, ..self }
    }

    fn needs(self, column: &'static str, loss: &'static str) -> Self {
        Self { needs: Some((column, loss)), ..self }
    }
}

pub fn table() -> Result<Vec<Row>> {
    let ensemble = PessimisticDistillation::new(BETA)?;
    let first_margin = |batch: &PreferenceBatch| batch.rewards().expect("has scores").margins().select(0, 0).abs();
    let printed = Drdo::new().with_contrast_weight(0.75)?.with_focus(0.5)?;
    let printed = printed.with_contrast(Contrast::Printed).with_likelihood(Likelihood::Sum);
    let likelihood = from_fn(|batch: &PreferenceBatch| Ok(-batch.logps().chosen()));
    Ok(vec![
        row("dpo", Dpo::new(BETA)?, |c| each(c, |_, bh| oracle::dpo(bh, 0.0))).exact(),
        row("cdpo", Dpo::new(BETA)?.with_flip_rate(FLIP)?, |c| each(c, |_, bh| oracle::dpo(bh, FLIP))).exact(),
        row("robust dpo", RobustDpo::new(BETA, FLIP)?, |c| each(c, |_, bh| oracle::robust_dpo(bh, FLIP))),
        row("ipo", Ipo::new(TAU)?, |c| each(c, |_, bh| oracle::ipo(bh / BETA, TAU))),
        row("hinge", Hinge::new(BETA)?, |c| each(c, |_, bh| oracle::hinge(bh))).exact(),
        row("d-dpo", RewardDistillation::new(BETA)?, |c| d_dpo(c, 0))
            .exact()
            .alone()
            .needs(SCORES, "RewardDistillation"),
        row("matching of rewards", ProbabilityMatching::to_rewards(BETA)?, |c| {
            let margins = c.reward_margins();
            let p = |i: usize, sign: f64| oracle::sigmoid(sign * margins[0][i]);
            each(c, |i, bh| oracle::matching(p(i, 1.0), p(i, -1.0), bh))
        })
        .alone()
        .needs(SCORES, "ProbabilityMatching"),
        row("matching of soft labels", ProbabilityMatching::to_soft_labels(BETA)?, |c| {
            each(c, |i, bh| oracle::matching(c.soft_labels[i], 1.0 - c.soft_labels[i], bh))
        })
        .needs(LABELS, "ProbabilityMatching"),
        row("e-dpo, batch", ensemble, |c| {
            let members: Vec<_> = (0..c.chosen_scores.len()).map(|m| d_dpo(c, m)).collect();
            members.into_iter().min_by(|a, b| c.mean(a).total_cmp(&c.mean(b))).expect("a member")
        })
        .exact()
        .needs(SCORES, "PessimisticDistillation"),
        row("e-dpo, pair", ensemble.with_minimum(Minimum::Pair), |c| {
            let members: Vec<_> = (0..c.chosen_scores.len()).map(|m| d_dpo(c, m)).collect();
            (0..c.len()).map(|i| members.iter().map(|m| m[i]).fold(f64::INFINITY, f64::min)).collect()
        })
        .exact()
        .needs(SCORES, "PessimisticDistillation"),
        row("e-dpo, dataset", ensemble.with_minimum(Minimum::Dataset { member: 2 }), |c| d_dpo(c, 2))
            .exact()
            .needs(SCORES, "PessimisticDistillation"),
        row("e-dpo, hull", ensemble.with_minimum(Minimum::Hull), |c| {
            let residuals = residuals(c);
            oracle::mix(&residuals, &oracle::hull_weights(&residuals, &c.weights)).iter().map(|r| r * r).collect()
        })
        .needs(SCORES, "PessimisticDistillation"),
        row("updpo, responses", UncertaintyPenalised::new(BETA, PESSIMISM)?, |c| {
            let [chosen, rejected, _] = uncertainties(c);
            each(c, |i, bh| oracle::dpo(bh + PESSIMISM * (chosen[i] - rejected[i]), 0.0))
        })
        .exact()
        .needs(SCORES, "UncertaintyPenalised"),
        row("updpo, margin", UncertaintyPenalised::new(BETA, PESSIMISM)?.with_spread(Spread::Margin), |c| {
            let [_, _, margin] = uncertainties(c);
            each(c, |i, bh| oracle::dpo(bh + PESSIMISM * margin[i], 0.0))
        })
        .exact()
        .needs(SCORES, "UncertaintyPenalised"),
        row("uncertainty-weighted dpo, margin", UncertaintyWeighted::new(Dpo::new(BETA)?, TEMPERATURE)?, |c| {
            let [_, _, margin] = uncertainties(c);
            each(c, |i, bh| (-margin[i] / TEMPERATURE).exp() * oracle::dpo(bh, 0.0))
        })
        .exact()
        .needs(SCORES, "UncertaintyWeighted"),
        row(
            "uncertainty-weighted ipo, responses",
            UncertaintyWeighted::new(Ipo::new(TAU)?, TEMPERATURE)?.with_spread(Spread::Responses),
            |c| {
                let [chosen, rejected, _] = uncertainties(c);
                each(c, |i, bh| (-(chosen[i] + rejected[i]) / TEMPERATURE).exp() * oracle::ipo(bh / BETA, TAU))
            },
        )
        .needs(SCORES, "UncertaintyWeighted"),
        row("drdo", Drdo::new(), |c| drdo(c, Likelihood::TokenMean, 0.1, 2.0, 1.0)).alone().needs(SCORES, "Drdo"),
        row("drdo, printed, sums", printed, |c| drdo(c, Likelihood::Sum, 0.75, 0.5, -1.0))
            .alone()
            .needs(SCORES, "Drdo"),
        row("spo", Spo::new(ALPHA)?, |c| spo(c, 0.0)).exact(),
        // The mass of a chosen response of +4e4 nats overflows.
        row("spo by mass", Spo::new(ALPHA)?.with_pair_weight(PairWeight::Mass { power: MassPower::new(MASS)? }), |c| {
            spo(c, MASS)
        })
        .exact()
        .without_extremes()
        .surrogate(),
        row("reverse kl, exact", ReverseKl::Exact, reverse_kl).needs(ALL, "ReverseKl::Exact"),
        row("reverse kl, samples", ReverseKl::PolicySamples, |c| {
            rows(&c.own).map(|(policy, reference)| oracle::k1(policy, reference)).collect()
        })
        .surrogate()
        .needs(OWN, "ReverseKl::PolicySamples"),
        row("spo with its divergence", Spo::new(ALPHA)?.plus(GAMMA, ReverseKl::Exact), |c| {
            spo(c, 0.0).iter().zip(reverse_kl(c)).map(|(l, kl)| l + GAMMA * kl).collect()
        })
        .needs(ALL, "ReverseKl::Exact"),
        row("exo", ExoPair::new(BETA, FLIP)?, |c| each(c, |_, bh| oracle::exo(bh, FLIP))),
        row("nca", NcaPair::new(BETA)?, |c| both(c, |w, l| oracle::nca(BETA * w, BETA * l))),
        row("discopop", DiscoPop::new(BETA)?.with_temperature(0.5)?, |c| each(c, |_, bh| oracle::discopop(bh, 0.5))),
        row("sppo, hard", Sppo::hard(BETA)?, |c| both(c, |w, l| (w - 0.5 / BETA).powi(2) + (l + 0.5 / BETA).powi(2))),
        row("sppo, soft labels", Sppo::to_soft_labels(BETA)?, |c| {
            let target = |i: usize| (c.soft_labels[i] - 0.5) / BETA;
            let ratios = both(c, |w, _| w).into_iter().zip(both(c, |_, l| l));
            ratios.enumerate().map(|(i, (w, l))| (w - target(i)).powi(2) + (l + target(i)).powi(2)).collect()
        })
        .needs(LABELS, "Sppo"),
        row("sppo, win rates", Sppo::to_rewards(BETA)?, |c| {
            let target = |score: f64| (score - 0.5) / BETA;
            let ratios = both(c, |w, _| w).into_iter().zip(both(c, |_, l| l));
            let of = |(i, (w, l)): (usize, (f64, f64))| {
                (w - target(c.chosen_scores[0][i])).powi(2) + (l - target(c.rejected_scores[0][i])).powi(2)
            };
            ratios.enumerate().map(of).collect()
        })
        .alone()
        .needs(SCORES, "Sppo"),
        row("bco", BcoPair::new(BETA)?.with_shift(0.5)?, |c| {
            both(c, |w, l| oracle::dpo(BETA * w - 0.5, 0.0) + oracle::dpo(0.5 - BETA * l, 0.0))
        }),
        row("apo-zero", ApoZero::new(BETA)?, |c| {
            both(c, |w, l| oracle::sigmoid(-BETA * w) + oracle::sigmoid(BETA * l))
        }),
        row("apo-down", ApoDown::new(BETA)?, |c| {
            both(c, |w, l| oracle::sigmoid(BETA * w) + oracle::sigmoid(BETA * (l - w)))
        }),
        row("dpo under Jensen–Shannon", Dpo::new(BETA)?.under(FDivergence::JensenShannon), |c| {
            both(c, |w, l| oracle::dpo(BETA * (oracle::log_sigmoid(w) - oracle::log_sigmoid(l)), 0.0))
        }),
        // e^{−log-ratio} overflows by definition.
        row("hinge under forward kl", Hinge::new(BETA)?.under(FDivergence::ForwardKl), |c| {
            both(c, |w, l| oracle::hinge(BETA * ((-l).exp() - (-w).exp())))
        })
        .without_extremes(),
        row("dpo under an α-divergence", Dpo::new(BETA)?.under(FDivergence::alpha(0.5)?), |c| {
            let slope = |u: f64| -2.0 * (-0.5 * u).min(80.0).exp_m1();
            both(c, |w, l| oracle::dpo(BETA * (slope(w) - slope(l)), 0.0))
        }),
        row("dpo per token", Dpo::new(BETA)?.per_token(), |c| {
            let margin = |i: usize, w: f64, l: f64| w / c.lengths[0][i] as f64 - l / c.lengths[1][i] as f64;
            let ratios = both(c, |w, _| w).into_iter().zip(both(c, |_, l| l));
            ratios.enumerate().map(|(i, (w, l))| oracle::dpo(BETA * margin(i, w, l), 0.0)).collect()
        })
        .needs(LENGTHS, "per_token"),
        row("cpo", Cpo::new(BETA)?.with_flip_rate(FLIP)?, |c| {
            (0..c.len()).map(|i| oracle::dpo(BETA * (c.chosen[i] - c.rejected[i]), FLIP)).collect()
        }),
        row("simpo", SimPo::new(2.0, 0.5)?.with_flip_rate(FLIP)?, |c| {
            token_means(c, |w, l| oracle::dpo(2.0 * (w - l) - 0.5, FLIP))
        })
        .needs(LENGTHS, "SimPo"),
        // p^{−α} overflows by definition.
        row("alphapo", AlphaPo::new(2.0, 0.5, 0.25)?, |c| {
            let reward = |mean: f64| -4.0 * (-0.25 * mean).exp_m1();
            token_means(c, |w, l| oracle::dpo(2.0 * (reward(w) - reward(l)) - 0.5, 0.0))
        })
        .without_extremes()
        .needs(LENGTHS, "AlphaPo"),
        // Far out the "log-probabilities" are positive.
        row("odds ratio", OddsRatio, |c| {
            token_means(c, |w, l| oracle::dpo(oracle::log_odds(w) - oracle::log_odds(l), 0.0))
        })
        .without_extremes()
        .needs(LENGTHS, "OddsRatio"),
        row("sft over the batch", Sft::new(), |c| {
            let tokens: Vec<f64> = c.lengths[0].iter().map(|n| *n as f64).collect();
            let mean = c.mean(&tokens);
            c.chosen.iter().map(|logp| -logp / mean).collect()
        })
        .needs(LENGTHS, "Sft"),
        row("sft of each response", Sft::new().with_average(Average::Response), |c| token_means(c, |w, _| -w))
            .needs(LENGTHS, "Sft"),
        row("kl, exact", ForwardKl::Exact, exact_kl).needs(ALL, "ForwardKl::Exact"),
        row("kl, samples", ForwardKl::ReferenceSamples, sampled_kl).needs(SAMPLES, "ForwardKl::ReferenceSamples"),
        // e^{log-ratio} overflows by definition.
        row("kl, k3", ForwardKl::ReferenceSamplesK3, |c| {
            rows(&c.samples).map(|(policy, reference)| oracle::k3(reference, policy)).collect()
        })
        .without_extremes()
        .needs(SAMPLES, "ForwardKl::ReferenceSamplesK3"),
        row("kl, own responses", ForwardKl::OwnResponses, |c| {
            let ratio = |i: usize| c.chosen[i] - c.ref_chosen[i] + c.rejected[i] - c.ref_rejected[i];
            (0..c.len()).map(|i| -0.5 * ratio(i)).collect()
        }),
        row("p-dpo", Dpo::new(BETA)?.plus(GAMMA, ForwardKl::ReferenceSamples), |c| {
            let anchor = sampled_kl(c);
            each(c, |i, bh| oracle::dpo(bh, 0.0) + GAMMA * anchor[i])
        })
        .needs(SAMPLES, "ForwardKl::ReferenceSamples"),
        row("dp-dpo", RewardDistillation::new(BETA)?.plus(GAMMA, ForwardKl::Exact), |c| {
            let (base, anchor) = (d_dpo(c, 0), exact_kl(c));
            (0..c.len()).map(|i| base[i] + GAMMA * anchor[i]).collect()
        })
        .alone()
        .needs(ALL, "ForwardKl::Exact"),
        row("weighted ipo", Ipo::new(TAU)?.weighted_by(first_margin), |c| {
            each(c, |i, bh| c.reward_margins()[0][i].abs() * oracle::ipo(bh / BETA, TAU))
        }),
        row("likelihood from a closure", likelihood, |c| c.chosen.iter().map(|l| -l).collect()),
    ])
}

/// Loss of each pair from its index and βh.
fn each(c: &Columns, loss: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    c.h().iter().enumerate().map(|(i, h)| loss(i, BETA * h)).collect()
}

fn d_dpo(c: &Columns, member: usize) -> Vec<f64> {
    each(c, |i, bh| oracle::distillation(c.chosen_scores[member][i] - c.rejected_scores[member][i], bh))
}

/// Δr − βh, `[members][batch]`.
fn residuals(c: &Columns) -> Vec<Vec<f64>> {
    c.reward_margins().iter().map(|margins| each(c, |i, bh| margins[i] - bh)).collect()
}

fn rows(tables: &[Vec<Vec<f64>>; 2]) -> impl Iterator<Item = (&Vec<f64>, &Vec<f64>)> {
    tables[0].iter().zip(&tables[1])
}

fn exact_kl(c: &Columns) -> Vec<f64> {
    rows(&c.all).map(|(policy, reference)| oracle::kl(reference, policy)).collect()
}

fn sampled_kl(c: &Columns) -> Vec<f64> {
    rows(&c.samples).map(|(policy, reference)| oracle::k1(reference, policy)).collect()
}

fn drdo(c: &Columns, likelihood: Likelihood, alpha: f64, gamma: f64, sign: f64) -> Vec<f64> {
    let tokens = |side: usize, i: usize| if likelihood == Likelihood::Sum { 1.0 } else { c.lengths[side][i] as f64 };
    let residual = |i: usize| c.reward_margins()[0][i] - (c.student[0][i] - c.student[1][i]);
    let of = |i: usize| [c.chosen[i] / tokens(0, i), c.rejected[i] / tokens(1, i)];
    (0..c.len()).map(|i| oracle::drdo(residual(i), of(i), alpha, gamma, sign)).collect()
}

fn spo(c: &Columns, power: f64) -> Vec<f64> {
    (0..c.len()).map(|i| oracle::spo(c.chosen[i], c.rejected[i], ALPHA, power)).collect()
}

fn reverse_kl(c: &Columns) -> Vec<f64> {
    rows(&c.all).map(|(policy, reference)| oracle::kl(policy, reference)).collect()
}

/// Loss of each pair from the log-ratios of both responses.
fn both(c: &Columns, loss: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    (0..c.len()).map(|i| loss(c.chosen[i] - c.ref_chosen[i], c.rejected[i] - c.ref_rejected[i])).collect()
}

/// The same from the mean log-probabilities of their tokens.
fn token_means(c: &Columns, loss: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    (0..c.len()).map(|i| loss(c.chosen[i] / c.lengths[0][i] as f64, c.rejected[i] / c.lengths[1][i] as f64)).collect()
}
