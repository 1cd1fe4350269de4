//! Log-probabilities of hidden states under a vocabulary head: one operation, forward and backward.

use anyhow::Result;
use prefopt::logps::VocabularyHead;
use tch::{Device, Kind, Tensor};

use crate::measure::{Table, add_peer, peak, peer_product, products, race, with_product};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);
const WIDTH: i64 = 576;
const VOCAB: i64 = 49152;

struct Inputs {
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
}

impl Inputs {
    fn new(tokens: i64, frozen: bool) -> Self {
        Self {
            hidden: Tensor::randn([tokens, WIDTH], F32).set_requires_grad(true),
            weight: (Tensor::randn([VOCAB, WIDTH], F32) * 0.02).set_requires_grad(!frozen),
            targets: Tensor::randint(VOCAB, [tokens], (Kind::Int64, Device::Cpu)),
        }
    }

    fn backward(&mut self, logps: &Tensor) -> Result<()> {
        logps.sum(Kind::Float).f_backward()?;
        self.hidden.zero_grad();
        if self.weight.requires_grad() {
            self.weight.zero_grad();
        }
        Ok(())
    }

    fn chunked(&mut self, budget: Option<u64>) -> Result<()> {
        let head = VocabularyHead::new(&self.weight)?;
        let head = match budget {
            Some(bytes) => head.with_budget(bytes),
            None => head,
        };
        let logps = head.logps(&self.hidden, &self.targets)?;
        self.backward(&logps)
    }

    fn naive(&mut self) -> Result<()> {
        let logits = self.hidden.f_matmul(&self.weight.tr())?.log_softmax(-1, None::<Kind>);
        let logps = logits.gather(1, &self.targets.unsqueeze(1), false).squeeze_dim(1);
        self.backward(&logps)
    }

    /// The products that nobody can do without, and nothing else.
    fn products(&self, n: usize) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let logits = self.hidden.f_matmul(&self.weight.tr())?;
        if n > 1 {
            let _ = logits.f_matmul(&self.weight)?;
        }
        if n > 2 {
            let _ = logits.tr().f_matmul(&self.hidden)?;
        }
        Ok(())
    }
}

pub fn run(table: &mut Table) -> Result<()> {
    for product in products()? {
        with_product(product, || one_product(table, product))?;
    }
    Ok(())
}

fn one_product(table: &mut Table, product: prefopt::matmul::Product) -> Result<()> {
    let part = format!("op, {product}");
    table.heading(&format!("log-probabilities, 1024 x {WIDTH} x {VOCAB}, forward and backward, {product}"));
    let (mut a, mut b, mut c, limit) =
        (Inputs::new(1024, false), Inputs::new(1024, false), Inputs::new(1024, false), Inputs::new(1024, false));
    let chunked_mb = peak(&mut || a.chunked(None))?;
    let naive_mb = peak(&mut || b.naive())?;
    let all_mb = peak(&mut || c.chunked(Some(1 << 30)))?;
    let [chunked, naive, all, three] = race(
        3,
        [&mut || a.chunked(None), &mut || b.naive(), &mut || c.chunked(Some(1 << 30)), &mut || limit.products(3)],
    )?;
    table.row(&part, "prefopt", chunked, chunked_mb);
    table.row(&part, "prefopt, budget of 1 GiB", all, all_mb);
    table.row(&part, "naive log-softmax in tch", naive, naive_mb);
    table.row(&part, "limit: the three products alone", three, None);
    table.ratio("prefopt / naive", chunked, naive);
    table.ratio("prefopt, 1 GiB / naive", all, naive);
    table.ratio("limit / prefopt", three, chunked);

    let (mut a, mut b) = (Inputs::new(1024, true), Inputs::new(1024, true));
    let frozen_mb = peak(&mut || a.chunked(None))?;
    let [frozen, frozen_naive] = race(3, [&mut || a.chunked(None), &mut || b.naive()])?;
    table.row(&part, "prefopt, frozen head", frozen, frozen_mb);
    table.row(&part, "naive, frozen head", frozen_naive, None);
    table.ratio("prefopt, frozen head / naive, not frozen", frozen, naive);
    table.ratio("prefopt, frozen head / naive, frozen head", frozen, frozen_naive);
    drop((a, b));

    let mut long = Inputs::new(8192, false);
    let long_mb = peak(&mut || long.chunked(None))?;
    let [seconds] = race(1, [&mut || long.chunked(None)])?;
    table.row(&part, "prefopt, 8192 tokens", seconds, long_mb);
    drop(long);

    // Between two runs of ours, so that a slow minute is seen.
    let size = ["1024", &WIDTH.to_string(), &VOCAB.to_string()].map(str::to_owned);
    for kind in ["trl", "trl_full", "naive", "frozen_naive"] {
        let mut ours = Inputs::new(1024, kind == "frozen_naive");
        let [before] = race(2, [&mut || ours.chunked(None)])?;
        let arguments = ["op", kind, &size[0], &size[1], &size[2], "--product", peer_product(product), "--repeat", "3"];
        let Some(theirs) = add_peer(table, &part, &format!("peer: {kind}"), &arguments)? else { continue };
        let [after] = race(2, [&mut || ours.chunked(None)])?;
        table.ratio(&format!("prefopt / {kind}"), f64::midpoint(before, after), theirs);
    }
    Ok(())
}
