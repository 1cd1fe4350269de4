//! Orders and batches: every pair once, the same every time, from any place on.

use std::{collections::HashMap, num::NonZeroUsize};

use prefopt::data::{BatchSize, Batching, Order, PairDataset, Place};
use proptest::prelude::*;

use super::{GOLDEN, refusal};

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("not 0")
}

/// Pairs of 3 + n tokens for each n.
fn of_lengths(lengths: &[usize]) -> PairDataset {
    let mut data = PairDataset::default();
    lengths.iter().for_each(|&n| data.push(&[1], &[2], &vec![3; n + 1]).expect("tokens"));
    data
}

#[test]
fn an_order_is_the_same_on_every_machine() {
    for case in GOLDEN["orders"].as_array().expect("a list") {
        let number = |name: &str| case[name].as_u64().expect("a number");
        let order = Order::shuffled(number("pairs") as usize, number("seed"), number("epoch"));
        assert_eq!(serde_json::json!(order.as_slice()), case["order"], "{case}");
    }
    assert_eq!(Order::sequential(3).as_slice(), [0, 1, 2]);
    assert!(Order::shuffled(0, 1, 1).as_slice().is_empty());
}

#[test]
fn every_order_is_as_likely_as_another() {
    let mut counts: HashMap<Vec<usize>, f64> = HashMap::new();
    let draws = 24_000;
    (0..draws).for_each(|seed| *counts.entry(Order::shuffled(4, seed, 0).as_slice().to_vec()).or_default() += 1.0);
    let expected = draws as f64 / 24.0;
    let chi_squared: f64 = counts.values().map(|count| (count - expected).powi(2) / expected).sum();
    // 23 degrees of freedom: mean 23, standard deviation 6.8.
    assert_eq!(counts.len(), 24);
    assert!(chi_squared < 23.0 + 5.0 * 6.8, "{chi_squared}");
}

proptest! {
    #[test]
    fn each_pair_is_in_one_batch(
        lengths in prop::collection::vec(0_usize..20, 1..60),
        n in 1_usize..9,
        budget in 23_usize..60,
        window in prop::option::of(1_usize..30),
        seed: u64,
    ) {
        let data = of_lengths(&lengths);
        for batching in [Batching::by_pairs(size(n)), Batching::by_tokens(size(budget))] {
            let batching = window.map_or(batching, |window| batching.bucketed(size(window)));
            let batches = batching.epoch(&data, seed, 3).expect("pairs");
            let mut all: Vec<usize> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert!(batches.iter().all(|batch| !batch.is_empty()));
            prop_assert_eq!(&batching.epoch(&data, seed, 3).expect("pairs"), &batches);
            let text = serde_json::to_string(&batching).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<Batching>(&text).expect("JSON"), batching);
        }
        let tokens = |batch: &[usize]| batch.iter().map(|&pair| lengths[pair] + 3).sum::<usize>();
        let by_tokens = Batching::by_tokens(size(budget)).epoch(&data, seed, 3).expect("pairs");
        prop_assert!(by_tokens.iter().all(|batch| tokens(batch) <= budget));
        // Greedy: the next pair had no room.
        for pair in 1..by_tokens.len() {
            let (before, next) = (by_tokens.get(pair - 1).expect("a batch"), by_tokens.get(pair).expect("a batch"));
            prop_assert!(tokens(before) + tokens(&next[..1]) > budget);
        }
        let by_pairs = Batching::by_pairs(size(n)).epoch(&data, seed, 3).expect("pairs");
        prop_assert_eq!(by_pairs.len(), lengths.len().div_ceil(n));
    }

    #[test]
    fn any_place_goes_on_as_if_nothing_had_happened(stop in 0_usize..40, seed: u64) {
        let data = of_lengths(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
        let batching = Batching::by_tokens(size(24)).bucketed(size(5));
        let whole: Vec<_> = batching.steps(&data, seed, Place::default()).expect("pairs").take(60).collect();
        let place = stop.checked_sub(1).map_or(Place::default(), |last| whole[last].0);
        let text = serde_json::to_string(&place).expect("JSON");
        let place = serde_json::from_str(&text).expect("JSON");
        let rest: Vec<_> = batching.steps(&data, seed, place).expect("pairs").take(60 - stop).collect();
        prop_assert_eq!(rest, &whole[stop..]);
    }
}

#[test]
fn steps_are_the_epochs_one_after_another() {
    let data = of_lengths(&[0; 7]);
    let batching = Batching::by_pairs(size(3));
    let steps: Vec<_> = batching.steps(&data, 1, Place::default()).expect("pairs").take(9).collect();
    for epoch in 0..3 {
        let batches = batching.epoch(&data, 1, epoch).expect("pairs");
        for (batch, pairs) in batches.iter().enumerate() {
            let (after, found) = &steps[3 * epoch as usize + batch];
            assert_eq!((found.as_slice(), *after), (pairs, Place { epoch, batch: batch + 1 }));
        }
    }
    let orders: Vec<Vec<usize>> =
        steps.chunks(3).map(|epoch| epoch.iter().flat_map(|(_, b)| b.clone()).collect()).collect();
    assert!(orders[0] != orders[1] && orders[1] != orders[2], "{orders:?}");
}

#[test]
fn buckets_hold_pairs_of_like_length_in_no_order_of_length() {
    let lengths: Vec<usize> = (0..400).map(|index| index * 37 % 101).collect();
    let data = of_lengths(&lengths);
    let spread = |batching: Batching| {
        let batches = batching.epoch(&data, 3, 0).expect("pairs");
        let spreads = batches.iter().map(|batch| {
            let of = |&pair: &usize| lengths[pair];
            batch.iter().map(of).max().unwrap_or(0) - batch.iter().map(of).min().unwrap_or(0)
        });
        spreads.sum::<usize>() as f64 / batches.len() as f64
    };
    let (plain, bucketed) = (Batching::by_pairs(size(8)), Batching::by_pairs(size(8)).bucketed(size(200)));
    // Of 8 uniform on 0..101 about 78; of 200 sorted, 8 in a row, about 4.
    assert!(spread(plain) > 60.0 && spread(bucketed) < 8.0, "{} {}", spread(plain), spread(bucketed));
    let batches = bucketed.epoch(&data, 3, 0).expect("pairs");
    let means: Vec<usize> = batches.iter().map(|batch| batch.iter().map(|&pair| lengths[pair]).sum()).collect();
    let falls = means.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(falls > 15, "sorted batches would train from short to long: {means:?}");
}

#[test]
fn a_pair_without_room_and_data_without_a_pair_are_refused() {
    let data = of_lengths(&[1, 20, 2]);
    let message = refusal(Batching::by_tokens(size(10)).epoch(&data, 0, 0));
    assert!(message.starts_with("pair 1 has 23 tokens, more than the budget of 10 for a batch"), "{message}");
    let none = Batching::by_pairs(size(2)).epoch(&PairDataset::default(), 0, 0);
    assert_eq!(refusal(none), "there is no pair in the data set");
    let read: Batching = serde_json::from_str(r#"{"size": {"tokens": 4096}}"#).expect("JSON");
    assert_eq!(read, Batching::by_tokens(size(4096)));
    assert!(serde_json::from_str::<BatchSize>(r#"{"pairs": 0}"#).is_err());
}
