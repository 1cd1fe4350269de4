//! Packed rows: a small decoder makes of a row what it makes of a padded batch, log-probabilities and gradients alike.

use std::{
    fmt::Display,
    iter::{repeat, repeat_n},
    slice::from_ref,
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use prefopt::{
    Result,
    logps::{Decoder, ResponseLogps, VocabularyHead, response_logps, response_logps_of, response_scores_of},
    packed::{PackedRow, Readout},
    tch::{Cuda, Device, Kind, Tensor, no_grad_guard},
};

use crate::{all_close, numbers};

const VOCAB: i64 = 11;
const CONTEXT: i64 = 450;
const HEADS: i64 = 4;
const HEAD_WIDTH: i64 = 2;
const WIDTH: i64 = HEADS * HEAD_WIDTH;
const SCALE: f64 = 0.7;

const KINDS: [(Kind, f64); 2] = [(Kind::Double, 1e-11), (Kind::Float, 1e-5)];

/// Tokens of each prompt, and of each of its responses.
type Lengths = [(usize, &'static [usize])];

/// Blocks of unlike sizes that are computed together and so padded, with prompts and responses of one token.
const SHORT: &Lengths = &[(3, &[2, 4]), (1, &[1, 1]), (2, &[5, 1]), (7, &[3, 3])];
/// Runs of queries that are cut, into large blocks of their own and a rest of one query.
const LONG: &Lengths = &[(300, &[150, 129])];
const MIXED: &Lengths = &[(2, &[3, 1]), (200, &[150, 1]), (1, &[40, 70]), (30, &[6, 6])];
/// One, two and four responses to a prompt.
const GROUPS: &Lengths = &[(3, &[2]), (4, &[1, 5]), (2, &[3, 1, 4, 2])];

fn generator(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Uniform in ±1, f64.
fn random(rng: &mut ChaCha8Rng, shape: &[i64]) -> Tensor {
    let numbers: Vec<f64> = (0..shape.iter().product::<i64>()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// Norm, query, key, value and output; norm, up and down.
type Layer = [Tensor; 8];

/// Two pre-norm layers with learned positions, and the embedding as vocabulary head.
struct Small {
    embedding: Tensor,
    positions: Tensor,
    layers: [Layer; 2],
    norm: Tensor,
    budget: u64,
    /// Whether the last layer works for the tokens of the readout alone.
    sparing: bool,
}

fn norm(x: &Tensor, weight: &Tensor) -> Tensor {
    x.layer_norm([WIDTH], Some(weight), None, 1e-5, false)
}

fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    x.linear(weight, None::<&Tensor>)
}

fn after_attention(x: &Tensor, seen: &Tensor, layer: &Layer) -> Tensor {
    let [.., output, before, up, down] = layer;
    let x = x + linear(seen, output);
    let inner = linear(&norm(&x, before), up).gelu("none");
    x + linear(&inner, down)
}

impl Small {
    fn new(key_heads: i64, kind: Kind, device: Device) -> Self {
        let (mut rng, keys) = (generator(1), key_heads * HEAD_WIDTH);
        let mut weight =
            |shape: &[i64]| random(&mut rng, shape).to_kind(kind).to_device(device).set_requires_grad(true);
        let shapes: [&[i64]; 8] = [
            &[WIDTH],
            &[WIDTH, WIDTH],
            &[keys, WIDTH],
            &[keys, WIDTH],
            &[WIDTH, WIDTH],
            &[WIDTH],
            &[2 * WIDTH, WIDTH],
            &[WIDTH, 2 * WIDTH],
        ];
        Self {
            embedding: weight(&[VOCAB, WIDTH]),
            positions: weight(&[CONTEXT, WIDTH]),
            layers: [(); 2].map(|()| shapes.map(&mut weight)),
            norm: weight(&[WIDTH]),
            budget: 1 << 20,
            sparing: false,
        }
    }

    fn weights(&self) -> Vec<&Tensor> {
        [&self.embedding, &self.positions, &self.norm].into_iter().chain(self.layers.iter().flatten()).collect()
    }

    fn device(&self) -> Device {
        self.embedding.device()
    }

    fn embed(&self, tokens: &Tensor, positions: &Tensor) -> Tensor {
        self.embedding.index_select(0, tokens) + self.positions.index_select(0, positions)
    }

    /// Hidden states `[batch, time, width]` of padded tokens `[batch, time]`, with attention written out.
    fn padded_hidden(&self, tokens: &Tensor) -> Tensor {
        let (batch, time) = (tokens.size()[0], tokens.size()[1]);
        let positions = Tensor::arange(time, (Kind::Int64, tokens.device())).repeat([batch]);
        let mut x = self.embed(&tokens.flatten(0, 1), &positions).view([batch, time, WIDTH]);
        let later = Tensor::ones([time, time], (Kind::Bool, tokens.device())).triu(1);
        for layer in &self.layers {
            let [before, query, key, value, ..] = layer;
            let normed = norm(&x, before);
            // `[batch, heads, time, head width]`: a key head stands beside each query head that it serves.
            let [q, k, v] = [query, key, value].map(|weight| {
                let states = linear(&normed, weight).view([batch, time, -1, HEAD_WIDTH]).transpose(1, 2);
                states.repeat_interleave_self_int(HEADS / states.size()[1], 1_i64, None::<i64>)
            });
            let scores = (q.matmul(&k.transpose(2, 3)) * SCALE).masked_fill(&later, f64::NEG_INFINITY);
            let seen = scores.softmax(-1, None::<Kind>).matmul(&v).transpose(1, 2).reshape([batch, time, WIDTH]);
            x = after_attention(&x, &seen, layer);
        }
        norm(&x, &self.norm)
    }

    fn padded_sums(&self, groups: &[Group]) -> Result<Tensor> {
        let (tokens, response) = padded(groups, self.device());
        let logits = linear(&self.padded_hidden(&tokens), &self.embedding);
        Ok(response_logps(&logits, &tokens, &response)?.sums)
    }

    fn packed_sums(&self, groups: &[Group]) -> Result<Tensor> {
        Ok(response_logps_of(self, &packed(groups, self.device())?)?.sums)
    }
}

impl Decoder for Small {
    fn hidden(&self, row: &PackedRow, readout: &Readout) -> Result<Tensor> {
        let mut x = self.embed(row.tokens(), row.positions());
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            let asked = if last && self.sparing { readout } else { row.everything() };
            let [before, query, key, value, ..] = layer;
            let normed = norm(&x, before);
            let heads = |x: &Tensor, weight: &Tensor| linear(x, weight).view([x.size()[0], -1, HEAD_WIDTH]);
            let (q, k, v) = (heads(&asked.select(&normed)?, query), heads(&normed, key), heads(&normed, value));
            let seen = asked.attend(&q, &k, &v, SCALE)?.reshape([-1, WIDTH]);
            x = after_attention(&asked.select(&x)?, &seen, layer);
        }
        let x = if self.sparing { x } else { readout.select(&x)? };
        Ok(norm(&x, &self.norm))
    }

    fn head(&self) -> Result<VocabularyHead> {
        Ok(VocabularyHead::new(&self.embedding)?.with_budget(self.budget))
    }
}

/// A prompt and its responses.
type Group = (Vec<i64>, Vec<Vec<i64>>);

fn texts(lengths: &Lengths) -> Vec<Group> {
    let mut rng = generator(2);
    let mut text = |length: usize| -> Vec<i64> { (0..length).map(|_| rng.random_range(0..VOCAB)).collect() };
    lengths.iter().map(|&(prompt, responses)| (text(prompt), responses.iter().map(|&n| text(n)).collect())).collect()
}

/// Each response with its prompt.
fn sequences(groups: &[Group]) -> Vec<(&[i64], &[i64])> {
    let each = groups.iter().flat_map(|(prompt, responses)| responses.iter().map(move |response| (prompt, response)));
    each.map(|(prompt, response)| (&prompt[..], &response[..])).collect()
}

fn packed(groups: &[Group], device: Device) -> Result<PackedRow> {
    let groups = groups.iter().map(|(prompt, responses)| (&prompt[..], responses.iter().map(|r| &r[..])));
    PackedRow::groups(groups, device)
}

/// `[responses, time]`, padded to the longest, and where the responses stand in it.
fn padded(groups: &[Group], device: Device) -> (Tensor, Tensor) {
    let sequences = sequences(groups);
    let time = sequences.iter().map(|(prompt, response)| prompt.len() + response.len()).max().expect("a response");
    let tokens = |(prompt, response): &(&[i64], &[i64])| -> Vec<i64> {
        prompt.iter().chain(*response).copied().chain(repeat(0)).take(time).collect()
    };
    let mask = |(prompt, response): &(&[i64], &[i64])| -> Vec<bool> {
        (0..time).map(|t| (prompt.len()..prompt.len() + response.len()).contains(&t)).collect()
    };
    let tokens: Vec<_> = sequences.iter().map(tokens).collect();
    let mask: Vec<_> = sequences.iter().map(mask).collect();
    (Tensor::from_slice2(&tokens).to_device(device), Tensor::from_slice2(&mask).to_device(device))
}

/// A number in ±1 for each token of a response, which depends on the response alone, wherever it stands.
fn cotangent(response: &[i64]) -> f64 {
    (response.iter().sum::<i64>() as f64).sin() / response.len() as f64
}

/// Numbers of the responses, and the gradient of their product with the cotangents at every weight.
fn measured(model: &Small, groups: &[Group], values: &Tensor) -> [Vec<f64>; 2] {
    let cotangents: Vec<_> = sequences(groups).iter().map(|(_, response)| cotangent(response)).collect();
    let product = values * Tensor::from_slice(&cotangents).to_kind(values.kind()).to_device(values.device());
    let slopes = Tensor::run_backward(&[product.sum(values.kind())], &model.weights(), false, false);
    [numbers(values), slopes.iter().flat_map(numbers).collect()]
}

#[track_caller]
fn same(found: &[Vec<f64>; 2], expected: &[Vec<f64>; 2], tolerance: f64, what: impl Display) {
    all_close(&found[0], &expected[0], tolerance, format_args!("values, {what}"));
    all_close(&found[1], &expected[1], tolerance, format_args!("gradient, {what}"));
}

/// A row against the padded batch, in both kinds and with both last layers.
fn as_padded(lengths: &Lengths, key_heads: i64, device: Device, kinds: &[(Kind, f64)]) -> Result<()> {
    let groups = texts(lengths);
    for &(kind, tolerance) in kinds {
        let mut model = Small::new(key_heads, kind, device);
        let expected = measured(&model, &groups, &model.padded_sums(&groups)?);
        for sparing in [false, true] {
            model.sparing = sparing;
            let found = measured(&model, &groups, &model.packed_sums(&groups)?);
            same(&found, &expected, tolerance, format_args!("{kind:?}, {key_heads} key heads, sparing: {sparing}"));
        }
    }
    Ok(())
}

#[test]
fn short_pairs_score_as_in_a_padded_batch() -> Result<()> {
    as_padded(SHORT, HEADS, Device::Cpu, &KINDS)
}

#[test]
fn so_do_long_ones() -> Result<()> {
    as_padded(LONG, HEADS, Device::Cpu, &KINDS)
}

#[test]
fn so_do_long_beside_short_ones() -> Result<()> {
    as_padded(MIXED, HEADS, Device::Cpu, &KINDS)
}

#[test]
fn a_prompt_serves_any_number_of_responses() -> Result<()> {
    as_padded(GROUPS, HEADS, Device::Cpu, &KINDS)?;
    // The smallest row that there is, whose predicting tokens are one.
    as_padded(&[(1, &[1])], HEADS, Device::Cpu, &KINDS)
}

#[test]
fn a_key_head_serves_its_share_of_the_heads() -> Result<()> {
    for (key_heads, lengths) in [(1, SHORT), (2, SHORT), (1, MIXED), (2, MIXED)] {
        as_padded(lengths, key_heads, Device::Cpu, &KINDS)?;
    }
    Ok(())
}

#[test]
fn a_pair_scores_as_it_does_alone() -> Result<()> {
    let groups = texts(MIXED);
    for (kind, tolerance) in KINDS {
        let model = Small::new(2, kind, Device::Cpu);
        let together = measured(&model, &groups, &model.packed_sums(&groups)?);
        let alone: Result<Vec<_>> = groups.iter().map(|group| model.packed_sums(from_ref(group))).collect();
        let alone = measured(&model, &groups, &Tensor::cat(&alone?, 0));
        same(&alone, &together, tolerance, format_args!("{kind:?}"));
    }
    Ok(())
}

#[test]
fn a_shared_prompt_counts_as_two() -> Result<()> {
    let groups = texts(MIXED);
    let unshared = PackedRow::sequences(sequences(&groups), Device::Cpu)?;
    for (kind, tolerance) in KINDS {
        let model = Small::new(2, kind, Device::Cpu);
        let shared = measured(&model, &groups, &model.packed_sums(&groups)?);
        let unshared = measured(&model, &groups, &response_logps_of(&model, &unshared)?.sums);
        same(&unshared, &shared, tolerance, format_args!("{kind:?}"));
    }
    Ok(())
}

#[test]
fn the_budget_of_the_head_has_no_say() -> Result<()> {
    let groups = texts(SHORT);
    for (kind, tolerance) in KINDS {
        let mut model = Small::new(HEADS, kind, Device::Cpu);
        let expected = measured(&model, &groups, &model.packed_sums(&groups)?);
        for budget in [1, 200, 1000, 5000, u64::MAX] {
            model.budget = budget;
            let found = measured(&model, &groups, &model.packed_sums(&groups)?);
            same(&found, &expected, tolerance, format_args!("{kind:?} in {budget} bytes"));
        }
    }
    Ok(())
}

#[test]
fn pairs_in_another_order_have_their_sums_in_that_order() -> Result<()> {
    let (groups, model) = (texts(MIXED), Small::new(HEADS, Kind::Double, Device::Cpu));
    let [sums, slopes] = measured(&model, &groups, &model.packed_sums(&groups)?);
    for order in [[3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 3, 1]] {
        let ordered = order.map(|pair| groups[pair].clone());
        let found = measured(&model, &ordered, &model.packed_sums(&ordered)?);
        let moved = order.into_iter().flat_map(|pair| [sums[2 * pair], sums[2 * pair + 1]]).collect();
        same(&found, &[moved, slopes.clone()], 1e-11, format_args!("{order:?}"));
    }
    Ok(())
}

/// Group and response of each token of a row; the prompt counts as response 0.
fn homes(lengths: &Lengths) -> Vec<(usize, usize)> {
    let mut homes = vec![];
    for (group, (prompt, responses)) in lengths.iter().enumerate() {
        for (response, tokens) in [*prompt].iter().chain(*responses).enumerate() {
            homes.extend(repeat_n((group, response), *tokens));
        }
    }
    homes
}

#[test]
fn attention_is_a_softmax_over_prompt_and_response() -> Result<()> {
    let (home, row) = (homes(MIXED), packed(&texts(MIXED), Device::Cpu)?);
    let sees = |i: usize, j: usize| j <= i && home[j].0 == home[i].0 && [0, home[i].1].contains(&home[j].1);
    let ends = |i: usize| home.get(i + 1) != Some(&home[i]);
    let tokens = home.len();
    let rows = |wanted: &dyn Fn(usize) -> bool| -> Vec<usize> { (0..tokens).filter(|&i| wanted(i)).collect() };
    let (predicting, last) = (row.predicting(), row.last());
    let readouts = [
        (row.everything(), rows(&|_| true)),
        // A prompt's last token predicts, and any of a response but its last.
        (&predicting, rows(&|i| (home[i].1 == 0) == ends(i))),
        (&last, rows(&|i| home[i].1 > 0 && ends(i))),
    ];
    for (readout, rows) in &readouts {
        let hidden: Vec<Vec<bool>> = rows.iter().map(|&i| (0..tokens).map(|j| !sees(i, j)).collect()).collect();
        let (hidden, read) = (Tensor::from_slice2(&hidden), rows.len());
        for (heads, key_heads) in [(4, 4), (4, 2), (4, 1), (1, 1)] {
            let mut rng = generator(3);
            let mut tensor = |rows: usize, heads: i64| random(&mut rng, &[rows as i64, heads, 3]);
            let [q, k, v] = [(read, heads), (tokens, key_heads), (tokens, key_heads)]
                .map(|(rows, heads)| tensor(rows, heads).set_requires_grad(true));
            let cotangent = tensor(read, heads);
            let measured = |output: &Tensor| -> [Vec<f64>; 2] {
                let product = (output * &cotangent).sum(Kind::Double);
                let slopes = Tensor::run_backward(&[product], &[&q, &k, &v], false, false);
                [numbers(output), slopes.iter().flat_map(numbers).collect()]
            };
            let by_head =
                |x: &Tensor| x.repeat_interleave_self_int(heads / x.size()[1], 1_i64, None::<i64>).transpose(0, 1);
            let scores = by_head(&q).matmul(&by_head(&k).transpose(1, 2)) * 0.3;
            let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, None::<Kind>);
            let expected = measured(&weights.matmul(&by_head(&v)).transpose(0, 1));
            let found = measured(&readout.attend(&q, &k, &v, 0.3)?);
            same(&found, &expected, 1e-11, format_args!("{read} tokens, {heads} heads, {key_heads} key heads"));
        }
    }
    Ok(())
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor).expect("a vector of integers")
}

#[test]
fn a_row_by_hand() -> Result<()> {
    let pairs: [(&[i64], &[i64], &[i64]); 2] = [(&[5, 6, 7], &[8, 0], &[9, 9, 0]), (&[4], &[1], &[2, 3])];
    let row = PackedRow::pairs(pairs, Device::Cpu)?;
    assert_eq!((row.len(), row.responses()), (12, 4));
    assert_eq!(integers(row.tokens()), [5, 6, 7, 8, 0, 9, 9, 0, 4, 1, 2, 3]);
    assert_eq!(integers(row.positions()), [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1, 2]);
    assert_eq!(integers(&row.lengths()), [2, 3, 1, 2]);
    let indices = Tensor::arange(12, (Kind::Int64, Device::Cpu));
    let everything: Vec<i64> = (0..12).collect();
    let (predicting, last) = (row.predicting(), row.last());
    for (readout, expected) in
        [(row.everything(), everything), (&predicting, vec![2, 3, 5, 6, 8, 10]), (&last, vec![4, 7, 9, 11])]
    {
        assert_eq!(integers(&readout.select(&indices)?), expected);
        assert_eq!(readout.len(), expected.len() as i64);
    }
    Ok(())
}

#[test]
fn pairs_and_sequences_are_groups_of_two_and_of_one() -> Result<()> {
    let groups = texts(SHORT);
    let pairs = groups.iter().map(|(prompt, responses)| (&prompt[..], &responses[0][..], &responses[1][..]));
    let alone: Vec<Group> =
        sequences(&groups).iter().map(|(prompt, response)| (prompt.to_vec(), vec![response.to_vec()])).collect();
    for (found, expected) in [
        (PackedRow::pairs(pairs, Device::Cpu)?, packed(&groups, Device::Cpu)?),
        (PackedRow::sequences(sequences(&groups), Device::Cpu)?, packed(&alone, Device::Cpu)?),
    ] {
        assert_eq!(integers(found.tokens()), integers(expected.tokens()));
        assert_eq!(integers(found.positions()), integers(expected.positions()));
        assert_eq!(integers(&found.lengths()), integers(&expected.lengths()));
    }
    Ok(())
}

/// A linear score of each response's last hidden state, which has read the whole of it.
#[test]
fn a_reward_head_reads_at_the_last_tokens() -> Result<()> {
    let head = random(&mut generator(4), &[WIDTH]);
    for lengths in [SHORT, LONG, GROUPS] {
        let (groups, mut model) = (texts(lengths), Small::new(2, Kind::Double, Device::Cpu));
        let row = packed(&groups, Device::Cpu)?;
        let (tokens, _) = padded(&groups, Device::Cpu);
        let at = |(i, (prompt, response)): (usize, &(&[i64], &[i64]))| {
            i as i64 * tokens.size()[1] + (prompt.len() + response.len()) as i64 - 1
        };
        let ends: Vec<i64> = sequences(&groups).iter().enumerate().map(at).collect();
        let states = model.padded_hidden(&tokens).flatten(0, 1).index_select(0, &Tensor::from_slice(&ends));
        let expected = measured(&model, &groups, &states.matmul(&head));
        for sparing in [false, true] {
            model.sparing = sparing;
            let found = measured(&model, &groups, &model.hidden(&row, &row.last())?.matmul(&head));
            same(&found, &expected, 1e-11, format_args!("sparing: {sparing}"));
        }
    }
    Ok(())
}

fn logps(sums: &[f64]) -> ResponseLogps {
    let lengths: Vec<i64> = (1..=sums.len() as i64).collect();
    ResponseLogps { sums: Tensor::from_slice(sums), lengths: Tensor::from_slice(&lengths) }
}

#[test]
fn even_responses_are_chosen_and_odd_ones_rejected() -> Result<()> {
    let (pairs, lengths) = logps(&[-1.0, -2.0, -3.0, -4.0]).into_pairs(&logps(&[-5.0, -6.0, -7.0, -8.0]))?;
    assert_eq!((numbers(pairs.chosen()), numbers(pairs.rejected())), (vec![-1.0, -3.0], vec![-2.0, -4.0]));
    assert_eq!((numbers(pairs.ref_chosen()), numbers(pairs.ref_rejected())), (vec![-5.0, -7.0], vec![-6.0, -8.0]));
    assert_eq!((integers(lengths.chosen()), integers(lengths.rejected())), (vec![1, 3], vec![2, 4]));
    Ok(())
}

#[test]
fn a_policy_equal_to_its_reference_has_no_margin() -> Result<()> {
    let (groups, model) = (texts(MIXED), Small::new(2, Kind::Float, Device::Cpu));
    let row = packed(&groups, Device::Cpu)?;
    let reference = {
        let _no_grad = no_grad_guard();
        response_logps_of(&model, &row)?
    };
    let (pairs, lengths) = response_logps_of(&model, &row)?.into_pairs(&reference)?;
    assert_eq!(numbers(&pairs.log_ratio_margin()), [0.0; 4]);
    assert!(pairs.chosen().requires_grad() && !reference.sums.requires_grad());
    assert_eq!((integers(lengths.chosen()), integers(lengths.rejected())), (vec![3, 150, 40, 6], vec![1, 1, 70, 6]));
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn rows_without_tokens_are_refused() {
    let (some, none): (&[i64], &[i64]) = (&[1, 2], &[]);
    let no_prompt = "the prompt of group 1 has no token: the first token of a response is predicted by the last of its prompt; give it a begin-of-sequence token";
    let no_response =
        "the response of group 1 has no token: it has no log-probability; an end-of-sequence token is the least";
    let pairs =
        |prompt, chosen, rejected| PackedRow::pairs([(some, some, some), (prompt, chosen, rejected)], Device::Cpu);
    refused(pairs(none, some, some), no_prompt);
    refused(pairs(some, none, some), no_response);
    refused(pairs(some, some, none), no_response);
    refused(PackedRow::sequences([(some, some), (some, none)], Device::Cpu), no_response);
    let empty = "a packed row is empty: shape [tokens] needs at least one element";
    refused(PackedRow::pairs([], Device::Cpu), empty);
    refused(PackedRow::sequences([], Device::Cpu), empty);
    let none_at_all = "the response of group 0 has no token: there is none at all";
    refused(PackedRow::groups([(some, [])], Device::Cpu), none_at_all);
}

/// A decoder that returns all tokens where some were asked for: every index would be there, and be another token's.
#[test]
fn a_decoder_that_forgets_to_select_is_refused() -> Result<()> {
    #[derive(Debug)]
    struct Forgetful(Tensor);
    impl Decoder for Forgetful {
        fn hidden(&self, row: &PackedRow, _: &Readout) -> Result<Tensor> {
            Ok(self.0.index_select(0, row.tokens()))
        }
        fn head(&self) -> Result<VocabularyHead> {
            VocabularyHead::new(&self.0)
        }
    }
    let pairs: [(&[i64], &[i64], &[i64]); 1] = [(&[1, 2, 3], &[4, 5], &[6, 7, 8])];
    let row = PackedRow::pairs(pairs, Device::Cpu)?;
    let model = Forgetful(Tensor::zeros([9, 2], (Kind::Double, Device::Cpu)));
    let message = "hidden must have shape [tokens read, width] with tokens read = 4, got tokens read = 8";
    refused(response_logps_of(&model, &row), message);
    let short = Tensor::zeros([7, 2], (Kind::Double, Device::Cpu));
    let message = "states must have shape [tokens, ..] with tokens = 8, got tokens = 7";
    refused(row.everything().select(&short), message);
    refused(row.predicting().select(&short), message);
    Ok(())
}

/// Entropy and hits come with the same log-probabilities, a row for each response token.
#[test]
fn scores_come_with_the_log_probabilities() -> Result<()> {
    let pairs: [(&[i64], &[i64], &[i64]); 2] = [(&[1, 2, 3], &[4, 5], &[6, 7, 8]), (&[3], &[1], &[2, 2])];
    let row = PackedRow::pairs(pairs, Device::Cpu)?;
    let model = Small::new(4, Kind::Double, Device::Cpu);
    let (logps, tokens) = response_scores_of(&model, &row)?;
    assert_eq!(numbers(&logps.sums), numbers(&response_logps_of(&model, &row)?.sums));
    assert_eq!(tokens.entropy.size(), [8]);
    let sums = [0..2, 2..5, 5..6, 6..8].map(|of| numbers(&tokens.logps)[of].iter().sum::<f64>());
    all_close(&numbers(&logps.sums), &sums, 1e-14, "sums of the tokens");
    Ok(())
}

#[test]
fn attention_over_other_tokens_is_refused() -> Result<()> {
    let pairs: [(&[i64], &[i64], &[i64]); 1] = [(&[1, 2, 3], &[4, 5], &[6, 7, 8])];
    let row = PackedRow::pairs(pairs, Device::Cpu)?;
    let zeros = |shape: [i64; 3]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    let attend = |q: [i64; 3], k: [i64; 3], v: [i64; 3]| row.everything().attend(&zeros(q), &zeros(k), &zeros(v), 1.0);
    let (fits, narrow) = ([8, 4, 2], [8, 2, 2]);
    let _ = attend(fits, narrow, narrow)?;

    const QUERY: &str = "query must have shape [tokens read, heads, head width] with";
    refused(attend([7, 4, 2], fits, fits), &format!("{QUERY} tokens read = 8, got tokens read = 7"));
    // The same query is too long for a readout of fewer tokens.
    let (q, k) = (zeros(fits), zeros(fits));
    refused(row.last().attend(&q, &k, &k, 1.0), &format!("{QUERY} tokens read = 2, got tokens read = 8"));
    refused(attend([8, 3, 2], narrow, narrow), &format!("{QUERY} heads = 2, got heads = 3"));
    refused(attend([8, 1, 2], narrow, narrow), &format!("{QUERY} heads = 2, got heads = 1"));

    const KEY: &str = "must have shape [tokens, key heads, head width] with";
    refused(attend(fits, [7, 4, 2], fits), &format!("key {KEY} tokens = 8, got tokens = 7"));
    refused(attend(fits, fits, [7, 4, 2]), &format!("value {KEY} tokens = 8, got tokens = 7"));
    refused(attend(fits, fits, narrow), &format!("value {KEY} key heads = 4, got key heads = 2"));
    refused(attend(fits, [8, 4, 3], fits), &format!("key {KEY} head width = 2, got head width = 3"));
    refused(attend(fits, fits, [8, 4, 3]), &format!("value {KEY} head width = 2, got head width = 3"));

    let flat = q.view([8, 8]);
    refused(
        row.everything().attend(&flat, &k, &k, 1.0),
        "query must have shape [tokens read, heads, head width], got [8, 8]",
    );
    refused(
        row.everything().attend(&q, &flat, &k, 1.0),
        "key must have shape [tokens, key heads, head width], got [8, 8]",
    );
    let integer = q.to_kind(Kind::Int64);
    refused(row.everything().attend(&integer, &k, &k, 1.0), "query must be of a floating-point kind, got Int64");
    let single = q.to_kind(Kind::Float);
    refused(
        row.everything().attend(&q, &single, &k, 1.0),
        "key must be Double like the tensors it goes with, got Float",
    );
    refused(
        row.everything().attend(&q, &k, &single, 1.0),
        "value must be Double like the tensors it goes with, got Float",
    );
    Ok(())
}

#[test]
fn what_is_not_pairs_is_not_split() {
    let refused = |policy: &[f64], reference: &[f64], message: &str| {
        refused(logps(policy).into_pairs(&logps(reference)), message);
    };
    const EVEN: &str = "must have shape [2 · pairs] with responses = 4, got responses = 3";
    refused(&[0.0; 3], &[0.0; 4], &format!("sums {EVEN}"));
    refused(&[0.0; 4], &[0.0; 3], &format!("reference sums {EVEN}"));
    let said = "ref_chosen_logps must have shape [batch] with batch = 2, got batch = 1";
    refused(&[0.0; 4], &[0.0; 2], said);
}

#[test]
fn on_a_gpu() -> Result<()> {
    if !Cuda::is_available() {
        eprintln!("skipped: no GPU");
        return Ok(());
    }
    for lengths in [SHORT, LONG, MIXED] {
        let groups = texts(lengths);
        for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-4)] {
            let on = |device| -> Result<[Vec<f64>; 2]> {
                let model = Small { sparing: true, ..Small::new(2, kind, device) };
                Ok(measured(&model, &groups, &model.packed_sums(&groups)?))
            };
            same(&on(Device::Cuda(0))?, &on(Device::Cpu)?, tolerance, format_args!("{kind:?}"));
        }
        as_padded(lengths, 2, Device::Cuda(0), &[(Kind::Double, 1e-10)])?;
    }
    Ok(())
}
