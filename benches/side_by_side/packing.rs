//! Pairs through a GPT, forward and backward: each prompt once, or twice, or padded.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result};
use prefopt::{logps::response_logps_of, packed::PackedRow};
use tch::{Device, Kind, nn};

use crate::{
    gpt::{Gpt, GptConfig},
    measure::{Table, add_peer, peak, peer_product, products, race, with_product},
};

/// Token ids of a prompt and its two responses.
type Pair = [Vec<i64>; 3];

struct Model {
    store: nn::VarStore,
    gpt: Gpt,
}

impl Model {
    fn new(config: GptConfig) -> Self {
        let store = nn::VarStore::new(Device::Cpu);
        let gpt = Gpt::new(&store.root(), config);
        Self { store, gpt }
    }

    fn descend(&mut self, row: &PackedRow) -> Result<()> {
        response_logps_of(&self.gpt, row)?.sums.sum(Kind::Float).f_backward()?;
        self.store.trainable_variables().iter_mut().for_each(tch::Tensor::zero_grad);
        Ok(())
    }

    fn shared(&mut self, pairs: &[Pair]) -> Result<()> {
        let row = pairs.iter().map(|[prompt, chosen, rejected]| (&prompt[..], &chosen[..], &rejected[..]));
        self.descend(&PackedRow::pairs(row, Device::Cpu)?)
    }

    fn unshared(&mut self, pairs: &[Pair]) -> Result<()> {
        let row = pairs
            .iter()
            .flat_map(|[prompt, chosen, rejected]| [(&prompt[..], &chosen[..]), (&prompt[..], &rejected[..])]);
        self.descend(&PackedRow::sequences(row, Device::Cpu)?)
    }
}

/// Lengths to random ids.
fn pairs(lengths: impl IntoIterator<Item = [usize; 3]>, vocab: i64) -> Vec<Pair> {
    let mut next = 1_i64;
    let mut ids = |n: usize| {
        let draw = |_| {
            next = (next * 48271) % 2_147_483_647;
            next % vocab
        };
        (0..n).map(draw).collect::<Vec<i64>>()
    };
    lengths.into_iter().map(|of| of.map(&mut ids)).collect()
}

pub const LARGE: GptConfig = GptConfig { vocab: 49152, context: 2048, width: 576, heads: 9, layers: 30 };

pub fn run(table: &mut Table, file: Option<&Path>) -> Result<()> {
    let small = GptConfig { context: 512, ..GptConfig::default() };
    for (name, config, batch, turns) in
        [("small GPT", small, 16, 15), ("small GPT", small, 64, 9), ("30 layers x 576", LARGE, 4, 2)]
    {
        let prompt_and_responses = if config.layers == 30 { [192, 64, 64] } else { [48, 16, 16] };
        let data = pairs((0..batch).map(|_| prompt_and_responses), config.vocab);
        let model = std::cell::RefCell::new(Model::new(config));
        table.heading(&format!("{name}: {batch} pairs of {prompt_and_responses:?} tokens (prompt, chosen, rejected)"));
        for product in products()? {
            with_product(product, || {
                let mut shared = || model.borrow_mut().shared(&data);
                let mut unshared = || model.borrow_mut().unshared(&data);
                let (shared_mb, unshared_mb) = (peak(&mut shared)?, peak(&mut unshared)?);
                let [once, twice] = race(turns, [&mut shared, &mut unshared])?;
                let part = format!("{batch} pairs, {name}, {product}");
                table.row(&part, &format!("each prompt once, {product}"), once, shared_mb);
                table.row(&part, &format!("each prompt twice, no padding, {product}"), twice, unshared_mb);
                table.ratio("once / twice (tokens alone: 0.625)", once, twice);
                Ok(())
            })?;
        }
    }
    let Some(file) = file else { return Ok(()) };
    real(table, file)
}

/// Pairs of a file's lengths, in batches of four, beside a padded batch in PyTorch.
fn real(table: &mut Table, file: &Path) -> Result<()> {
    const BATCH: usize = 4;
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lengths = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let numbers: Vec<usize> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        lengths.push(<[usize; 3]>::try_from(numbers).ok().with_context(|| format!("{}:{}", file.display(), i + 1))?);
    }
    let data = pairs(lengths.iter().copied(), LARGE.vocab);
    let tokens: usize = data.iter().flatten().map(Vec::len).sum();
    let padded: usize = lengths
        .chunks(BATCH)
        .map(|batch| 2 * batch.len() * batch.iter().map(|[p, c, r]| p + c.max(r)).max().unwrap_or(0))
        .sum();
    table.heading(&format!(
        "30 layers x 576: {} real pairs in batches of {BATCH}: {tokens} tokens packed, {padded} padded ({:.3})",
        data.len(),
        tokens as f64 / padded as f64
    ));
    let model = std::cell::RefCell::new(Model::new(LARGE));
    let path = file.to_string_lossy();
    for product in products()? {
        with_product(product, || {
            let mut ours = || data.chunks(BATCH).try_for_each(|batch| model.borrow_mut().shared(batch));
            let twice = || data.chunks(BATCH).try_for_each(|batch| model.borrow_mut().unshared(batch));
            // Minutes each: nothing is run only to warm up.
            let start = Instant::now();
            let mb = peak(&mut ours)?;
            let before = start.elapsed().as_secs_f64();
            let start = Instant::now();
            twice()?;
            let unshared = start.elapsed().as_secs_f64();
            let part = format!("real pairs, {product}");
            table.row(&part, &format!("prefopt, {product}"), before, mb);
            table.row(&part, &format!("prefopt, each prompt twice, {product}"), unshared, None);
            let batch = BATCH.to_string();
            let arguments = [
                "padded",
                "30",
                "576",
                "9",
                "49152",
                "--lengths",
                &path,
                "--batch",
                &batch,
                "--product",
                peer_product(product),
                "--repeat",
                "1",
            ];
            let theirs = add_peer(table, &part, &format!("peer: padded batch in PyTorch, {product}"), &arguments)?;
            table.ratio("once / twice", before, unshared);
            if let Some(theirs) = theirs {
                let start = Instant::now();
                ours()?;
                let after = start.elapsed().as_secs_f64();
                table.row(&part, &format!("prefopt again, {product}"), after, None);
                table.ratio("prefopt / padded", f64::midpoint(before, after), theirs);
            }
            Ok(())
        })?;
    }
    Ok(())
}
