//! Any head on any decoder.

use prefopt::{
    Result,
    logps::{Decoder, VocabularyHead},
    packed::{PackedRow, Readout},
    reward::{EnsembleHead, RewardScorer, ScalarHead, pair_rewards_of, response_rewards_of},
    tch::{Device, Kind, Tensor, nn, no_grad_guard},
};

use super::{row, sequences};
use crate::{
    all_close,
    lm::{
        Outcome, refused,
        tiny::{self, Golden},
    },
    numbers,
};

/// h = tanh(e[token] + p[position]): a decoder of somebody's own, which selects what it is asked for, or forgets to.
struct Bag {
    embedding: Tensor,
    positions: Tensor,
    forgetful: bool,
}

impl Bag {
    const WIDTH: i64 = 4;

    fn new(kind: Kind, forgetful: bool) -> Self {
        let table = |name: &str, rows: i64| tiny::value(name, &[rows, Self::WIDTH]).to_kind(kind);
        Self { embedding: table("embedding", 13), positions: table("positions", 16), forgetful }
    }
}

impl Decoder for Bag {
    fn hidden(&self, row: &PackedRow, readout: &Readout) -> Result<Tensor> {
        let rows = |table: &Tensor, index: &Tensor| table.index_select(0, index);
        let hidden = (rows(&self.embedding, row.tokens()) + rows(&self.positions, row.positions())).tanh();
        if self.forgetful { Ok(hidden) } else { readout.select(&hidden) }
    }

    fn head(&self) -> Result<VocabularyHead> {
        VocabularyHead::new(&self.embedding)
    }
}

/// A scorer that mixes up its axes.
struct Turned(ScalarHead);

impl RewardScorer for Turned {
    fn members(&self) -> i64 {
        1
    }

    fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.0.scores(hidden)?.tr())
    }
}

#[test]
fn any_head_stands_on_any_decoder() -> Outcome {
    let golden = Golden::read();
    let (row, sequences) = (row(&golden)?, sequences(&golden));
    let vs = nn::VarStore::new(Device::Cpu);
    let head = EnsembleHead::new(&vs.root(), Bag::WIDTH, 5, 3);
    {
        let _no_grad = no_grad_guard();
        for (name, variable) in vs.variables() {
            variable.shallow_clone().copy_(&tiny::value(&name, &variable.size()));
        }
    }
    // Half precision is widened before the head.
    for kind in [Kind::Float, Kind::BFloat16] {
        let bag = Bag::new(kind, false);
        let last = sequences.map(|(prompt, response)| {
            let position = (prompt.len() + response.len() - 1) as i64;
            let token = *response.last().expect("a response");
            (bag.embedding.get(token) + bag.positions.get(position)).tanh().to_kind(Kind::Float)
        });
        let expected = head.scores(&Tensor::stack(&last, 0))?;
        let found = response_rewards_of(&bag, &head, &row)?;
        assert_eq!((found.size(), found.kind()), (vec![5, 4], Kind::Float));
        all_close(&numbers(&found), &numbers(&expected), 1e-6, "scores");
        let pairs = pair_rewards_of(&bag, &head, &row)?;
        assert_eq!(numbers(pairs.chosen()), numbers(&found.slice(1, 0_i64, None::<i64>, 2)));
        assert_eq!(numbers(pairs.rejected()), numbers(&found.slice(1, 1_i64, None::<i64>, 2)));
        pairs.margins().sum(Kind::Float).backward();
        assert!(vs.variables().values().all(|variable| variable.grad().norm().double_value(&[]) > 0.0));
    }

    // By trait objects too.
    let (bag, forgetful) = (Bag::new(Kind::Float, false), Bag::new(Kind::Float, true));
    let decoder: &dyn Decoder = &bag;
    let scorer: &dyn RewardScorer = &head;
    assert_eq!(pair_rewards_of(decoder, scorer, &row)?.members(), 5);
    let all = format!("tokens read = {}", row.len());
    refused(pair_rewards_of(&forgetful, &head, &row), &["hidden", "tokens read = 4", &all]);
    let own = nn::VarStore::new(Device::Cpu);
    let turned = Turned(ScalarHead::new(&own.root(), Bag::WIDTH));
    refused(pair_rewards_of(decoder, &turned, &row), &["scores", "[members, responses]", "members = 1"]);
    let narrow = ScalarHead::new(&(&own.root() / "narrow"), 3);
    refused(pair_rewards_of(decoder, &narrow, &row), &["hidden", "width = 3", "width = 4"]);
    Ok(())
}
