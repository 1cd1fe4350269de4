//! One optimiser step: AdamW against its algorithm in plain f64, clipping, schedules, and steps that refuse to be taken.

use prefopt::{
    Error, Result,
    tch::{Kind, Tensor},
    train::{AdamW, AdamWConfig, Constant, Descent, Schedule, Warmup},
};

use crate::{all_close, close, number, numbers};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

fn adam(parameter: &Tensor) -> Result<AdamW> {
    AdamW::new(vec![parameter.shallow_clone()], AdamWConfig::default())
}

/// Any smooth function whose gradient is easy by hand: Σ cos(x) + x²/2.
fn bowl(x: &Tensor) -> Tensor {
    (x.cos() + x.square() * 0.5).sum(Kind::Double)
}

fn bowl_gradient(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| -x.sin() + x).collect()
}

/// Loshchilov and Hutter 2019, algorithm 2, on plain numbers.
struct PlainAdamW {
    first: Vec<f64>,
    second: Vec<f64>,
    betas: (f64, f64),
    epsilon: f64,
    decay: f64,
    steps: i32,
}

impl PlainAdamW {
    fn step(&mut self, x: &mut [f64], gradient: &[f64], rate: f64) {
        self.steps += 1;
        let (b1, b2) = self.betas;
        for i in 0..x.len() {
            self.first[i] = b1 * self.first[i] + (1.0 - b1) * gradient[i];
            self.second[i] = b2 * self.second[i] + (1.0 - b2) * gradient[i] * gradient[i];
            let (m, v) = (self.first[i] / (1.0 - b1.powi(self.steps)), self.second[i] / (1.0 - b2.powi(self.steps)));
            x[i] -= rate * (self.decay * x[i] + m / (v.sqrt() + self.epsilon));
        }
    }
}

#[test]
fn adamw_is_its_algorithm() -> Result<()> {
    for (betas, epsilon, decay, clip) in
        [((0.9, 0.999), 1e-8, 0.0, None), ((0.8, 0.95), 1e-3, 0.1, None), ((0.9, 0.99), 1e-8, 0.3, Some(0.5))]
    {
        let mut x = vec![1.5, -2.0, 0.3];
        let parameter = leaf(&x);
        let optimizer = AdamW::new(vec![parameter.shallow_clone()], AdamWConfig::new(betas, epsilon, decay)?)?;
        let schedule = Warmup::new(3).then_cosine(12)?;
        let mut descent = Descent::new(optimizer, 0.05)?.with_schedule(schedule).with_max_norm(clip)?;
        let mut plain = PlainAdamW { first: vec![0.0; 3], second: vec![0.0; 3], betas, epsilon, decay, steps: 0 };
        for step in 1..=10 {
            let mut gradient = bowl_gradient(&x);
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            if let Some(max) = clip.filter(|max| norm > *max) {
                // PyTorch's clip_grad_norm_ divides by the norm + 1e-6.
                gradient.iter_mut().for_each(|g| *g *= max / (norm + 1e-6));
            }
            close(descent.descend(&bowl(&parameter))?, norm, 1e-12, 0.0, "norm before clipping");
            plain.step(&mut x, &gradient, 0.05 * schedule.factor(step));
            all_close(&numbers(&parameter), &x, 1e-12, format_args!("after step {step}"));
        }
    }
    Ok(())
}

#[test]
fn adamw_trains_what_requires_a_gradient_and_has_one() -> Result<()> {
    let (used, unused, frozen) = (leaf(&[1.0]), leaf(&[2.0]), Tensor::from_slice(&[3.0]));
    let all = [&used, &unused, &frozen].map(Tensor::shallow_clone).into();
    let optimizer = AdamW::new(all, AdamWConfig::new((0.9, 0.999), 1e-8, 0.5)?)?;
    assert_eq!(optimizer.parameters().len(), 2);
    let mut descent = Descent::new(optimizer, 0.1)?;
    descent.descend(&bowl(&(&used * &frozen)))?;
    // Without a gradient there is no decay either.
    assert_eq!([number(&unused), number(&frozen)], [2.0, 3.0]);
    assert!((number(&used) - 1.0).abs() > 1e-3);
    Ok(())
}

#[test]
fn gradients_of_one_step_do_not_reach_the_next() -> Result<()> {
    let x = leaf(&[4.0]);
    let mut descent = Descent::new(adam(&x)?, 0.0)?;
    let norms = [descent.descend(&bowl(&x))?, descent.descend(&bowl(&x))?];
    assert_eq!(norms[0], norms[1]);
    Ok(())
}

/// Adam's step does not depend on the gradient's scale, so the clip shows only beside an ε that is not small.
#[test]
fn the_default_clips_to_a_norm_of_one() -> Result<()> {
    let after = |configure: fn(Descent) -> Result<Descent>| -> Result<f64> {
        let x = leaf(&[0.0]);
        let optimizer = AdamW::new(vec![x.shallow_clone()], AdamWConfig::new((0.0, 0.0), 1.0, 0.0)?)?;
        configure(Descent::new(optimizer, 1.0)?)?.descend(&(&x * 3.0).sum(Kind::Double))?;
        Ok(-number(&x))
    };
    let g = 3.0 / (3.0 + 1e-6);
    close(after(Ok)?, g / (g + 1.0), 1e-12, 0.0, "clipped to 1");
    close(after(|d| d.with_max_norm(None))?, 3.0 / 4.0, 1e-12, 0.0, "not clipped");
    close(after(|d| d.with_max_norm(Some(4.0)))?, 3.0 / 4.0, 1e-12, 0.0, "below the bound");
    Ok(())
}

#[test]
fn schedules() -> Result<()> {
    let warmup = Warmup::new(4);
    all_close(&[1, 2, 3, 4, 5, 1000].map(|s| warmup.factor(s)), &[0.25, 0.5, 0.75, 1.0, 1.0, 1.0], 1e-15, "warm-up");
    let cosine = warmup.then_cosine(12)?;
    let half = std::f64::consts::FRAC_1_SQRT_2;
    let expected = [0.25, 0.75, 1.0, 0.5 * (1.0 + half), 0.5, 0.5 * (1.0 - half), 0.0, 0.0];
    all_close(&[1, 3, 4, 6, 8, 10, 12, 50].map(|s| cosine.factor(s)), &expected, 1e-15, "cosine");
    assert_eq!([Warmup::new(0).factor(1), Constant.factor(1), Constant.factor(99)], [1.0; 3]);
    assert_eq!((|step: u64| 1.0 / step as f64).factor(4), 0.25);
    let backwards =
        serde_json::from_str::<Warmup>(r#"{"steps": 5, "cosine_until": 3}"#).expect_err("ends before it starts");
    assert!(backwards.to_string().starts_with("last step must be after the warm-up, got 3"), "{backwards}");
    Ok(())
}

type Poison = fn(&Tensor) -> Tensor;

/// A refused step leaves parameters, moments and the count as they were: the next one does what it would have done anyway.
#[test]
fn a_step_that_is_not_finite_changes_nothing() -> Result<()> {
    // √ at 0 has the value 0 and an infinite slope.
    let poisons: [(Poison, &str); 3] = [
        (|x| bowl(x) / 0.0, "loss is inf at step 2: no parameter was changed"),
        (|x| bowl(x) * f64::NAN, "loss is NaN at step 2: no parameter was changed"),
        (|x| (x - x.detach()).sqrt().sum(Kind::Double), "gradient norm is inf at step 2: no parameter was changed"),
    ];
    for (poison, message) in poisons {
        let (poisoned, clean) = (leaf(&[1.0, 2.0]), leaf(&[1.0, 2.0]));
        let [mut a, mut b] = [Descent::new(adam(&poisoned)?, 0.1)?, Descent::new(adam(&clean)?, 0.1)?];
        a.descend(&bowl(&poisoned))?;
        b.descend(&bowl(&clean))?;
        let error = a.descend(&poison(&poisoned)).expect_err("not finite");
        assert!(matches!(error, Error::NonFinite { step: 2, .. }));
        assert_eq!(error.to_string(), message);
        for _ in 0..2 {
            let bits = |x: &Tensor| numbers(x).into_iter().map(f64::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&poisoned), bits(&clean));
            assert_eq!(a.descend(&bowl(&poisoned))?, b.descend(&bowl(&clean))?);
        }
    }
    Ok(())
}

#[test]
fn a_loss_that_reaches_no_parameter_is_refused() -> Result<()> {
    const SAID: &str =
        "no parameter received a gradient: the loss does not depend on the tensors that the optimiser holds";
    let (x, other) = (leaf(&[1.0]), leaf(&[1.0]));
    let mut descent = Descent::new(adam(&x)?, 0.1)?;
    for loss in [bowl(&other), bowl(&x.detach())] {
        let error = descent.descend(&loss).expect_err("reaches nothing");
        assert!(matches!(error, Error::Disconnected));
        assert_eq!(error.to_string(), SAID);
    }
    assert_eq!(number(&x), 1.0);
    // After a good step too: old gradients and moments must not move what the loss does not reach.
    descent.descend(&bowl(&x))?;
    let after = number(&x);
    assert!(matches!(descent.descend(&bowl(&other)), Err(Error::Disconnected)));
    assert_eq!(number(&x), after);
    Ok(())
}

#[test]
fn nothing_to_train_is_refused() {
    for list in [vec![], vec![Tensor::from_slice(&[1.0])]] {
        let error = AdamW::new(list, AdamWConfig::default()).expect_err("nothing requires a gradient");
        let said = "there is nothing to train: the list of parameters holds no tensor that requires a gradient";
        assert_eq!(error.to_string(), said);
    }
}
