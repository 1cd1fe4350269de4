//! Pairs drawn again, for the members of a family: bootstraps and resamples by length bias.

use std::num::NonZeroUsize;

use prefopt::{
    Result, RewardScores,
    data::{
        BadLines, Batching, DataError, Limits, Pair, PairDataset, Place, Policy, Record, SpecialTokens, TextTokenizer,
        Texts, tokenize, tokenizers::Tokenizer,
    },
    reward::{BradleyTerry, RewardBatch, RewardObjective},
    tch::Tensor,
};
use proptest::prelude::*;

use crate::{close, number, oracle};

/// Pairs of responses of so many tokens, chosen and rejected; each pair has tokens of its own.
fn of_lengths(lengths: &[(usize, usize)]) -> PairDataset {
    let mut data = PairDataset::default();
    for (pair, &(chosen, rejected)) in (10_u32..).zip(lengths) {
        data.push(&[1], &vec![pair; chosen], &vec![2 * pair; rejected]).expect("tokens");
    }
    data
}

/// So many pairs whose longer response is chosen, then so many whose shorter one is, then so many of equal length.
fn strata(longer: usize, shorter: usize, equal: usize) -> PairDataset {
    let of = |lengths: (usize, usize), count: usize| std::iter::repeat_n(lengths, count);
    of_lengths(&of((3, 2), longer).chain(of((1, 4), shorter)).chain(of((2, 2), equal)).collect::<Vec<_>>())
}

/// Words of BLAKE3's stream modulo n. Of 2⁶⁴ words fewer than n are drawn again: none here.
fn drawn(purpose: &[u8], seed: u64, stream: u64, n: u64, count: usize) -> Vec<usize> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose).update(&seed.to_le_bytes()).update(&stream.to_le_bytes());
    let mut bytes = vec![0_u8; 8 * count];
    hasher.finalize_xof().fill(&mut bytes);
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    words.map(|word| (word % n) as usize).collect()
}

/// Σ (n − expected)² / expected.
fn chi_squared(counts: &[f64]) -> f64 {
    let expected = counts.iter().sum::<f64>() / counts.len() as f64;
    counts.iter().map(|count| (count - expected).powi(2) / expected).sum()
}

#[test]
fn draws_are_the_same_on_every_machine() -> Result<()> {
    // More pairs than a buffer of the stream has words.
    let data = strata(40, 30, 7);
    for seed in [0, 7, u64::MAX] {
        assert_eq!(data.bootstrap(seed), drawn(b"prefopt bootstrap 1", seed, 0, 77, 77));
        let longer = drawn(b"prefopt length bias 1", seed, 0, 40, 14);
        let shorter = drawn(b"prefopt length bias 1", seed, 1, 30, 56);
        let expected: Vec<usize> = longer.into_iter().chain(shorter.into_iter().map(|index| 40 + index)).collect();
        assert_eq!(data.where_longer_wins(0.2, seed)?, expected);
        assert_eq!(data.where_longer_wins(0.2, seed)?, data.where_longer_wins(0.2, seed)?);
    }
    assert_ne!(data.bootstrap(1), data.bootstrap(2));
    assert_ne!(data.where_longer_wins(0.2, 1)?, data.where_longer_wins(0.2, 2)?);
    assert!(PairDataset::default().bootstrap(1).is_empty());
    Ok(())
}

/// With replacement: of n pairs the share (1 − 1/n)^n is left out.
#[test]
fn a_bootstrap_draws_each_pair_alike_and_some_not_at_all() {
    let data = strata(3, 2, 0);
    let (mut counts, mut absent) = ([0.0; 5], 0);
    for seed in 0..4000 {
        let drawn = data.bootstrap(seed);
        drawn.iter().for_each(|&pair| counts[pair] += 1.0);
        absent += (0..5).filter(|pair| !drawn.contains(pair)).count();
    }
    // 4 degrees of freedom: mean 4, standard deviation 2.8.
    assert!(chi_squared(&counts) < 4.0 + 5.0 * 2.8, "{counts:?}");
    // Of 20 000 that may be absent .32768 are; their standard deviation is below .0033.
    close(absent as f64 / 20_000.0, 0.8_f64.powi(5), 0.02, 1.0, "share left out");
}

#[test]
fn within_a_stratum_each_pair_is_drawn_alike() -> Result<()> {
    let (data, mut counts) = (strata(4, 4, 2), [0.0; 10]);
    for seed in 0..2000 {
        data.where_longer_wins(0.5, seed)?.iter().for_each(|&pair| counts[pair] += 1.0);
    }
    assert_eq!(counts[8..], [0.0; 2], "of equal length");
    for stratum in [&counts[..4], &counts[4..8]] {
        assert_eq!(stratum.iter().sum::<f64>(), 8000.0);
        // 3 degrees of freedom: mean 3, standard deviation 2.4.
        assert!(chi_squared(stratum) < 3.0 + 5.0 * 2.4, "{counts:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_longer_response_wins_with_the_frequency_asked_for(
        lengths in prop::collection::vec((1..6_usize, 1..6_usize), 0..40),
        share in 0.001..0.999_f64,
        other in 0.001..0.999_f64,
        seed: u64,
    ) {
        // Both strata have a pair, wherever it stands.
        let lengths = [lengths, vec![(7, 1), (1, 7), (4, 4)]].concat();
        let data = of_lengths(&lengths);
        let n = lengths.iter().filter(|(chosen, rejected)| chosen != rejected).count();
        let resample = data.where_longer_wins(share, seed).expect("both strata");
        prop_assert_eq!(resample.len(), n);
        let first = (share * n as f64).round() as usize;
        let longer = |pair: &usize| lengths[*pair].0 > lengths[*pair].1;
        let shorter = |pair: &usize| lengths[*pair].0 < lengths[*pair].1;
        prop_assert!(resample[..first].iter().all(longer) && resample[first..].iter().all(shorter));

        // Another share has as many pairs, and begins alike on either side.
        let beside = data.where_longer_wins(other, seed).expect("both strata");
        prop_assert_eq!(beside.len(), n);
        let second = (other * n as f64).round() as usize;
        let (both, rest) = (first.min(second), n - first.max(second));
        prop_assert_eq!(&resample[..both], &beside[..both]);
        prop_assert_eq!(&resample[first..first + rest], &beside[second..second + rest]);
    }
}

#[test]
fn a_resample_is_a_data_set_of_that_bias() -> Result<()> {
    let data = strata(50, 50, 11);
    for (share, wins) in [(0.2, 20), (0.35, 35), (0.5, 50), (0.8, 80)] {
        let biased = data.select(&data.where_longer_wins(share, 3)?)?;
        let longer = |pair: &Pair<'_>| pair.chosen.len() > pair.rejected.len();
        assert_eq!((biased.len(), biased.iter().filter(longer).count()), (100, wins));
        // The strata lie apart; batches mix them.
        let batching = Batching::by_pairs(NonZeroUsize::new(50).expect("is not 0"));
        let (_, batch) = batching.steps(&biased, 1, Place::default())?.next().expect("epochs do not end");
        assert!(batch.iter().any(|&pair| pair < wins) && batch.iter().any(|&pair| pair >= wins));
    }
    Ok(())
}

/// tokenizer.json of words.
const WORDS: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": null, "decoder": null, "model": {"type": "WordLevel", "unk_token": "?",
    "vocab": {"?": 0, "</s>": 1, "p": 2, "a": 3, "b": 4}}}"#;

#[test]
fn what_is_called_chosen_is_chosen_whatever_its_label() -> Result<()> {
    let tokenizer = Tokenizer::from_bytes(WORDS).expect("a tokenizer of words");
    let tokenizer = TextTokenizer::new(tokenizer, &SpecialTokens::default().with("eos_token", "</s>"))?;
    let record = |chosen: &str, rejected: &str, label: f64| -> prefopt::data::Result<Record> {
        let [prompt, chosen, rejected] = ["p", chosen, rejected].map(str::to_owned);
        let mut record = Record::new(Texts::Plain { prompt, chosen, rejected });
        record.label = label;
        Ok(record)
    };
    let records = [record(" a a a", " b", 0.1), record(" b", " a a", 0.9)];
    let pairs = tokenize(records, &tokenizer, Limits::default(), Policy::default(), BadLines::default())?.pairs;
    assert_eq!((pairs.len(), pairs.labels()), (2, &[0.1, 0.9][..]));
    assert_eq!(pairs.where_longer_wins(0.5, 1)?, [0, 1]);
    Ok(())
}

#[test]
fn a_share_out_of_its_domain_and_an_empty_stratum_are_refused() {
    let said =
        |data: PairDataset, share: f64| data.where_longer_wins(share, 1).expect_err("must be refused").to_string();
    for share in [0.0, 1.0, -0.2, f64::NAN, f64::INFINITY] {
        let message =
            format!("share of pairs whose longer response is chosen must be above 0 and below 1, got {share}");
        assert_eq!(said(strata(2, 2, 0), share), message);
    }
    let longer = "there is no pair in the stratum whose chosen response is the longer one";
    assert_eq!(said(strata(0, 3, 2), 0.5), longer);
    assert_eq!(said(PairDataset::default(), 0.5), longer);
    let shorter = "there is no pair in the stratum whose chosen response is the shorter one";
    assert_eq!(said(strata(3, 0, 2), 0.5), shorter);
    assert!(matches!(strata(1, 1, 0).where_longer_wins(2.0, 1), Err(DataError::Domain { value: 2.0, .. })));
}

/// A head beside others, on counts, or a model of its own, on the data drawn: the same loss.
#[test]
fn counts_of_a_bootstrap_are_its_data() -> Result<()> {
    let (data, objective) = (strata(5, 6, 1), BradleyTerry::new(0.1)?);
    let scores = |member: u64, data: &PairDataset| {
        let score = |tokens: &[u32]| (f64::from(tokens.iter().sum::<u32>()) * (0.1 + 0.07 * member as f64)).sin();
        data.iter().map(|pair| (score(pair.chosen), score(pair.rejected))).unzip::<_, _, Vec<_>, Vec<_>>()
    };
    let (mut alone, mut counts, mut chosen, mut rejected) = (vec![], vec![], vec![], vec![]);
    for member in 0..3 {
        let drawn = data.bootstrap(member);
        let (better, worse) = scores(member, &data.select(&drawn)?);
        let scored = RewardScores::single(&Tensor::from_slice(&better), &Tensor::from_slice(&worse))?;
        alone.push(number(&objective.mean(&RewardBatch::new(scored))?));

        let mut count = vec![0.0; data.len()];
        drawn.iter().for_each(|&pair| count[pair] += 1.0);
        let (better, worse) = scores(member, &data);
        counts.push(count);
        chosen.push(better);
        rejected.push(worse);
    }
    let [chosen, rejected, counts] = [chosen, rejected, counts].map(|rows| Tensor::from_slice2(&rows));
    let family = RewardBatch::new(RewardScores::new(chosen, rejected)?).with_member_weights(counts)?;
    let mean = oracle::mean(alone.into_iter());
    close(number(&objective.mean(&family)?), mean, 1e-13, 0.0, "mean loss");
    Ok(())
}
