//! TRL 1.16's own numbers: `tests/golden/trl.py` ran its code in float64, and wrote the values and gradients that are read here.

use std::{collections::HashMap, num::NonZeroU64, sync::LazyLock};

use serde::Deserialize;

use prefopt::{
    PairLogps, PreferenceBatch, PreferenceLoss, ResponseLengths, Result,
    logps::ResponseLogps,
    loss::{
        AlphaPo, Aot, AotUnpaired, ApoDown, ApoZero, BcoPair, Cpo, DiscoPop, Dpo, ExoPair, FDivergence, Hinge, Ipo,
        Kto, MarginLoss, NcaPair, OddsRatio, RobustDpo, Sft, SimPo, Sppo, UnpairedLoss, Wpo,
    },
    pairs::{TokenLogps, UnpairedBatch},
    tch::{Kind, Tensor},
    train::ReferenceUpdate,
};

use crate::{all_close, close, number, numbers};

static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/trl.json")).expect("what trl.py writes"));

#[derive(Deserialize)]
struct Golden {
    loss_types: Vec<String>,
    inputs: HashMap<String, Input>,
    cases: Vec<Case>,
    synchronised: Vec<Synchronised>,
}

/// Log-probabilities of pairs, and of their tokens, all chosen responses first.
#[derive(Deserialize)]
struct Input {
    chosen: Vec<f64>,
    rejected: Vec<f64>,
    ref_chosen: Vec<f64>,
    ref_rejected: Vec<f64>,
    chosen_lengths: Vec<i64>,
    rejected_lengths: Vec<i64>,
    tokens: Vec<Vec<f64>>,
    ref_tokens: Vec<Vec<f64>>,
    collision_tokens: Vec<Vec<f64>>,
}

#[derive(Debug, Deserialize)]
struct Case {
    trainer: String,
    name: String,
    numbers: Flags,
    input: String,
    /// Of each pair alone; absent where the pairs are coupled, and the gradients are those of the mean.
    per_pair: Option<Vec<Option<f64>>>,
    mean: Option<f64>,
    #[serde(default)]
    chosen_gradient: Vec<Option<f64>>,
    #[serde(default)]
    rejected_gradient: Vec<Option<f64>>,
    #[serde(default)]
    token_gradient: Vec<Vec<f64>>,
    #[serde(default)]
    mismatched: Vec<f64>,
    #[serde(default)]
    ref_mismatched: Vec<f64>,
}

/// TRL's flags by their names.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Flags {
    beta: f64,
    label_smoothing: f64,
    discopop_tau: f64,
    f_divergence_type: Option<String>,
    f_alpha_divergence_coef: f64,
    ld_alpha: Option<f64>,
    use_weighting: bool,
    loss_weights: Vec<f64>,
    loss_type: String,
    simpo_gamma: f64,
    alpha: f64,
    cpo_alpha: f64,
    tpo_l_gamma: f64,
    tpo_alpha: f64,
    desirable_weight: Option<f64>,
    undesirable_weight: Option<f64>,
}

#[derive(Deserialize)]
struct Synchronised {
    alpha: f64,
    policy: Vec<f64>,
    reference: Vec<f64>,
    after: Vec<f64>,
}

/// A batch, and the leaves of its sums.
struct Built {
    batch: PreferenceBatch,
    chosen: Tensor,
    rejected: Tensor,
}

impl Input {
    fn lengths(&self) -> Result<ResponseLengths> {
        ResponseLengths::new(Tensor::from_slice(&self.chosen_lengths), Tensor::from_slice(&self.rejected_lengths))
    }

    fn logps(&self) -> Result<(PairLogps, [Tensor; 2])> {
        let [chosen, rejected] =
            [&self.chosen, &self.rejected].map(|sums| Tensor::from_slice(sums).set_requires_grad(true));
        let [ref_chosen, ref_rejected] = [&self.ref_chosen, &self.ref_rejected].map(|sums| Tensor::from_slice(sums));
        let logps = PairLogps::new(chosen.shallow_clone(), rejected.shallow_clone(), ref_chosen, ref_rejected)?;
        Ok((logps, [chosen, rejected]))
    }

    fn built(&self) -> Result<Built> {
        let (logps, [chosen, rejected]) = self.logps()?;
        Ok(Built { batch: PreferenceBatch::new(logps).with_lengths(self.lengths()?)?, chosen, rejected })
    }

    /// Chosen and rejected responses of a table of tokens, `[2 · batch, time]`.
    fn sides(&self, policy: &Tensor) -> Result<[TokenLogps; 2]> {
        let (pairs, time) = (self.chosen.len() as i64, policy.size()[1]);
        let reference = Tensor::from_slice2(&self.ref_tokens);
        let positions = Tensor::arange(time, (Kind::Int64, policy.device())).unsqueeze(0);
        let side = |offset: i64, lengths: &[i64]| {
            let of = |table: &Tensor| table.narrow(0, offset, pairs);
            let response = positions.lt_tensor(&Tensor::from_slice(lengths).unsqueeze(1));
            TokenLogps::new(&of(policy), &of(&reference), response)
        };
        Ok([side(0, &self.chosen_lengths)?, side(pairs, &self.rejected_lengths)?])
    }

    fn policy_weights(&self) -> Result<Tensor> {
        let [chosen, rejected] = self.sides(&Tensor::from_slice2(&self.tokens))?;
        let collision = Tensor::from_slice2(&self.collision_tokens);
        let halves = collision.chunk(2, 0);
        Ok(chosen.policy_weight(&halves[0])? * rejected.policy_weight(&halves[1])?)
    }
}

impl Flags {
    fn divergence(&self) -> Result<FDivergence> {
        Ok(match self.f_divergence_type.as_deref() {
            None => FDivergence::ReverseKl,
            Some("forward_kl") => FDivergence::ForwardKl,
            Some("js_divergence") => FDivergence::JensenShannon,
            Some("alpha_divergence") => FDivergence::alpha(self.f_alpha_divergence_coef)?,
            Some(other) => panic!("no divergence for {other}"),
        })
    }
}

/// A loss of the margin alone, under the divergence of the flags.
fn of_margin(loss: impl MarginLoss + 'static, flags: &Flags) -> Result<Box<dyn PreferenceLoss>> {
    Ok(match flags.divergence()? {
        FDivergence::ReverseKl => Box::new(loss),
        divergence => Box::new(loss.under(divergence)),
    })
}

fn of_token_means(loss: impl MarginLoss + 'static, flags: &Flags) -> Result<Box<dyn PreferenceLoss>> {
    Ok(match flags.divergence()? {
        FDivergence::ReverseKl => Box::new(loss.per_token()),
        divergence => Box::new(loss.under(divergence).per_token()),
    })
}

/// What a `loss_type` of `DPOConfig` is called here.
fn dpo_loss(name: &str, flags: &Flags) -> Result<Box<dyn PreferenceLoss>> {
    let (beta, smoothing) = (flags.beta, flags.label_smoothing);
    Ok(match name {
        "sigmoid" => of_margin(Dpo::new(beta)?, flags)?,
        "hinge" => of_margin(Hinge::new(beta)?, flags)?,
        "ipo" => of_token_means(Ipo::new(beta)?, flags)?,
        "exo_pair" => of_margin(ExoPair::new(beta, smoothing)?, flags)?,
        "nca_pair" => Box::new(NcaPair::new(beta)?),
        "robust" => of_margin(RobustDpo::new(beta, smoothing)?, flags)?,
        "bco_pair" => Box::new(BcoPair::new(beta)?),
        "sppo_hard" => Box::new(Sppo::hard(beta)?),
        "aot" => Box::new(Aot::new(beta)?.with_flip_rate(smoothing)?),
        "aot_unpaired" => Box::new(AotUnpaired::new(beta)?.with_flip_rate(smoothing)?),
        "apo_zero" => Box::new(ApoZero::new(beta)?),
        "apo_down" => Box::new(ApoDown::new(beta)?),
        "discopop" => of_margin(DiscoPop::new(beta)?.with_temperature(flags.discopop_tau)?, flags)?,
        "sft" => Box::new(Sft::new()),
        "sigmoid_norm" => of_token_means(Dpo::new(beta)?, flags)?,
        "sigmoid+bco_pair+sft" => {
            let [first, second, third] = flags.loss_weights[..] else { panic!("three weights") };
            let (bco, sft) = (BcoPair::new(beta)?, Sft::new());
            let sum = Dpo::new(beta)?.plus(second / first, bco).plus(third / first, sft);
            Box::new(sum.weighted_by(move |batch| batch.logps().chosen().ones_like() * first))
        }
        other => panic!("no loss for {other}"),
    })
}

fn cpo_loss(flags: &Flags) -> Result<Box<dyn PreferenceLoss>> {
    let (beta, gamma, smoothing) = (flags.beta, flags.simpo_gamma, flags.label_smoothing);
    let contrast: Box<dyn PreferenceLoss> = match flags.loss_type.as_str() {
        "sigmoid" => Box::new(Cpo::new(beta)?.with_flip_rate(smoothing)?),
        "hinge" => Box::new(Hinge::new(beta)?),
        "ipo" => Box::new(Ipo::new(beta)?.per_token()),
        "simpo" if flags.alpha != 0.0 => Box::new(AlphaPo::new(beta, gamma, flags.alpha)?),
        "simpo" => Box::new(SimPo::new(beta, gamma)?.with_flip_rate(smoothing)?),
        other => panic!("no loss for {other}"),
    };
    Ok(if flags.cpo_alpha == 0.0 { contrast } else { Box::new(contrast.plus(flags.cpo_alpha, Sft::new())) })
}

fn tpo_loss(flags: &Flags) -> Result<Box<dyn PreferenceLoss>> {
    let beta = flags.beta;
    let contrast: Box<dyn PreferenceLoss> = match flags.loss_type.as_str() {
        "sigmoid" => Box::new(Cpo::new(beta)?.with_flip_rate(flags.label_smoothing)?),
        "hinge" => Box::new(Hinge::new(beta)?),
        "ipo" => Box::new(Ipo::new(beta)?.per_token()),
        "tpo-l" => Box::new(SimPo::new(beta, flags.tpo_l_gamma)?),
        other => panic!("no loss for {other}"),
    };
    Ok(if flags.tpo_alpha == 0.0 { contrast } else { Box::new(contrast.plus(flags.tpo_alpha, Sft::of_gold())) })
}

/// |found − expected| ≤ 1e-10 (|expected| + 1e-3).
#[track_caller]
fn agree(found: f64, expected: f64, what: impl std::fmt::Display) {
    close(found, expected, 1e-10, 1e-3, what);
}

/// Where TRL's number is finite; the rest is ours to say elsewhere.
#[track_caller]
fn all_agree(found: &[f64], expected: &[Option<f64>], what: &str, case: &Case) {
    assert_eq!(found.len(), expected.len(), "{what} of {case:?}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        if let Some(expected) = expected {
            agree(*found, *expected, format_args!("{what}[{i}] of {case:?}"));
        }
    }
}

/// The gradient that `backward` left, 0 where it left none.
fn gradient(leaf: &Tensor) -> Vec<f64> {
    if leaf.grad().defined() { numbers(&leaf.grad()) } else { vec![0.0; leaf.numel()] }
}

fn agrees(case: &Case, loss: &dyn PreferenceLoss, built: &Built) -> Result<()> {
    if let Some(mean) = case.mean {
        agree(number(&loss.mean(&built.batch)?), mean, format_args!("mean of {case:?}"));
    }
    match &case.per_pair {
        Some(per_pair) => {
            let losses = loss.per_pair(&built.batch)?;
            all_agree(&numbers(&losses), per_pair, "loss", case);
            losses.sum(Kind::Double).backward();
        }
        None => loss.mean(&built.batch)?.backward(),
    }
    all_agree(&gradient(&built.chosen), &case.chosen_gradient, "gradient at chosen", case);
    all_agree(&gradient(&built.rejected), &case.rejected_gradient, "gradient at rejected", case);
    Ok(())
}

fn cases(trainer: &str, name: &str) -> impl Iterator<Item = (&'static Case, &'static Input)> {
    let wanted = move |case: &&'static Case| case.trainer == trainer && case.name == name;
    let found: Vec<_> = GOLDEN.cases.iter().filter(wanted).collect();
    assert!(!found.is_empty(), "{trainer} has no case of {name}");
    found.into_iter().map(|case| (case, &GOLDEN.inputs[&case.input]))
}

fn of_dpo_trainer(name: &str) -> Result<()> {
    for (case, input) in cases("dpo", name) {
        let loss = dpo_loss(name, &case.numbers)?;
        if let Some(alpha) = case.numbers.ld_alpha {
            length_desensitised(case, input, &loss, alpha)?;
        } else if case.numbers.use_weighting {
            let built = input.built()?;
            let batch = built.batch.with_policy_weights(input.policy_weights()?)?;
            agrees(case, &Wpo::new(loss), &Built { batch, ..built })?;
        } else {
            agrees(case, &loss, &input.built()?)?;
        }
    }
    Ok(())
}

fn length_desensitised(case: &Case, input: &Input, loss: &dyn PreferenceLoss, alpha: f64) -> Result<()> {
    let tokens = Tensor::from_slice2(&input.tokens).set_requires_grad(true);
    let [chosen, rejected] = input.sides(&tokens)?;
    let batch = PreferenceBatch::new(PairLogps::length_desensitised(&chosen, &rejected, alpha)?)
        .with_lengths(TokenLogps::pair_lengths(&chosen, &rejected)?)?;
    let mean = loss.mean(&batch)?;
    agree(number(&mean), case.mean.expect("is finite"), format_args!("mean of {case:?}"));
    mean.backward();
    // TRL takes a table that is masked already, so its gradient goes on beyond the response; ours ends with it.
    let lengths = input.chosen_lengths.iter().chain(&input.rejected_lengths);
    let within = |(row, length): (&Vec<f64>, &i64)| {
        row.iter().enumerate().map(|(t, g)| Some(if (t as i64) < *length { *g } else { 0.0 })).collect::<Vec<_>>()
    };
    let expected: Vec<_> = case.token_gradient.iter().zip(lengths).flat_map(within).collect();
    all_agree(&numbers(&tokens.grad()), &expected, "gradient at tokens", case);
    Ok(())
}

/// A test for each name, and the list of them.
macro_rules! of_dpo_trainer {
    ($($name:ident)*) => {
        const COVERED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() -> Result<()> {
                of_dpo_trainer(stringify!($name))
            }
        )*
    };
}

of_dpo_trainer! {
    sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft sigmoid_norm
}

/// The list is read from TRL's source by the script.
#[test]
fn every_loss_type_has_its_test() {
    assert_eq!(GOLDEN.loss_types, COVERED);
}

#[test]
fn weighted_combination() -> Result<()> {
    of_dpo_trainer("sigmoid+bco_pair+sft")
}

/// TRL has 0·∞ there.
#[test]
fn discopop_is_finite_where_theirs_is_not() -> Result<()> {
    let mut missing = 0;
    for (case, input) in cases("dpo", "discopop") {
        let built = input.built()?;
        let losses = dpo_loss("discopop", &case.numbers)?.per_pair(&built.batch)?;
        losses.sum(Kind::Double).backward();
        let of_theirs = case.per_pair.as_ref().expect("of pairs").iter().filter(|loss| loss.is_none());
        missing += of_theirs.count();
        let ours = [numbers(&losses), gradient(&built.chosen), gradient(&built.rejected)].concat();
        assert!(ours.iter().all(|x| x.is_finite()), "{case:?}: {ours:?}");
    }
    assert!(missing > 0, "no such case is left");
    Ok(())
}

/// CPO's own losses, SimPO, AlphaPO, and with the likelihood term; on log-probabilities whose reference is 0, which `Hinge` and `Ipo` need and the
/// others do not read.
#[test]
fn cpo_simpo_alphapo() -> Result<()> {
    for (case, input) in cases("cpo", "cpo") {
        let built = input.built()?;
        let batch = built.batch.map_logps(|logps| Ok(logps.reference_free()))?;
        agrees(case, &cpo_loss(&case.numbers)?, &Built { batch, ..built })?;
    }
    Ok(())
}

#[test]
fn orpo() -> Result<()> {
    for (case, input) in cases("orpo", "orpo") {
        agrees(case, &Sft::new().plus(case.numbers.beta, OddsRatio), &input.built()?)?;
    }
    Ok(())
}

/// The gold responses are the rejected ones of the input `other`.
#[test]
fn tpo() -> Result<()> {
    for (case, input) in cases("tpo", "tpo") {
        let built = input.built()?;
        let mut batch = built.batch.map_logps(|logps| Ok(logps.reference_free()))?;
        if case.numbers.tpo_alpha != 0.0 {
            let gold = &GOLDEN.inputs["other"];
            let (sums, lengths) = (Tensor::from_slice(&gold.rejected), Tensor::from_slice(&gold.rejected_lengths));
            batch = batch.with_gold(ResponseLogps { sums, lengths })?;
        }
        agrees(case, &tpo_loss(&case.numbers)?, &Built { batch, ..built })?;
    }
    Ok(())
}

/// `kto` and `apo_zero_unpaired`, the chosen responses desirable and the rejected ones not.
#[test]
fn kto() -> Result<()> {
    for (case, input) in cases("kto", "kto") {
        let (logps, [chosen, rejected]) = input.logps()?;
        let batch = UnpairedBatch::of_pairs(&logps);
        let batch = match case.numbers.loss_type.as_str() {
            "kto" => {
                let [policy, reference] = [&case.mismatched, &case.ref_mismatched].map(|x| Tensor::from_slice(x));
                batch.with_mismatched(&policy, &reference)?
            }
            "apo_zero_unpaired" => batch.with_baseline(0.0)?,
            other => panic!("no loss for {other}"),
        };
        let weight = |given: Option<f64>| given.unwrap_or(1.0);
        let (desirable, undesirable) = (weight(case.numbers.desirable_weight), weight(case.numbers.undesirable_weight));
        let mean = Kto::new(case.numbers.beta)?.with_weights(desirable, undesirable)?.mean(&batch)?;
        agree(number(&mean), case.mean.expect("is finite"), format_args!("mean of {case:?}"));
        mean.backward();
        all_agree(&gradient(&chosen), &case.chosen_gradient, "gradient at chosen", case);
        all_agree(&gradient(&rejected), &case.rejected_gradient, "gradient at rejected", case);
    }
    Ok(())
}

#[test]
fn synchronised_reference() -> Result<()> {
    for golden in &GOLDEN.synchronised {
        let [policy, reference] = [&golden.policy, &golden.reference].map(|x| Tensor::from_slice(x));
        let held = [&policy, &reference].map(Tensor::shallow_clone);
        let [from, to] = held.map(|tensor| vec![tensor]);
        ReferenceUpdate::soft(from, to, golden.alpha, NonZeroU64::MIN)?.update();
        all_close(&numbers(&reference), &golden.after, 1e-15, format_args!("α = {}", golden.alpha));
        assert_eq!(numbers(&policy), golden.policy);
    }
    Ok(())
}
