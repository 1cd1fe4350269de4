//! Pairs in tokens: what is kept beside them, parts of them, what two runs can compare them by.

use std::collections::BTreeSet;

use prefopt::{
    data::{Column, Digest, PairDataset, Record, Texts, gather},
    tch::{Device, Kind},
};
use proptest::prelude::*;

use super::{GOLDEN, record, refusal, tokenized, tokenizer};
use crate::numbers;

fn dataset(pairs: &[[&[u32]; 3]]) -> PairDataset {
    let mut data = PairDataset::default();
    for [prompt, chosen, rejected] in pairs {
        data.push(prompt, chosen, rejected).expect("tokens");
    }
    data
}

/// The prompts 0 to n − 1, a token each.
fn prompts(n: u32) -> PairDataset {
    let mut data = PairDataset::default();
    (0..n).for_each(|prompt| data.push(&[prompt], &[1], &[2, 3]).expect("tokens"));
    data
}

#[test]
fn pairs_come_back_as_they_were_put_in() {
    let data = dataset(&[[&[1, 2], &[3], &[4, 5, 6]], [&[7], &[8, 9], &[10]]]);
    let first = data.pair(0).expect("a pair");
    assert_eq!(
        (first.prompt, first.chosen, first.rejected, first.tokens()),
        (&[1, 2][..], &[3][..], &[4, 5, 6][..], 6)
    );
    let second = data.pair(1).expect("a pair");
    assert_eq!((second.prompt, second.chosen, second.rejected), (&[7][..], &[8, 9][..], &[10][..]));
    assert_eq!((data.len(), data.tokens(), data.pair(2), data.labels()), (2, 10, None, &[1.0, 1.0][..]));
    assert_eq!(refusal(PairDataset::default().push(&[1], &[], &[2])), "the chosen of pair 0 has no token");
}

#[test]
fn a_batch_is_a_row_of_its_pairs_in_its_order() -> prefopt::Result<()> {
    let data = dataset(&[[&[1, 2], &[3], &[4, 5, 6]], [&[7], &[8, 9], &[10]]]);
    let row = data.row(&[1, 0], Device::Cpu)?;
    assert_eq!(Vec::<i64>::try_from(row.tokens())?, [7, 8, 9, 10, 1, 2, 3, 4, 5, 6]);
    assert_eq!(Vec::<i64>::try_from(row.lengths())?, [2, 1, 1, 3]);
    assert_eq!(refusal(data.row(&[0, 2], Device::Cpu)), "pair 2 was asked for, but there are 2, numbered from 0");
    let labels = gather(&[0.5, 0.25, 1.0], &[2, 0, 2], (Kind::Float, Device::Cpu))?;
    assert_eq!((labels.kind(), numbers(&labels)), (Kind::Float, vec![1.0, 0.5, 1.0]));
    assert!(refusal(gather(&[0.5], &[1], (Kind::Float, Device::Cpu))).starts_with("pair 1 was asked for"));
    Ok(())
}

fn voted() -> PairDataset {
    let lines = [
        r#"{"prompt": "p", "responses": ["a", "b"], "votes": [{"annotator": "t", "choice": 0.5}, {"annotator": "u", "choice": 1}]}"#,
        r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "weight": 3}"#,
        r#"{"prompt": "p", "responses": ["a", "b"], "votes": [{"annotator": "v", "choice": 0}, {"annotator": "u", "choice": 0.9}, {"annotator": "v", "choice": 0}], "weight": 4}"#,
    ];
    tokenized(lines.map(record).to_vec(), &tokenizer(&[])).pairs
}

#[test]
fn votes_and_columns_stay_with_their_pairs() -> prefopt::Result<()> {
    let data = voted();
    assert_eq!(data.labels()[..2], [0.75, 1.0]);
    assert!((data.labels()[2] - 2.1 / 3.0).abs() < 1e-15);
    // t only called a tie. u preferred b, which is called chosen in the first pair and rejected in the third.
    let (votes, names) = data.votes()?;
    assert_eq!((votes.annotators(), votes.pairs(), names), (2, 3, vec!["u", "v"]));
    assert_eq!(votes.of(0).collect::<Vec<_>>(), [(0, true), (2, false)]);
    assert_eq!(votes.of(1).collect::<Vec<_>>(), [(2, true), (2, true)]);
    let message = refusal(data.column(Column::Weight));
    assert_eq!(message, "the column `weight` was asked for, but pair 0 has none");
    assert!(refusal(data.column(Column::Margin)).contains("pair 0"));
    assert!(data.has_some(Column::Margin) && data.has_some(Column::Weight) && !data.has_some(Column::ScoreChosen));
    assert!(!data.select(&[0, 2])?.has_some(Column::Margin));

    let part = data.select(&[2, 1])?;
    assert_eq!(part.column(Column::Weight)?, [4.0, 3.0]);
    assert!(refusal(part.column(Column::Margin)).contains("pair 0"));
    assert_eq!(part.labels(), [data.labels()[2], 1.0]);
    let (votes, names) = part.votes()?;
    assert_eq!((votes.of(0).collect::<Vec<_>>(), names), (vec![(0, true), (0, true)], vec!["v", "u"]));
    assert_eq!(part.pair(0), data.pair(2));
    assert!(refusal(data.select(&[3])).starts_with("pair 3 was asked for"));
    let message = refusal(prompts(2).votes());
    assert!(message.contains("is empty"), "{message}");
    Ok(())
}

#[test]
fn the_digest_is_of_tokens_and_of_where_they_part() {
    let pairs: Vec<[Vec<u32>; 3]> = serde_json::from_value(GOLDEN["pairs"].clone()).expect("tokens");
    let of = |pairs: &[[Vec<u32>; 3]]| {
        let mut data = PairDataset::default();
        pairs.iter().for_each(|[p, w, l]| data.push(p, w, l).expect("tokens"));
        data.digest()
    };
    assert_eq!(of(&pairs).to_string(), GOLDEN["digest"], "another implementation");
    // Another token, another boundary, another order, one pair less: another digest. Another label: the same.
    let mut others = vec![of(&[pairs[1].clone(), pairs[0].clone()]), of(&pairs[..1])];
    let mut token = pairs.clone();
    token[1][2][0] = 4;
    others.push(of(&token));
    let mut boundary = pairs.clone();
    let moved = boundary[0][0].pop().expect("a token");
    boundary[0][1].insert(0, moved);
    others.push(of(&boundary));
    for (index, other) in others.iter().enumerate() {
        assert_ne!(*other, of(&pairs), "change {index}");
    }
    let labelled = |label: f64| {
        let texts = Texts::Plain { prompt: "p".to_owned(), chosen: "a".to_owned(), rejected: "b".to_owned() };
        let mut record = Record::new(texts);
        record.label = label;
        tokenized(vec![record], &tokenizer(&[])).pairs.digest()
    };
    assert_eq!(labelled(1.0), labelled(0.7));
}

#[test]
fn a_model_is_known_by_its_bytes() {
    let folder = super::Folder::new();
    let files = [folder.file("b.safetensors", "second"), folder.file("a.safetensors", "first")];
    let digest = Digest::of_files(&files).expect("files");
    assert_eq!(digest.to_string(), GOLDEN["files"], "in the order of their names");
    let moved = super::Folder::new();
    let copies = [moved.file("1", "first"), moved.file("2", "second")];
    assert_eq!(Digest::of_files(&copies).expect("files"), digest);
    // The same bytes, parted elsewhere.
    let parted = [moved.file("3", "firsts"), moved.file("4", "econd")];
    assert_ne!(Digest::of_files(&parted).expect("files"), digest);
    assert!(refusal(Digest::of_files(&["/no/such/weights"])).starts_with("/no/such/weights: "));
    assert_eq!(Digest::from([0xab; 32]).to_string(), "ab".repeat(32));
}

#[test]
fn a_split_keeps_prompts_together_and_does_not_move_when_data_are_added() {
    let held_out: Vec<f64> = serde_json::from_value(GOLDEN["held_out"].clone()).expect("numbers");
    for share in [0.2, 0.5] {
        let [rest, out] = prompts(40).split(share, 9).expect("both sides");
        let found: Vec<u32> = out.iter().map(|pair| pair.prompt[0]).collect();
        let expected: Vec<u32> = (0..40).filter(|&prompt| held_out[prompt as usize] < share).collect();
        assert_eq!(found, expected, "another implementation");
        assert_eq!(rest.len() + out.len(), 40);
    }
    let side = |data: &PairDataset| -> Vec<u32> {
        data.split(0.3, 5).expect("both sides")[1].iter().map(|pair| pair.prompt[0]).filter(|&p| p < 200).collect()
    };
    let (small, large) = (side(&prompts(200)), side(&prompts(2000)));
    assert_eq!(small, large);
    // 60 ± 3 · 6.5.
    assert!((40..=80).contains(&small.len()), "{}", small.len());
    // Two pairs of each prompt: never one on each side.
    let twice = prompts(100).select(&(0..100).chain(0..100).collect::<Vec<_>>()).expect("pairs");
    let [rest, out] = twice.split(0.5, 1).expect("both sides");
    assert!(out.iter().all(|held| rest.iter().all(|pair| pair.prompt != held.prompt)));
    assert_eq!(refusal(twice.split(1.0, 1)), "the held-out share must be above 0 and below 1, got 1");
    assert_eq!(refusal(twice.split(1e-9, 1)), "there is no pair in the held-out part");
    assert_eq!(refusal(twice.split(1.0 - 1e-9, 1)), "there is no pair in the training part");
}

#[test]
fn a_prompt_is_on_one_side_whatever_its_responses_take_of_it() {
    // Of two pairs of each prompt one has a response that goes on inside the prompt's last token.
    let pair = |letter: char, [chosen, rejected]: [&str; 2]| {
        let [chosen, rejected] = [chosen, rejected].map(str::to_owned);
        Record::new(Texts::Plain { prompt: format!("{letter}b"), chosen, rejected })
    };
    let both = |letter| [["cd", "e"], ["d", "e"]].map(|responses| pair(letter, responses));
    let found = tokenized(('d'..='z').flat_map(both).collect(), &tokenizer(&[("b", "c")]));
    assert_eq!((found.report.kept, found.report.moved), (46, 23));
    let letters = |pairs: &PairDataset| pairs.iter().map(|pair| pair.prompt[1]).collect::<BTreeSet<_>>();
    for seed in 0..4 {
        let [rest, out] = found.pairs.split(0.5, seed).expect("both sides");
        assert_eq!((rest.len() + out.len(), letters(&rest).len() + letters(&out).len()), (46, 23));
        // Pairs that were selected know their prompt.
        let backwards = found.pairs.select(&(0..46).rev().collect::<Vec<_>>()).expect("pairs");
        assert_eq!(letters(&backwards.split(0.5, seed).expect("both sides")[1]), letters(&out));
    }
}

proptest! {
    #[test]
    fn any_pairs_come_back(pairs in prop::collection::vec(prop::array::uniform3(prop::collection::vec(any::<u32>(), 1..6)), 0..20)) {
        let mut data = PairDataset::default();
        for [prompt, chosen, rejected] in &pairs {
            data.push(prompt, chosen, rejected).expect("tokens");
        }
        let found: Vec<_> = data.iter().map(|pair| [pair.prompt, pair.chosen, pair.rejected].map(<[u32]>::to_vec)).collect();
        prop_assert_eq!(found, pairs);
    }
}
