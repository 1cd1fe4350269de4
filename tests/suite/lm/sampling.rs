//! Sampling: greedy against full passes, frequencies against the distribution, seeds, stops, refusals.

use std::num::NonZeroUsize;

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use prefopt::{
    Result,
    lm::{CausalLm, LoraConfig, Sampler},
    tch::{Kind, Tensor},
};

use super::{
    Outcome, refused,
    tiny::{self, Golden},
};
use crate::numbers;

fn sampler(longest: usize) -> Sampler {
    Sampler::new(NonZeroUsize::new(longest).expect("not 0"))
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Logits of what follows, f64.
fn following(model: &CausalLm, tokens: &[i64]) -> Result<Vec<f64>> {
    Ok(numbers(&model.logits(&Tensor::from_slice(tokens).unsqueeze(0))?.select(1, -1)))
}

fn best(scores: &[f64]) -> i64 {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).expect("a vocabulary") as i64
}

#[test]
fn greedy_is_the_best_of_whole_passes() -> Outcome {
    let golden = Golden::read();
    let (a, b) = (&golden.tokens[0], &golden.tokens[1]);
    let prompts = [&a[..], &b[..1], &b[..5], &a[3..4], &a[2..9]];
    let greedy = sampler(15).with_temperature(0.0)?;
    for (name, case) in &golden.cases {
        // In f64, and the mask, the cache and the positions are all that may differ.
        let model = tiny::model(&case.config, Kind::Double);
        let found = greedy.sample(&model, &prompts, &mut rng(0))?;
        for (prompt, found) in prompts.iter().zip(&found) {
            let mut tokens = prompt.to_vec();
            for &token in found {
                assert_eq!(token, best(&following(&model, &tokens)?), "{name}: after {tokens:?}");
                tokens.push(token);
            }
            assert_eq!(found.len(), 15, "{name}");
        }
    }
    Ok(())
}

/// softmax(logits/T), of which only the first k and the least with mass p are left.
fn distribution(logits: &[f64], temperature: f64, k: usize, p: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|l| (l / temperature).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(k);
    let whole: f64 = order.iter().map(|&i| weights[i]).sum();
    let (mut left, mut mass) = (vec![0.0; logits.len()], 0.0);
    for &i in &order {
        if mass >= p {
            break;
        }
        left[i] = weights[i] / whole;
        mass += left[i];
    }
    left.iter().map(|weight| weight / mass).collect()
}

#[test]
fn frequencies_are_the_distribution() -> Outcome {
    let golden = Golden::read();
    let model = tiny::case("llama", Kind::Double);
    let (prompt, draws) = (&golden.tokens[0][..4], 4000);
    let logits = following(&model, prompt)?;
    let cases =
        [(1.0, 13, 1.0), (0.5, 13, 1.0), (2.0, 13, 1.0), (1.0, 3, 1.0), (1.0, 1, 1.0), (1.5, 13, 0.6), (1.5, 6, 0.5)];
    for (case, (temperature, k, p)) in cases.into_iter().enumerate() {
        let mut sampler = sampler(1).with_temperature(temperature)?;
        if k < 13 {
            sampler = sampler.with_top_k(NonZeroUsize::new(k).expect("not 0"));
        }
        if p < 1.0 {
            sampler = sampler.with_top_p(p)?;
        }
        let mut counts = [0.0; 13];
        for drawn in sampler.sample(&model, &vec![prompt; draws], &mut rng(case as u64))? {
            counts[drawn[0] as usize] += 1.0;
        }
        for (token, expected) in distribution(&logits, temperature, k, p).into_iter().enumerate() {
            let (found, error) = (counts[token] / draws as f64, (expected * (1.0 - expected) / draws as f64).sqrt());
            assert!(
                (found - expected).abs() <= 4.5 * error,
                "case {case}, token {token}: {found}, expected {expected}"
            );
        }
    }
    Ok(())
}

#[test]
fn top_k_beyond_the_vocabulary_and_top_p_of_1_leave_everything() -> Outcome {
    let golden = Golden::read();
    let model = tiny::case("llama", Kind::Double);
    let prompts = [&golden.tokens[0][..4]; 200];
    // Sorted or not, the numbers are inverted along another order of tokens, so only what can come is compared.
    let drawn = sampler(1).with_top_k(NonZeroUsize::MAX).with_top_p(1.0)?.sample(&model, &prompts, &mut rng(1))?;
    let likely = best(&following(&model, prompts[0])?);
    assert!(drawn.iter().any(|tokens| tokens[0] == likely) && drawn.iter().any(|tokens| tokens[0] != likely));
    // A temperature that would overflow: the best token.
    let cold = sampler(3).with_temperature(1e-308)?.sample(&model, &prompts[..2], &mut rng(1))?;
    assert_eq!(cold, sampler(3).with_temperature(0.0)?.sample(&model, &prompts[..2], &mut rng(1))?);
    Ok(())
}

#[test]
fn a_seed_is_a_sample_whatever_the_batch() -> Outcome {
    let golden = Golden::read();
    let (a, b) = (&golden.tokens[0], &golden.tokens[1]);
    let prompts = [&a[..3], &b[..9], &b[..1], &a[..6], &a[..6]];
    let sampler = sampler(12).with_stop([7]);
    for name in ["gpt2", "qwen2_window", "qwen3_yarn"] {
        let model = tiny::case(name, Kind::Double);
        let whole = sampler.sample(&model, &prompts, &mut rng(4))?;
        assert_eq!(whole, sampler.sample(&model, &prompts, &mut rng(4))?, "{name}");
        assert_ne!(whole, sampler.sample(&model, &prompts, &mut rng(5))?, "{name}");
        assert_ne!(whole[3], whole[4], "{name}: one prompt twice has two samples");
        let mut rng = rng(4);
        let mut parts = sampler.sample(&model, &prompts[..2], &mut rng)?;
        parts.extend(sampler.sample(&model, &prompts[2..], &mut rng)?);
        assert_eq!(whole, parts, "{name}");
    }
    Ok(())
}

#[test]
fn a_stop_ends_a_continuation() -> Outcome {
    let golden = Golden::read();
    let model = tiny::case("llama", Kind::Double);
    let prompts = [&golden.tokens[0][..2]; 60];
    let (stop, longest) = ([3, 7], 8);
    let mut lengths = std::collections::BTreeSet::new();
    for tokens in sampler(longest).with_stop(stop).sample(&model, &prompts, &mut rng(2))? {
        let (last, before) = tokens.split_last().expect("at least one token");
        assert!(before.iter().all(|token| !stop.contains(token)), "{tokens:?}");
        assert!(stop.contains(last) || tokens.len() == longest, "{tokens:?}");
        lengths.insert(tokens.len());
    }
    assert!(lengths.len() > 3, "{lengths:?}");
    Ok(())
}

#[test]
fn the_reference_is_sampled_without_the_adapter() -> Outcome {
    let golden = Golden::read();
    let prompts = [&golden.tokens[0][..3], &golden.tokens[1][..8]];
    let plain = tiny::case("llama", Kind::Double);
    let expected = sampler(10).sample(&plain, &prompts, &mut rng(0))?;
    let model = super::adapters::disturbed(plain)?;
    assert_eq!(sampler(10).sample(model.reference()?, &prompts, &mut rng(0))?, expected);
    assert_ne!(sampler(10).sample(&model, &prompts, &mut rng(0))?, expected);
    Ok(())
}

#[test]
fn half_precision_is_sampled() -> Outcome {
    let golden = Golden::read();
    for name in ["gpt2", "mistral_window"] {
        let model = tiny::case(name, Kind::BFloat16);
        let rank = NonZeroUsize::new(1).expect("not 0");
        let target = if name == "gpt2" { "c_attn" } else { "q_proj" };
        let model = model.with_lora(LoraConfig::new(rank, 1.0, [target])?, 0)?;
        let found = sampler(6).sample(&model, &[&golden.tokens[0][..4]], &mut rng(0))?;
        assert!(found[0].len() == 6 && found[0].iter().all(|token| (0..13).contains(token)));
    }
    Ok(())
}

#[test]
fn bad_input_is_refused() -> Outcome {
    let model = tiny::case("llama", Kind::Float);
    let sample = |sampler: &Sampler, prompts: &[&[i64]]| sampler.sample(&model, prompts, &mut rng(0));
    refused(sample(&sampler(4), &[&[1], &[]]), &["the prompt of group 1", "nothing to continue"]);
    refused(sample(&sampler(4), &[&[1, 13]]), &["an index into the vocabulary", "13"]);
    refused(sample(&sampler(60), &[&[1; 5]]), &["65 tokens", "context of 64"]);
    refused(sample(&sampler(usize::MAX >> 1), &[&[1]]), &["context of 64"]);
    assert_eq!(sample(&sampler(60), &[&[1; 4]])?[0].len(), 60);
    assert!(sample(&sampler(4), &[])?.is_empty());

    refused(sampler(1).with_temperature(-0.1), &["temperature must be at least 0 and finite, got -0.1"]);
    refused(sampler(1).with_temperature(f64::NAN), &["temperature"]);
    for p in [0.0, 1.5, f64::NAN] {
        refused(sampler(1).with_top_p(p), &["top_p must be above 0 and at most 1"]);
    }
    Ok(())
}

#[test]
fn configurations_are_checked() -> Outcome {
    let text = json!({"temperature": 0.7, "top_k": 40, "top_p": 0.9, "stop": [2], "longest": 64});
    let read: Sampler = serde_json::from_value(text.clone())?;
    let k = NonZeroUsize::new(40).expect("not 0");
    assert_eq!(read, sampler(64).with_temperature(0.7)?.with_top_k(k).with_top_p(0.9)?.with_stop([2]));
    assert_eq!(serde_json::to_value(&read)?, text);
    assert_eq!(serde_json::from_value::<Sampler>(json!({"longest": 3}))?, sampler(3));
    for broken in [
        json!({}),
        json!({"longest": 0}),
        json!({"longest": 3, "temperature": -1.0}),
        json!({"longest": 3, "top_p": 0.0}),
        json!({"longest": 3, "top_k": 0}),
        json!({"longest": 3, "beams": 4}),
    ] {
        assert!(serde_json::from_value::<Sampler>(broken.clone()).is_err(), "{broken}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Nothing outside the k most likely and the nucleus comes, in any state.
    #[test]
    fn no_token_is_drawn_that_was_left_out(
        seed in any::<u64>(),
        prompt in prop::collection::vec(0_i64..13, 1..10),
        temperature in 0.1..3.0,
        k in 1_usize..14,
        p in 0.05..1.0,
    ) {
        let model = tiny::case("llama", Kind::Double);
        let sampler = sampler(3).with_temperature(temperature)?.with_top_k(NonZeroUsize::new(k).expect("not 0")).with_top_p(p)?;
        let drawn = sampler.sample(&model, &[&prompt[..]], &mut rng(seed))?;
        let mut tokens = prompt;
        for &token in &drawn[0] {
            let left = distribution(&following(&model, &tokens)?, temperature, k, p);
            prop_assert!(left[token as usize] > 0.0, "{token} after {tokens:?}: {left:?}");
            tokens.push(token);
        }
    }
}
