//! The examples' small diffusion model against closed forms: schedules, and samplers where the exact noise of normal data is known.

#[path = "../examples/support/mod.rs"]
mod support;

use std::f64::consts::FRAC_PI_2;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use support::{
    diffusion::{
        Denoiser, Fit, Form, Output,
        data::{KINDS, Rings, SIDE, shapes},
        gaussian, one_hot,
        sampling::{chain, ddim, ddpm},
        schedule::{Schedule, Variance},
    },
    network::{matrix, numbers},
};

type Outcome<T = ()> = anyhow::Result<T>;

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

#[track_caller]
fn near(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((found - expected).abs() <= tolerance, "{what}: found {found}, expected {expected}");
}

#[test]
fn schedules_are_the_papers() -> Outcome {
    let (cosine, linear) = (Schedule::cosine(50)?, Schedule::linear(1000)?);
    let f = |t: f64| ((t / 50.0 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    for t in 1..49 {
        near(cosine.alpha_bar(t), f(t as f64) / f(0.0), 1e-12, "cosine");
    }
    near(cosine.beta(50), 0.9, 1e-12, "clipped");
    near(linear.beta(1), 1e-4, 1e-12, "first of linear");
    near(linear.beta(1000), 0.02, 1e-12, "last of linear");
    for schedule in [cosine, linear, Schedule::cosine(1)?, Schedule::linear(1)?] {
        near(schedule.alpha_bar(0), 1.0, 0.0, "nothing is noised at 0");
        for t in 1..=schedule.steps() {
            assert!(schedule.alpha_bar(t) < schedule.alpha_bar(t - 1) && schedule.alpha_bar(t) > 0.0);
            // λ = log ᾱ/(1−ᾱ) ⇔ ᾱ = σ(λ).
            near(1.0 / (1.0 + (-schedule.log_snr(t)).exp()), schedule.alpha_bar(t), 1e-12, "log-SNR");
        }
        near(schedule.sigma(1), 0.0, 0.0, "the posterior's last step");
        let last = schedule.steps();
        let forward = schedule.with_variance(Variance::Forward);
        near(forward.sigma(1).powi(2), forward.beta(1), 1e-12, "the forward variance");
        assert!(forward.sigma(last) > 0.0);
    }
    Ok(())
}

#[test]
fn step_counts_are_refused() -> Outcome {
    let none = "steps must be at least 1, got 0";
    assert_eq!(Schedule::cosine(0).expect_err("must be refused").to_string(), none);
    assert_eq!(Schedule::linear(0).expect_err("must be refused").to_string(), none);
    for steps in [0, 6] {
        let refused = ddim(&Schedule::cosine(5)?, |x, _| x.shallow_clone(), gaussian(2, 2, &mut rng(1)), steps);
        let said = format!("sampling steps must be at least 1 and at most the schedule's, got {steps}");
        assert_eq!(refused.expect_err("must be refused").to_string(), said);
    }
    Ok(())
}

/// The mean of x_{t−1} given x_t and the x_0 that the noise implies, in the other form of Ho et al. 2020, eq. 7.
#[test]
fn the_reverse_mean_is_the_posteriors() -> Outcome {
    let schedule = Schedule::cosine(20)?;
    let (x, noise) = (gaussian(3, 2, &mut rng(2)), gaussian(3, 2, &mut rng(3)));
    for t in [2, 7, 15] {
        let (now, before, beta) = (schedule.alpha_bar(t), schedule.alpha_bar(t - 1), schedule.beta(t));
        let clean = (&x - &noise * (1.0 - now).sqrt()) / now.sqrt();
        let expected =
            clean * (before.sqrt() * beta / (1.0 - now)) + &x * ((1.0 - beta).sqrt() * (1.0 - before) / (1.0 - now));
        for (found, expected) in numbers(&schedule.mean(&x, &noise, t))?.into_iter().zip(numbers(&expected)?) {
            near(found, expected, 1e-4, "mean");
        }
    }
    Ok(())
}

const MEAN: f64 = 0.7;
const DEVIATION: f64 = 0.4;

/// E[ε | x_t] for data that are normal with this mean and `DEVIATION`.
fn exact(schedule: &Schedule, x: &Tensor, t: usize, mean: &Tensor) -> Tensor {
    let alpha_bar = schedule.alpha_bar(t);
    let variance = alpha_bar * DEVIATION.powi(2) + 1.0 - alpha_bar;
    (x - mean * alpha_bar.sqrt()) * ((1.0 - alpha_bar).sqrt() / variance)
}

fn moments(sample: &Tensor) -> (f64, f64) {
    (sample.mean(Kind::Double).double_value(&[]), sample.to_kind(Kind::Double).std(true).double_value(&[]))
}

/// With 200 steps the discretisation is worth .4 to 2 % of the deviation (computed from the linear recursion); samples, 1 %.
#[test]
fn samplers_reproduce_normal_data() -> Outcome {
    let mean = Tensor::from(MEAN as f32);
    let schedule = Schedule::cosine(200)?;
    let start = || gaussian(2000, 2, &mut rng(4));
    let deterministic = ddim(&schedule, |x, t| exact(&schedule, x, t, &mean), start(), 200)?;
    let again = ddim(&schedule, |x, t| exact(&schedule, x, t, &mean), start(), 200)?;
    assert_eq!(numbers(&deterministic)?, numbers(&again)?);
    let mut sampled = vec![("ddim", deterministic)];
    for variance in [Variance::Posterior, Variance::Forward] {
        let schedule = schedule.clone().with_variance(variance);
        let sample = ddpm(&schedule, |x, t| exact(&schedule, x, t, &mean), start(), &mut rng(5));
        sampled.push(("ddpm", sample));
    }
    for (name, sample) in sampled {
        let (found_mean, found_deviation) = moments(&sample);
        near(found_mean, MEAN, 0.03, name);
        near(found_deviation, DEVIATION, 0.02, name);
    }
    Ok(())
}

/// Samples move with the data's mean one for one: their gradient says so when all steps are kept, in part when the last are, and
/// not at all for none.
#[test]
fn gradients_flow_through_the_last_steps() -> Outcome {
    let schedule = Schedule::cosine(40)?.with_variance(Variance::Forward);
    let run = |last: usize| -> Outcome<(Vec<f64>, Option<f64>)> {
        let mean = Tensor::from(MEAN as f32).set_requires_grad(true);
        let start = gaussian(50, 2, &mut rng(6));
        let chain = chain(&schedule, |x, t| exact(&schedule, x, t, &mean), start, last, &mut rng(7));
        let kept: Vec<usize> = chain.steps.iter().map(|step| step.t).collect();
        assert_eq!(kept, (1..=last).rev().collect::<Vec<_>>());
        for step in &chain.steps {
            assert_eq!(step.sigma, schedule.sigma(step.t));
            let again = schedule.mean(&step.x, &exact(&schedule, &step.x, step.t, &mean), step.t);
            near((again - &step.mean).abs().max().double_value(&[]), 0.0, 1e-5, "the step's mean");
        }
        let slope = chain.sample.requires_grad().then(|| {
            chain.sample.mean(Kind::Float).backward();
            mean.grad().double_value(&[])
        });
        Ok((numbers(&chain.sample)?, slope))
    };
    let (all, whole) = run(40)?;
    near(whole.unwrap_or_default(), 1.0, 1e-3, "slope of all steps");
    let (some, part) = run(5)?;
    assert!(part.is_some_and(|slope| slope > 0.01 && slope < 0.99), "{part:?}");
    let (none, nothing) = run(0)?;
    assert_eq!(nothing, None);
    assert!(all == some && some == none, "keeping steps must not change the sample");
    Ok(())
}

const RINGS: Rings = Rings { conditions: 2, modes: 4, radius: 1.2, deviation: 0.25 };
const FORM: Form = Form { dims: 2, conditions: 2, hidden: 32, output: Output::Noise, bound: 2.5 };

#[test]
fn a_density_sums_to_one() {
    let step = 0.05;
    for condition in 0..2 {
        let grid = (-60..=60).flat_map(|i| (-60..=60).map(move |k| [f64::from(i) * step, f64::from(k) * step]));
        let mass: f64 = grid.map(|point| RINGS.log_density(&point, condition).exp() * step * step).sum();
        near(mass, 1.0, 1e-6, "mass");
    }
}

#[test]
fn a_fitted_model_is_nearer_the_data_than_noise() -> Outcome {
    let conditions: Vec<usize> = (0..400).map(|i| i % 2).collect();
    let condition = one_hot(&conditions, 2);
    let model = Denoiser::new(FORM, Schedule::cosine(20)?, 8)?;
    let data = matrix(&RINGS.draw(&conditions, &mut rng(9)), 2);
    model.fit(&data, &condition, Fit { steps: 200, batch: 128, rate: 1e-2 }, &mut rng(10))?;
    let density = |points: &Tensor| -> Outcome<f64> {
        let points = numbers(points)?;
        Ok(points.chunks_exact(2).zip(&conditions).map(|(p, &c)| RINGS.log_density(p, c)).sum::<f64>() / 400.0)
    };
    let (fitted, noise) =
        (density(&model.sample(&condition, &mut rng(11)))?, density(&gaussian(400, 2, &mut rng(12)))?);
    assert!(fitted > noise + 0.5, "{fitted} against {noise}");
    // The same weights are the same network, and the same numbers the same sample.
    let copy = Denoiser::with_weights(FORM, Schedule::cosine(20)?, &model.weights()?)?;
    let [of_copy, of_model] = [&copy, &model].map(|model| numbers(&model.sample(&condition, &mut rng(11))));
    assert_eq!(of_copy?, of_model?);
    Ok(())
}

/// A fresh network says nothing: its noise is 0, or that part of x_t which is noise for standard normal data.
#[test]
fn outputs_are_read_as_noise() -> Outcome {
    let (x, condition) = (gaussian(3, 2, &mut rng(13)), one_hot(&[0, 1, 1], 2));
    let schedule = Schedule::cosine(20)?;
    let fresh = |output: Output| Denoiser::new(Form { output, ..FORM }, schedule.clone(), 14);
    assert_eq!(numbers(&fresh(Output::Noise)?.noise(&x, &[5], &condition))?, [0.0; 6]);
    let velocity = fresh(Output::Velocity)?;
    let share = (1.0 - schedule.alpha_bar(5)).sqrt();
    for (found, x) in numbers(&velocity.noise(&x, &[5], &condition))?.into_iter().zip(numbers(&x)?) {
        near(found, share * x, 1e-6, "velocity");
    }
    // One t for all rows is that t for each; a sampler's step is the schedule's where the bound does not bite.
    let expected = schedule.mean(&x, &velocity.noise(&x, &[5; 3], &condition), 5);
    for (found, expected) in numbers(&velocity.mean(&x, 5, &condition))?.into_iter().zip(numbers(&expected)?) {
        near(found, expected, 1e-4, "mean");
    }
    // The mean of the last step is the x_0 that is implied.
    let tight = Denoiser::new(Form { bound: 0.1, ..FORM }, schedule, 14)?;
    assert!(numbers(&tight.mean(&x, 1, &condition))?.iter().all(|value| value.abs() < 0.1 + 1e-4));
    Ok(())
}

#[test]
fn shapes_have_their_pixels() {
    let images = shapes(&(0..60).map(|i| i % KINDS).collect::<Vec<_>>(), &mut rng(15));
    for (i, image) in images.chunks_exact(SIDE * SIDE).enumerate() {
        let lit: Vec<f64> = image.iter().copied().filter(|pixel| *pixel > -1.0).collect();
        assert_eq!(lit.len(), [9, 9, 16][i % KINDS], "shape {i}");
        assert!(lit.iter().all(|pixel| *pixel == lit[0] && (0.0..1.0).contains(pixel)));
    }
}
