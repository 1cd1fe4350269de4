//! Log-probabilities from logits, against sums by hand.

use prefopt::{
    Result,
    logps::{response_logps, token_logps, token_statistics},
    tch::{Device, Kind, Tensor},
};

use crate::{all_close, close, columns::Columns, number, numbers, oracle};

/// `[batch, time, vocab]` of multiples of 1/64.
fn random_logits(shape: [usize; 3]) -> Vec<f64> {
    (0..shape[0] * shape[1]).flat_map(|i| Columns::random(shape[2], 1, i as u64).chosen).map(|x| x + 15.0).collect()
}

const SHAPE: [usize; 3] = [2, 4, 5];
const TOKENS: [[i64; 4]; 2] = [[0, 3, 1, 4], [2, 2, 0, 1]];
const RESPONSE: [[bool; 4]; 2] = [[false, false, true, true], [false, true, true, false]];

fn inputs(kind: Kind) -> (Tensor, Tensor, Tensor) {
    let logits = Tensor::from_slice(&random_logits(SHAPE)).view(SHAPE.map(|n| n as i64)).to_kind(kind);
    (logits, Tensor::from_slice2(&TOKENS), Tensor::from_slice2(&RESPONSE))
}

/// log π of token t from the logits at t − 1.
fn log_softmax_before(sequence: usize, time: usize) -> Vec<f64> {
    let logits = random_logits(SHAPE);
    let start = (sequence * SHAPE[1] + time - 1) * SHAPE[2];
    oracle::log_softmax(&logits[start..start + SHAPE[2]])
}

fn scored() -> impl Iterator<Item = (usize, usize, usize)> {
    let every = (0..2).flat_map(|b| (1..4).map(move |t| (b, t)));
    every.filter(|(b, t)| RESPONSE[*b][*t]).map(|(b, t)| (b, t, TOKENS[b][t] as usize))
}

#[test]
fn a_response_is_the_sum_of_its_tokens() -> Result<()> {
    let mut expected = [0.0; 2];
    for (b, t, token) in scored() {
        expected[b] += log_softmax_before(b, t)[token];
    }
    for (kind, tolerance) in [(Kind::Double, 1e-13), (Kind::Float, 1e-6)] {
        let (logits, tokens, response) = inputs(kind);
        let found = response_logps(&logits, &tokens, &response)?;
        assert_eq!((found.sums.kind(), found.lengths.kind()), (kind, Kind::Int64));
        all_close(&numbers(&found.sums), &expected, tolerance, format_args!("{kind:?}"));
        assert_eq!(numbers(&found.lengths), [2.0, 2.0]);
    }
    Ok(())
}

/// Multiples of 1/64 below 8 are not exact in bfloat16; against its own rounded logits the sum is exact to f32.
#[test]
fn half_precision_is_widened_first() -> Result<()> {
    for kind in [Kind::BFloat16, Kind::Half] {
        let (logits, tokens, response) = inputs(kind);
        let found = response_logps(&logits, &tokens, &response)?;
        assert_eq!(found.sums.kind(), Kind::Float);
        let wide = response_logps(&logits.to_kind(Kind::Double), &tokens, &response)?;
        all_close(&numbers(&found.sums), &numbers(&wide.sums), 1e-6, format_args!("{kind:?}"));
        assert_eq!(token_logps(&logits.narrow(1, 0, 4), &tokens)?.kind(), Kind::Float);
        assert_eq!(token_statistics(&logits, &tokens, &response)?.0.kind(), Kind::Float);
    }
    Ok(())
}

/// What stands where the mask is false has no say: not in the value, not in the gradient, be it infinite or NaN.
#[test]
fn masked_positions_have_no_say() -> Result<()> {
    let (logits, tokens, response) = inputs(Kind::Double);
    let clean = logits.copy().set_requires_grad(true);
    let expected = response_logps(&clean, &tokens, &response)?;
    expected.sums.sum(Kind::Double).backward();
    for garbage in [f64::NEG_INFINITY, f64::NAN, 1e30] {
        let dirty = logits.copy();
        // Time 0 of the first sequence predicts a prompt token; the last time of any predicts nothing.
        for (b, t) in [(0, 0), (0, 3), (1, 3)] {
            let _ = dirty.get(b).get(t).fill_(garbage);
        }
        let dirty = dirty.set_requires_grad(true);
        let found = response_logps(&dirty, &tokens, &response)?;
        assert_eq!(numbers(&found.sums), numbers(&expected.sums), "{garbage}");
        found.sums.sum(Kind::Double).backward();
        assert_eq!(numbers(&dirty.grad()), numbers(&clean.grad()), "gradient beside {garbage}");
    }
    Ok(())
}

/// A vocabulary padded with −∞ leaves the others' probabilities and gradients as they are.
#[test]
fn a_padded_vocabulary_is_ignored() -> Result<()> {
    let (logits, tokens, response) = inputs(Kind::Double);
    let ruled_out = Tensor::full([2, 4, 3], f64::NEG_INFINITY, (Kind::Double, Device::Cpu));
    let padded = Tensor::cat(&[logits.shallow_clone(), ruled_out], 2).set_requires_grad(true);
    let found = response_logps(&padded, &tokens, &response)?;
    all_close(&numbers(&found.sums), &numbers(&response_logps(&logits, &tokens, &response)?.sums), 1e-14, "padded");
    found.sums.sum(Kind::Double).backward();
    assert!(numbers(&padded.grad()).iter().all(|g| g.is_finite()));
    let (entropy, _) = token_statistics(&padded, &tokens, &response)?;
    let (expected, _) = token_statistics(&logits, &tokens, &response)?;
    close(number(&entropy), number(&expected), 1e-13, 1.0, "entropy beside ruled-out tokens");
    Ok(())
}

#[test]
fn an_empty_response_and_a_first_token_score_nothing() -> Result<()> {
    let (logits, tokens, _) = inputs(Kind::Double);
    let response = Tensor::from_slice2(&[[false; 4], [true, false, false, false]]);
    let found = response_logps(&logits, &tokens, &response)?;
    assert_eq!((numbers(&found.sums), numbers(&found.lengths)), (vec![0.0; 2], vec![0.0; 2]));
    Ok(())
}

#[test]
fn the_gradient_is_one_hot_minus_softmax() -> Result<()> {
    let logits = Tensor::from_slice2(&[[0.5, -1.0, 2.0]]).set_requires_grad(true);
    token_logps(&logits, &Tensor::from_slice(&[2_i64]))?.sum(Kind::Double).backward();
    let p = oracle::log_softmax(&[0.5, -1.0, 2.0]).into_iter().map(f64::exp).collect::<Vec<_>>();
    all_close(&numbers(&logits.grad()), &[-p[0], -p[1], 1.0 - p[2]], 1e-14, "gradient");
    Ok(())
}

#[test]
fn statistics_are_means_over_response_tokens() -> Result<()> {
    let (logits, tokens, response) = inputs(Kind::Double);
    let (mut entropy, mut hits) = (vec![], vec![]);
    for (b, t, token) in scored() {
        let row = log_softmax_before(b, t);
        entropy.push(-row.iter().map(|l| l.exp() * l).sum::<f64>());
        hits.push(if row.iter().all(|l| *l <= row[token]) { 1.0 } else { 0.0 });
    }
    let (found, accuracy) = token_statistics(&logits.set_requires_grad(true), &tokens, &response)?;
    close(number(&found), oracle::mean(entropy.into_iter()), 1e-13, 0.0, "entropy");
    close(number(&accuracy), oracle::mean(hits.into_iter()), 1e-15, 0.0, "accuracy");
    assert!(!found.requires_grad());
    // The likeliest tokens themselves are all hits, and a uniform distribution has log V nats.
    let uniform = Tensor::zeros([1, 3, 5], (Kind::Float, Device::Cpu));
    let zeros = Tensor::zeros([1, 3], (Kind::Int64, Device::Cpu));
    let (entropy, accuracy) = token_statistics(&uniform, &zeros, &zeros.eq(0))?;
    close(number(&entropy), 5.0_f64.ln(), 1e-6, 0.0, "uniform entropy");
    assert_eq!(number(&accuracy), 1.0);
    Ok(())
}
