//! Log-probabilities from hidden states, a tile of the vocabulary at a time, against the whole matrix of logits in f64.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Error, Result,
    logps::VocabularyHead,
    matmul::{self, Product},
    tch::{Cuda, Device, Kind, Tensor, no_grad_guard},
};

use crate::{
    all_close,
    autograd::{alone, overwrite},
    close,
    identities::config,
    number, numbers, oracle,
};

/// Numbers in [−1, 1), by no generator that other tests seed.
fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product::<i64>()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_slice(&values).view(shape)
}

/// A head and what goes through it.
struct Case {
    hidden: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    targets: Tensor,
    /// Always f64.
    cotangent: Tensor,
    scale: f64,
    cap: Option<f64>,
}

/// Values or gradients, by what they belong to.
type Named = Vec<(&'static str, Tensor)>;

/// With a gradient to the hidden states, the weight and the bias.
const ALL: [bool; 3] = [true; 3];
const FROZEN: [bool; 3] = [true, false, false];

const KINDS: [(Kind, f64); 2] = [(Kind::Double, 1e-11), (Kind::Float, 1e-5)];

impl Case {
    fn random([tokens, vocab, width]: [i64; 3], seed: u64) -> Self {
        let seed = seed << 3;
        let targets = (random(&[tokens], seed) + 1.0) * (vocab as f64 / 2.0);
        let case = Self {
            hidden: random(&[tokens, width], seed + 1),
            weight: random(&[vocab, width], seed + 2) * 2.0,
            bias: Some(random(&[vocab], seed + 3)),
            targets: targets.floor().to_kind(Kind::Int64),
            cotangent: random(&[tokens], seed + 4),
            scale: 1.0,
            cap: None,
        };
        case.asking(ALL)
    }

    fn without_bias(self) -> Self {
        Self { bias: None, ..self }
    }

    fn bent(self) -> Self {
        Self { scale: 0.7, cap: Some(5.0), ..self }
    }

    /// With gradients to these of the hidden states, the weight and the bias.
    fn asking(self, asked: [bool; 3]) -> Self {
        for (tensor, asked) in [Some(&self.hidden), Some(&self.weight), self.bias.as_ref()].into_iter().zip(asked) {
            let _ = tensor.map(|tensor| tensor.set_requires_grad(asked));
        }
        self
    }

    fn to(&self, kind: Kind, device: Device) -> Self {
        let leaf = |t: &Tensor| t.detach().to_kind(kind).to_device(device).set_requires_grad(t.requires_grad());
        Self {
            hidden: leaf(&self.hidden),
            weight: leaf(&self.weight),
            bias: self.bias.as_ref().map(leaf),
            targets: self.targets.to_device(device),
            cotangent: self.cotangent.to_device(device),
            ..*self
        }
    }

    /// Of the same numbers, for what is expected of them.
    fn exact(&self) -> Self {
        self.to(Kind::Double, Device::Cpu)
    }

    fn head(&self, budget: u64) -> Result<VocabularyHead> {
        let mut head = VocabularyHead::new(&self.weight)?.with_logit_scale(self.scale)?.with_budget(budget);
        if let Some(bias) = &self.bias {
            head = head.with_bias(bias)?;
        }
        if let Some(cap) = self.cap {
            head = head.with_soft_cap(cap)?;
        }
        Ok(head)
    }

    fn logps(&self, budget: u64) -> Result<Tensor> {
        self.head(budget)?.logps(&self.hidden, &self.targets)
    }

    /// `[tokens, vocab]`.
    fn logits(&self) -> Tensor {
        let linear = self.hidden.matmul(&self.weight.tr());
        let scaled = self.bias.as_ref().map_or_else(|| linear.shallow_clone(), |bias| &linear + bias) * self.scale;
        self.cap.map_or_else(|| scaled.shallow_clone(), |cap| (&scaled / cap).tanh() * cap)
    }

    /// What `logps` must be.
    fn naive(&self) -> Tensor {
        self.logits().log_softmax(1, None::<Kind>).gather(1, &self.targets.unsqueeze(1), false).squeeze_dim(1)
    }

    fn naive_entropy(&self) -> Tensor {
        let logps = self.logits().log_softmax(1, None::<Kind>);
        -(logps.exp() * logps).sum_dim_intlist([1].as_slice(), false, Kind::Double)
    }

    /// What asks for a gradient.
    fn leaves(&self) -> Named {
        let all =
            [("hidden", Some(&self.hidden)), ("head weight", Some(&self.weight)), ("head bias", self.bias.as_ref())];
        let present = all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?.shallow_clone())));
        present.filter(|(_, tensor)| tensor.requires_grad()).collect()
    }

    /// The values, and the gradient of Σ cotangent · values at each leaf.
    fn passes(&self, logps: &Tensor) -> Result<Named> {
        let (names, leaves): (Vec<_>, Vec<_>) = self.leaves().into_iter().unzip();
        let mut found = vec![("values", logps.detach())];
        if !leaves.is_empty() {
            let loss = (logps * self.cotangent.to_kind(logps.kind())).sum(logps.kind());
            found.extend(names.into_iter().zip(Tensor::f_run_backward(&[loss], &leaves, false, false)?));
        }
        Ok(found)
    }
}

/// |found − expected| ≤ tolerance · (|expected| + r), r being the root mean square of what is expected, or 0.05 if that is less: most of
/// a weight's gradient is far below 1.
#[track_caller]
fn near(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let (found, expected) = (numbers(found), numbers(expected));
    let typical = oracle::mean(expected.iter().map(|e| e * e)).sqrt().max(0.05);
    for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
        close(*f, *e, tolerance, typical, format_args!("{what}[{index}]"));
    }
}

fn agree(case: &Case, budget: u64, tolerance: f64) -> Result<()> {
    let (exact, found) = (case.exact(), case.passes(&case.logps(budget)?)?);
    for ((name, found), (_, expected)) in found.iter().zip(&exact.passes(&exact.naive())?) {
        let kind = case.hidden.kind();
        near(found, expected, tolerance, &format!("{name} {:?} in {kind:?} within {budget} bytes", found.size()));
    }
    Ok(())
}

/// oneDNN's products take scale and sum in another way than MKL's. In a process of its own, because the product is the whole process's.
#[test]
fn the_other_product_computes_the_same() -> Result<()> {
    if !alone("head::the_other_product_computes_the_same") {
        return Ok(());
    }
    // Where it rounds to bfloat16 it has to be as good as that.
    let exact = matmul::choose()?.onednn.is_none_or(|trial| trial.error <= 5e-6);
    matmul::set(Product::OneDnn)?;
    for case in [Case::random([37, 5003, 24], 1), Case::random([1500, 300, 16], 2).bent()] {
        agree(&case.to(Kind::Float, Device::Cpu), 1 << 20, if exact { 1e-5 } else { 3e-2 })?;
    }
    Ok(())
}

/// Sizes that no tile divides, sizes below every tile, and several blocks of rows.
#[test]
fn values_and_gradients_are_those_of_the_whole_matrix() -> Result<()> {
    for size in [[37, 5003, 24], [1, 3, 4], [1500, 300, 8]] {
        let case = || Case::random(size, 1);
        for case in [case(), case().without_bias(), case().bent(), case().without_bias().bent()] {
            for (kind, tolerance) in KINDS {
                for budget in [1 << 12, 1 << 16, 1 << 20, u64::MAX] {
                    agree(&case.to(kind, Device::Cpu), budget, tolerance)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_budget_of_nothing_takes_one_logit_at_a_time() -> Result<()> {
    for (kind, tolerance) in KINDS {
        for asked in [ALL, FROZEN] {
            agree(&Case::random([5, 9, 3], 2).bent().asking(asked).to(kind, Device::Cpu), 0, tolerance)?;
        }
    }
    Ok(())
}

/// Each set of gradients has a way of its own through the code; the values and the gradients themselves do not depend on it.
#[test]
fn a_gradient_does_not_depend_on_what_else_is_trained() -> Result<()> {
    for subset in 0..8 {
        let case = Case::random([37, 5003, 24], 3).asking([0, 1, 2].map(|i| (subset >> i) & 1 == 1));
        for case in [case.exact(), case.bent()] {
            for (kind, tolerance) in KINDS {
                for budget in [1 << 16, u64::MAX] {
                    agree(&case.to(kind, Device::Cpu), budget, tolerance)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn no_graph_is_recorded_unasked() -> Result<()> {
    for asked in [ALL, FROZEN] {
        let case = Case::random([3, 7, 2], 4).asking(asked);
        assert!(case.logps(1 << 20)?.requires_grad());
        let guard = no_grad_guard();
        let found = case.logps(1 << 20)?;
        assert!(!found.requires_grad());
        near(&found, &case.naive(), 1e-11, "values");
        drop(guard);
    }
    assert!(!Case::random([3, 7, 2], 4).asking([false; 3]).logps(1 << 20)?.requires_grad());
    Ok(())
}

#[test]
fn strides_do_not_matter() -> Result<()> {
    let transposed = |t: &Tensor| t.detach().tr().contiguous().tr().detach();
    let column = |t: &Tensor| Tensor::stack(&[t.detach(), t.detach()], 1).select(1, 0).detach();
    for (kind, tolerance) in KINDS {
        for asked in [ALL, FROZEN] {
            let case = Case::random([37, 601, 24], 5).to(kind, Device::Cpu);
            let case = Case {
                hidden: transposed(&case.hidden),
                weight: transposed(&case.weight),
                bias: case.bias.as_ref().map(column),
                targets: column(&case.targets),
                ..case
            };
            assert!(!case.hidden.is_contiguous() && !case.weight.is_contiguous() && !case.targets.is_contiguous());
            agree(&case.asking(asked), 1 << 14, tolerance)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn tiles_make_up_the_whole(
        size in (1..40_i64, 1..200_i64, 1..9_i64), power in 10..=20_u32, seed in any::<u32>(),
        biased in any::<bool>(), bent in any::<bool>(), frozen in any::<bool>(),
    ) {
        let case = Case::random([size.0, size.1, size.2], u64::from(seed)).asking(if frozen { FROZEN } else { ALL });
        let case = if biased { case } else { case.without_bias() };
        agree(&if bent { case.bent() } else { case }, 1_u64 << power, 1e-11)?;
    }
}

#[test]
fn probabilities_of_all_tokens_sum_to_one() -> Result<()> {
    const VOCAB: i64 = 301;
    let every = Tensor::arange(VOCAB, (Kind::Int64, Device::Cpu));
    for (kind, tolerance) in KINDS {
        for asked in [ALL, FROZEN, [false; 3]] {
            let case = Case::random([1, VOCAB, 8], 6).bent().asking(asked).to(kind, Device::Cpu);
            let logps = case.head(1 << 14)?.logps(&case.hidden.expand([VOCAB, -1], false), &every)?;
            close(number(&logps.exp().sum(Kind::Double)), 1.0, tolerance, 0.0, format_args!("{kind:?} {asked:?}"));
        }
    }
    Ok(())
}

/// Products and sums are taken in f32: values are as exact as that, and a gradient is rounded once.
#[test]
fn half_precision_is_widened() -> Result<()> {
    for (kind, digits) in [(Kind::BFloat16, 8), (Kind::Half, 11)] {
        for asked in [ALL, FROZEN, [false, true, false]] {
            let case = Case::random([37, 5003, 24], 7).bent().asking(asked).to(kind, Device::Cpu);
            let (exact, what) = (case.exact(), format!("{kind:?} {asked:?}"));
            let expected = exact.passes(&exact.naive())?;
            for budget in [1 << 18, u64::MAX] {
                let found = case.passes(&case.logps(budget)?)?;
                assert_eq!(found[0].1.kind(), Kind::Float);
                near(&found[0].1, &expected[0].1, 1e-5, &what);
                for ((name, found), (_, expected)) in found.iter().zip(&expected).skip(1) {
                    assert_eq!(found.kind(), kind);
                    near(found, expected, 0.5_f64.powi(digits), &format!("{name}, {what}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn entropy_and_hits_are_those_of_the_whole_matrix() -> Result<()> {
    for (kind, tolerance) in KINDS {
        for asked in [ALL, FROZEN, [false; 3]] {
            let case = Case::random([37, 5003, 24], 8).bent().asking(asked).to(kind, Device::Cpu);
            let logits = case.exact().logits();
            let likeliest = logits.argmax(1, false);
            for targets in [case.targets.shallow_clone(), likeliest] {
                let expected = logits.gather(1, &targets.unsqueeze(1), false).ge_tensor(&logits.amax([1], true));
                let case = Case { targets, ..case.to(kind, Device::Cpu) };
                for budget in [1 << 16, u64::MAX] {
                    let scores = case.head(budget)?.scores(&case.hidden, &case.targets)?;
                    near(&scores.logps, &case.exact().naive(), tolerance, "values");
                    near(&scores.entropy, &case.exact().naive_entropy(), tolerance, "entropy");
                    assert_eq!((scores.hits.kind(), numbers(&scores.hits)), (Kind::Bool, numbers(&expected)));
                    // Asking for them changes nothing else.
                    assert_eq!(scores.logps.requires_grad(), asked[0] || asked[1]);
                    assert!(!scores.entropy.requires_grad() && scores.entropy.kind() == kind);
                    let plain = case.passes(&case.logps(budget)?)?;
                    for ((name, found), (_, plain)) in case.passes(&scores.logps)?.iter().zip(&plain) {
                        near(found, plain, tolerance, name);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_indifferent_head_has_log_v_nats_and_every_token_is_a_hit() -> Result<()> {
    for (kind, tolerance) in KINDS {
        let case = Case::random([5, 7, 3], 9).without_bias().to(kind, Device::Cpu);
        let case = Case { weight: case.weight.zeros_like(), ..case };
        let scores = case.head(1 << 10)?.scores(&case.hidden, &case.targets)?;
        all_close(&numbers(&scores.entropy), &[7.0_f64.ln(); 5], tolerance, "entropy");
        all_close(&numbers(&scores.logps), &[(1.0_f64 / 7.0).ln(); 5], tolerance, "values");
        assert_eq!(numbers(&scores.hits), [1.0; 5]);
    }
    Ok(())
}

/// A bias of −∞ rules a token out, as where a vocabulary is padded to a round size. Here it does so to whole tiles too, the first among
/// them.
#[test]
fn what_is_ruled_out_has_no_say() -> Result<()> {
    const VOCAB: i64 = 2503;
    for (before, after) in [(2500, 0), (0, 61), (4096, 3)] {
        let pad = |tensor: &Tensor, value: f64| {
            let block = |rows: i64| {
                let mut size = tensor.size();
                size[0] = rows;
                Tensor::full(size, value, (tensor.kind(), tensor.device()))
            };
            Tensor::cat(&[block(before), tensor.detach(), block(after)], 0)
        };
        for ((kind, tolerance), asked) in KINDS.into_iter().flat_map(|kind| [(kind, ALL), (kind, FROZEN)]) {
            let small = Case::random([37, VOCAB, 24], 10).asking(asked).to(kind, Device::Cpu);
            let padded = Case {
                hidden: small.hidden.shallow_clone(),
                weight: pad(&small.weight, 1.0),
                bias: small.bias.as_ref().map(|bias| pad(bias, f64::NEG_INFINITY)),
                targets: &small.targets + before,
                cotangent: small.cotangent.shallow_clone(),
                ..small
            };
            let (padded, exact) = (padded.asking(asked), small.exact());
            let expected = exact.passes(&exact.naive())?;
            for budget in [1 << 18, u64::MAX] {
                let found = padded.passes(&padded.logps(budget)?)?;
                for ((name, found), (_, expected)) in found.iter().zip(&expected) {
                    if matches!(*name, "head weight" | "head bias") {
                        near(&found.narrow(0, before, VOCAB), expected, tolerance, name);
                        let outside = [found.narrow(0, 0, before), found.narrow(0, before + VOCAB, after)];
                        assert!(
                            numbers(&Tensor::cat(&outside, 0)).iter().all(|g| *g == 0.0),
                            "{name} of the ruled out"
                        );
                    } else {
                        near(found, expected, tolerance, name);
                    }
                }
                let scores = padded.head(budget)?.scores(&padded.hidden, &padded.targets)?;
                near(&scores.entropy, &exact.naive_entropy(), tolerance, "entropy");
            }
        }
    }
    Ok(())
}

/// Logits are 10⁴·(±1) plus multiples of 1/16, exact in f32, whose numbers stand 10⁻³ apart there.
#[test]
fn large_logits_lose_no_more_than_f32_must() -> Result<()> {
    let weight: Vec<[f64; 2]> =
        (0..64).map(|j| [1.0 - 2.0 * f64::from(j % 2), f64::from((37 * j) % 97 - 48) / 16.0]).collect();
    for asked in [ALL, FROZEN, [false; 3]] {
        let case = Case {
            hidden: Tensor::from_slice2(&[[1e4, 1.0], [1e4, 1.0], [-1e4, 1.0], [-1e4, -1.0]]),
            weight: Tensor::from_slice2(&weight),
            targets: Tensor::from_slice(&[10_i64, 11, 11, 5]),
            ..Case::random([4, 64, 2], 11).without_bias()
        };
        let case = case.asking(asked).to(Kind::Float, Device::Cpu);
        let exact = case.exact();
        let (found, expected) = (case.passes(&case.logps(1 << 20)?)?, exact.passes(&exact.naive())?);
        for (index, (f, e)) in numbers(&found[0].1).into_iter().zip(numbers(&expected[0].1)).enumerate() {
            // 10⁻³ for a likely token; the second is at −2·10⁴.
            close(f, e, 1e-7, 1e4, format_args!("{asked:?}, token {index}"));
        }
        for (name, gradient) in &found[1..] {
            assert!(numbers(gradient).iter().all(|g| g.is_finite()), "{name}, {asked:?}");
        }
        if asked[0] {
            near(&found[1].1, &expected[1].1, 5e-3, "hidden");
        }
    }
    Ok(())
}

#[test]
fn a_hidden_state_that_is_not_a_number_spoils_no_other() -> Result<()> {
    for (kind, tolerance) in KINDS {
        for asked in [ALL, FROZEN] {
            let case = Case::random([5, 300, 4], 12).asking(asked).to(kind, Device::Cpu);
            let exact = case.exact();
            let expected = exact.passes(&exact.naive())?;
            let _ = case.hidden.detach().get(3).fill_(f64::NAN);
            let found = case.passes(&case.logps(1 << 12)?)?;
            // Values, and the gradient at the hidden states.
            for ((name, found), (_, expected)) in found.iter().zip(&expected).take(2) {
                assert!(numbers(&found.get(3)).iter().all(|x| x.is_nan()), "{name} in {kind:?}");
                let others = Tensor::from_slice(&[0_i64, 1, 2, 4]);
                near(&found.index_select(0, &others), &expected.index_select(0, &others), tolerance, name);
            }
        }
    }
    Ok(())
}

/// The first pass overwrites the logits that were kept, and the second computes them again.
#[test]
fn a_second_pass_over_a_kept_graph_equals_the_first() -> Result<()> {
    for ((kind, tolerance), asked) in KINDS.into_iter().flat_map(|kind| [(kind, ALL), (kind, FROZEN)]) {
        let case = Case::random([37, 5003, 24], 13).bent().asking(asked).to(kind, Device::Cpu);
        for budget in [1 << 16, 1 << 20, u64::MAX] {
            let loss = (case.logps(budget)? * case.cotangent.to_kind(kind)).sum(kind);
            let (names, leaves): (Vec<_>, Vec<_>) = case.leaves().into_iter().unzip();
            let first = Tensor::f_run_backward(&[&loss], &leaves, true, false)?;
            let second = Tensor::f_run_backward(&[&loss], &leaves, false, false)?;
            for (name, (first, second)) in names.into_iter().zip(first.iter().zip(&second)) {
                near(second, first, tolerance, name);
            }
        }
    }
    Ok(())
}

#[test]
fn what_the_backward_pass_reads_must_stay_as_it_was() -> Result<()> {
    for written in 0..3 {
        let case = Case::random([3, 7, 2], 14);
        let loss = case.logps(1 << 20)?.sum(Kind::Double);
        let leaves = case.leaves();
        let (name, tensor) = &leaves[written];
        overwrite(tensor);
        let said = loss.f_backward().expect_err("written to").to_string();
        let message = format!("{name} was written to in place between the forward and the backward pass");
        assert!(said.contains(&message), "{said}");
    }
    let case = Case::random([3, 7, 2], 14);
    let loss = case.logps(1 << 20)?.sum(Kind::Double);
    let _ = case.targets.shallow_clone().fill_(0);
    let said = loss.f_backward().expect_err("written to").to_string();
    assert!(said.contains("targets was written to in place"), "{said}");
    // A frozen weight is read in the forward pass alone.
    let case = Case::random([3, 7, 2], 14).asking(FROZEN);
    let (exact, logps) = (case.exact(), case.logps(1 << 20)?);
    let expected = exact.passes(&exact.naive())?;
    overwrite(&case.weight);
    near(&case.passes(&logps)?[1].1, &expected[1].1, 1e-11, "hidden");
    Ok(())
}

#[test]
fn a_gpu_computes_the_same() -> Result<()> {
    if !Cuda::is_available() {
        eprintln!("skipped: no GPU");
        return Ok(());
    }
    for asked in [ALL, FROZEN, [false; 3]] {
        let case = Case::random([37, 5003, 24], 15).bent().asking(asked);
        for (kind, tolerance) in KINDS {
            for budget in [1 << 16, u64::MAX] {
                agree(&case.to(kind, Device::Cuda(0)), budget, tolerance)?;
            }
        }
    }
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn refusals() -> Result<()> {
    let zeros = |shape: &[i64], kind: Kind| Tensor::zeros(shape, (kind, Device::Cpu));
    let double = |shape: &[i64]| zeros(shape, Kind::Double);
    let weight = double(&[5, 4]);
    let head = || VocabularyHead::new(&weight);

    refused(VocabularyHead::new(&double(&[5])), "head weight must have shape [vocab, width], got [5]");
    let integers = zeros(&[5, 4], Kind::Int64);
    refused(VocabularyHead::new(&integers), "head weight must be of a floating-point kind, got Int64");
    let empty = "head weight is empty: shape [vocab, width] needs at least one element";
    refused(VocabularyHead::new(&double(&[0, 4])), empty);

    refused(head()?.with_bias(&double(&[5, 1])), "head bias must have shape [vocab], got [5, 1]");
    let short = "head bias must have shape [vocab] with vocab = 5, got vocab = 4";
    refused(head()?.with_bias(&double(&[4])), short);
    let single = zeros(&[5], Kind::Float);
    refused(head()?.with_bias(&single), "head bias must be Double like the tensors it goes with, got Float");
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(head()?.with_logit_scale(scale), &format!("logit_scale must be positive and finite, got {scale}"));
        refused(head()?.with_soft_cap(scale), &format!("soft_cap must be positive and finite, got {scale}"));
    }

    let head = head()?;
    let (hidden, targets) = (double(&[3, 4]), Tensor::from_slice(&[0_i64, 4, 2]));
    assert_eq!(head.logps(&hidden, &targets)?.size(), [3]);
    for (hidden, message) in [
        (double(&[4]), "hidden must have shape [tokens, width], got [4]"),
        (double(&[3, 5]), "hidden must have shape [tokens, width] with width = 4, got width = 5"),
        (zeros(&[3, 4], Kind::Float), "hidden must be Double like the tensors it goes with, got Float"),
        (double(&[0, 4]), "hidden is empty: shape [tokens, width] needs at least one element"),
    ] {
        refused(head.logps(&hidden, &targets), message);
        refused(head.scores(&hidden, &targets), message);
    }
    for (targets, message) in [
        (zeros(&[3, 1], Kind::Int64), "targets must have shape [tokens], got [3, 1]"),
        (zeros(&[2], Kind::Int64), "targets must have shape [tokens] with tokens = 3, got tokens = 2"),
        (double(&[3]), "targets must be Int64, got Double"),
        (Tensor::from_slice(&[0_i64, 5, 2]), "targets[1] must be an index into the vocabulary, got 5"),
        (Tensor::from_slice(&[0_i64, 4, -1]), "targets[2] must be an index into the vocabulary, got -1"),
    ] {
        refused(head.logps(&hidden, &targets), message);
        refused(head.scores(&hidden, &targets), message);
    }
    let beyond = head.logps(&hidden, &Tensor::from_slice(&[0_i64, 5, 2])).expect_err("no such token");
    assert!(matches!(beyond, Error::Element { index: 1, .. }));
    Ok(())
}

/// Resident memory of this process at its highest, in bytes, where the system tells.
fn high_water() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    kilobytes.parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}

/// By how much memory rises above what it is now, in a forward and a backward pass.
fn rise(forward: impl FnOnce() -> Result<Tensor>) -> Result<Option<u64>> {
    // Sets the highest to the present.
    let reset = std::fs::write("/proc/self/clear_refs", "5").ok();
    let before = reset.and_then(|()| high_water());
    forward()?.sum(Kind::Float).backward();
    Ok(before.zip(high_water()).map(|(before, after)| after.saturating_sub(before)))
}

/// 2048 × 20000 logits of f32 are 156 MiB, and the whole matrix is there several times.
#[test]
fn memory_stays_within_the_budget() -> Result<()> {
    const MIB: u64 = 1 << 20;
    const BUDGET: u64 = 40 * MIB;
    const GRADIENTS: u64 = 4 * 64 * (2048 + 20_000);
    const SLACK: u64 = 24 * MIB;
    if !alone("head::memory_stays_within_the_budget") {
        return Ok(());
    }
    let case = Case::random([2048, 20_000, 64], 16).without_bias().to(Kind::Float, Device::Cpu);
    {
        // Threads, and the buffers of libtorch's products, are not the head's.
        let _no_grad = no_grad_guard();
        let _ = case.hidden.narrow(0, 0, 1024).matmul(&case.weight.narrow(0, 0, 2048).tr());
    }
    let head = VocabularyHead::new(&case.weight)?;
    let tiled = rise(|| head.logps(&case.hidden, &case.targets))?;
    let whole = rise(|| Ok(case.naive()))?;
    let Some((tiled, whole)) = tiled.zip(whole) else {
        eprintln!("skipped: no /proc/self/clear_refs");
        return Ok(());
    };
    let bound = BUDGET + GRADIENTS + SLACK;
    assert!(tiled < bound, "{} MiB", tiled / MIB);
    // Or this has measured nothing.
    assert!(whole > 2 * bound, "the whole matrix took {} MiB", whole / MIB);
    Ok(())
}
