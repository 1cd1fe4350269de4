//! The examples' sampling decoder against transformers' numbers (shared/models/stories260k-reference).

#[path = "../examples/support/llama.rs"]
mod llama;

use std::{collections::HashMap, error::Error, path::Path};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use llama::Llama;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The model, and the reference tensors by name.
type Fixture = (Llama, HashMap<String, Tensor>);

/// Nothing, said aloud, where the model is not installed.
fn model() -> Outcome<Option<Fixture>> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
    if !models.is_dir() {
        eprintln!("skipped: no {}", models.display());
        return Ok(None);
    }
    let reference = Tensor::read_safetensors(models.join("stories260k-reference/reference.safetensors"))?;
    let llama = Llama::load(&models.join("stories260k"), Device::Cpu)?;
    Ok(Some((llama, reference.into_iter().collect())))
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn logits_are_those_of_transformers() -> Outcome {
    let Some((llama, reference)) = model()? else { return Ok(()) };
    for prompt in 0..3 {
        let tokens = reference[&format!("prompt{prompt}.input_ids")].unsqueeze(0);
        let logits = llama.logits(&tokens, &mut llama.empty_cache(1));
        let off = distance(&logits.select(1, -1).squeeze(), &reference[&format!("prompt{prompt}.last_logits")]);
        println!("prompt{prompt} last logits off by {off:e}");
        assert!(off < 1e-4, "prompt{prompt}: {off}");
    }
    let tokens = reference["prompt0.input_ids"].unsqueeze(0);
    let off =
        distance(&llama.logits(&tokens, &mut llama.empty_cache(1)).squeeze_dim(0), &reference["prompt0.all_logits"]);
    println!("prompt0 all logits off by {off:e}");
    assert!(off < 1e-4, "{off}");
    Ok(())
}

#[test]
fn the_cache_changes_nothing() -> Outcome {
    let Some((llama, reference)) = model()? else { return Ok(()) };
    let tokens = reference["prompt1.input_ids"].unsqueeze(0);
    let whole = llama.logits(&tokens, &mut llama.empty_cache(1));
    let mut cache = llama.empty_cache(1);
    for t in 0..tokens.size()[1] {
        let step = llama.logits(&tokens.narrow(1, t, 1), &mut cache);
        assert!(distance(&step, &whole.narrow(1, t, 1)) < 1e-4, "position {t}");
    }
    Ok(())
}

#[test]
fn greedy_continuations_are_those_of_transformers() -> Outcome {
    let Some((llama, reference)) = model()? else { return Ok(()) };
    for g in 0..3 {
        let mut tokens = reference[&format!("generation{g}.prompt_ids")].unsqueeze(0);
        let expected = Vec::<i64>::try_from(&reference[&format!("generation{g}.output_ids")])?;
        let (mut cache, mut found) = (llama.empty_cache(1), Vec::new());
        for _ in 0..expected.len() {
            tokens = llama.logits(&tokens, &mut cache).select(1, -1).argmax(-1, true);
            found.push(tokens.int64_value(&[0, 0]));
        }
        assert_eq!(found, expected, "generation{g}");
    }
    Ok(())
}

#[test]
fn a_seed_is_a_sample() -> Outcome {
    let Some((llama, _)) = model()? else { return Ok(()) };
    let sample = |seed| llama.sample(8, 40, &mut ChaCha8Rng::seed_from_u64(seed));
    assert_eq!(sample(3)?, sample(3)?);
    assert_ne!(sample(3)?, sample(4)?);
    Ok(())
}
