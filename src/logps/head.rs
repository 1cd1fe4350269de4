use tch::{Kind, Tensor};

use super::{
    plan::{Plan, wide},
    tile::{Rows, Span, slope},
};
use crate::{
    Error, Result,
    autograd::{Saved, custom, recording},
    domain::{LogitScale, SoftCap},
    native::{addmm_out, has_kernel},
    pairs::check::Named,
};

/// The last layer of a language model, from hidden states to log-probabilities, without the matrix `[tokens, vocab]` in between.
///
/// Logits are l = c·tanh(s·(W h + b)/c), with W `[vocab, width]`, bias b `[vocab]` (none unless given), logit scale s (1 unless given)
/// and soft cap c (none unless given: then l = s·(W h + b)).
///
/// The vocabulary is taken a tile at a time. Where the weight has a gradient, the backward pass computes the logits again, but for the tiles
/// that the budget has room to keep; where it is frozen, the forward pass keeps each token's direction W\[y\] − pᵀW, so that there is
/// nothing to compute again. Values and gradients do not depend on the budget beyond rounding. Half-precision inputs are multiplied and summed
/// in f32.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{logps::VocabularyHead, tch::{Device, Kind, Tensor}};
///
/// let options = (Kind::Float, Device::Cpu);
/// let (hidden, weight) = (Tensor::randn([5, 8], options).set_requires_grad(true), Tensor::randn([100, 8], options));
/// let targets = Tensor::from_slice(&[3_i64, 1, 4, 1, 5]);
/// let logps = VocabularyHead::new(&weight)?.logps(&hidden, &targets)?; // [5], nats
/// logps.sum(Kind::Float).backward();
/// assert_eq!(hidden.grad().size(), [5, 8]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct VocabularyHead {
    weight: Tensor,
    bias: Option<Tensor>,
    scale: f64,
    cap: Option<f64>,
    budget: u64,
}

/// What [`VocabularyHead::scores`] knows of each token, `[tokens]`.
#[derive(Debug)]
pub struct TokenScores {
    /// log π(target), nats.
    pub logps: Tensor,
    /// Entropy of the next-token distribution, nats, without a gradient.
    pub entropy: Tensor,
    /// Whether the target is the most likely token (Bool). A tie is a hit here; in
    /// [`token_statistics`](super::token_statistics), which takes the first of equals, it need not be.
    pub hits: Tensor,
}

const BUDGET: u64 = 40 << 20;

impl VocabularyHead {
    /// A head with this weight, `[vocab, width]`, often the token embedding.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty) or [`Kind`](Error::Kind).
    pub fn new(weight: &Tensor) -> Result<Self> {
        Named::matrix("head weight", "[vocab, width]", weight).rank(2)?.float()?;
        Ok(Self { weight: weight.shallow_clone(), bias: None, scale: 1.0, cap: None, budget: BUDGET })
    }

    /// Adds a bias, `[vocab]`.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Length`](Error::Length), [`Device`](Error::Device) or [`Kind`](Error::Kind).
    pub fn with_bias(self, bias: &Tensor) -> Result<Self> {
        let named = Named::matrix("head bias", "[vocab]", bias).rank(1)?;
        named.length(0, "vocab", self.weight.size()[0])?.device(self.weight.device())?.kind_of(&self.weight)?;
        Ok(Self { bias: Some(bias.shallow_clone()), ..self })
    }

    /// Multiplies the logits: the inverse of a temperature.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless it is positive and finite.
    pub fn with_logit_scale(self, scale: f64) -> Result<Self> {
        Ok(Self { scale: LogitScale::new(scale)?.get(), ..self })
    }

    /// Bends the logits into (−c, c) by c·tanh(l/c), as Gemma 2 does.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless it is positive and finite.
    pub fn with_soft_cap(self, cap: f64) -> Result<Self> {
        Ok(Self { cap: Some(SoftCap::new(cap)?.get()), ..self })
    }

    /// Bounds the working memory in bytes: 40 MiB unless set, however many tokens there are. What comes on top are the gradients
    /// themselves and some numbers a token. More of it keeps more logits between the forward and the backward pass, which saves up to a
    /// quarter of the arithmetic; less than about a megabyte makes the products small and slow.
    #[must_use]
    pub fn with_budget(self, bytes: u64) -> Self {
        Self { budget: bytes, ..self }
    }

    /// log π of each target under its hidden state, `[tokens]`, nats, in f32 or, for f64 inputs, f64.
    ///
    /// `hidden` `[tokens, width]` of the weight's kind and device, `targets` `[tokens]` (Int64).
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Length`](Error::Length), [`Kind`](Error::Kind) or
    /// [`Device`](Error::Device) naming the tensor; [`Element`](Error::Element) for a target outside the vocabulary (this waits for
    /// the device once).
    pub fn logps(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        Ok(self.run(hidden, targets, false)?.0)
    }

    /// The same with entropy and top-1 hit of each token, in the same pass.
    ///
    /// # Errors
    /// As [`logps`](Self::logps).
    pub fn scores(&self, hidden: &Tensor, targets: &Tensor) -> Result<TokenScores> {
        let (logps, rows) = self.run(hidden, targets, true)?;
        let entropy = rows.entropy().expect("asked for");
        Ok(TokenScores { logps, entropy, hits: rows.hits() })
    }

    fn run(&self, hidden: &Tensor, targets: &Tensor, entropy: bool) -> Result<(Tensor, Rows)> {
        self.check(hidden, targets)?;
        let trained = self.weight.requires_grad() || self.bias.as_ref().is_some_and(Tensor::requires_grad);
        match (trained, hidden.requires_grad()) {
            (true, _) if recording() => self.trained(hidden, targets, entropy),
            (false, true) if recording() => self.frozen(hidden, targets, entropy),
            _ => {
                let _no_grad = tch::no_grad_guard();
                let rows = self.detached().forward(hidden, targets, entropy, None)?;
                Ok((rows.logps(), rows))
            }
        }
    }

    fn check(&self, hidden: &Tensor, targets: &Tensor) -> Result<()> {
        let size = self.weight.size();
        let named = Named::matrix("hidden", "[tokens, width]", hidden).rank(2)?;
        named.length(1, "width", size[1])?.device(self.weight.device())?.kind_of(&self.weight)?;
        let named = Named::matrix("targets", "[tokens]", targets).rank(1)?;
        named.length(0, "tokens", hidden.size()[0])?.device(self.weight.device())?;
        if targets.kind() != Kind::Int64 {
            return Err(Error::Kind { tensor: "targets", expected: "Int64", found: targets.kind() });
        }
        let known = targets.ge(0).logical_and(&targets.lt(size[0]));
        named.elements("an index into the vocabulary", &known)?;
        Ok(())
    }

    /// The same head without a graph, for use inside a pass.
    fn detached(&self) -> Self {
        let bias = self.bias.as_ref().map(Tensor::detach);
        Self { weight: self.weight.detach(), bias, ..*self }
    }

    fn plan(&self, tokens: i64) -> Plan {
        // A cap needs its slope beside the logits, which takes three tiles more on the way; so many or more come and go without a kernel.
        let kernel = has_kernel(wide(&self.weight), self.weight.device());
        let tiles = if kernel { 1 } else { 5 } + if self.cap.is_some() { 3 } else { 0 };
        Plan::new(self.budget, tokens, &self.weight, tiles)
    }

    /// One pass over all tiles, of a detached head: statistics of each row, and the logits of the tiles that there is room to keep.
    fn forward(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        entropy: bool,
        mut kept: Option<&mut Vec<Option<Tensor>>>,
    ) -> Result<Rows> {
        let tokens = hidden.size()[0];
        let plan = self.plan(tokens);
        let (hidden, targets) = (hidden.detach(), targets.contiguous());
        let rows = Rows::new(tokens, entropy, plan.options);
        let scratch = plan.scratch();
        for (j, columns) in plan.tiles().enumerate() {
            let weight = columns.of(&self.weight).to_kind(plan.options.0);
            let whole = (kept.is_some() && (j as i64) < plan.kept)
                .then(|| Tensor::empty([tokens, columns.length], plan.options));
            for span in plan.blocks() {
                let tile = match &whole {
                    Some(whole) => span.of(whole),
                    None => Plan::tile(&scratch, span, columns),
                };
                self.logits_into(&tile, &span.of(&hidden), &weight, columns)?;
                rows.absorb(span, &tile, columns.start, &span.of(&targets), None)?;
            }
            if let Some(kept) = &mut kept {
                kept.push(whole);
            }
        }
        Ok(rows)
    }

    /// Logits of one tile. `weight` is the tile's, widened.
    fn logits_into(&self, tile: &Tensor, hidden: &Tensor, weight: &Tensor, columns: Span) -> Result<()> {
        let (hidden, weight) = (hidden.to_kind(tile.kind()), weight.tr());
        match &self.bias {
            Some(bias) => {
                let bias = columns.of(bias).to_kind(tile.kind()).unsqueeze(0).expand_as(tile);
                addmm_out(tile, &bias, &hidden, &weight, self.scale, self.scale)?;
            }
            None => addmm_out(tile, tile, &hidden, &weight, 0.0, self.scale)?,
        }
        if let Some(cap) = self.cap {
            let _ = tile.shallow_clone().g_div_scalar_(cap).tanh_().g_mul_scalar_(cap);
        }
        Ok(())
    }

    /// dl/dz = 1 − (l/c)² of logits bent by the cap, `None` without one.
    fn bend(&self, logits: &Tensor) -> Option<Tensor> {
        self.cap.map(|cap| 1.0 - (logits / cap).square())
    }

    /// With a gradient to the weight or the bias: the backward pass computes again the logits that were not kept.
    fn trained(&self, hidden: &Tensor, targets: &Tensor, entropy: bool) -> Result<(Tensor, Rows)> {
        let plain = self.detached();
        let mut kept = Vec::new();
        let guard = tch::no_grad_guard();
        let rows = plain.forward(hidden, targets, entropy, Some(&mut kept))?;
        let (log_z, output) = (rows.log_z(), rows.logps());
        drop(guard);

        let plan = self.plan(hidden.size()[0]);
        let saved =
            [Saved::new("hidden", hidden), Saved::new("head weight", &self.weight), Saved::new("targets", targets)];
        let saved_bias = self.bias.as_ref().map(|bias| Saved::new("head bias", bias));
        let kind = hidden.kind();
        let mut inputs = vec![hidden, &self.weight];
        inputs.extend(&self.bias);
        let output = custom(&inputs, output, move |cotangent, wanted| {
            let (hidden, weight, targets) = (saved[0].get()?, saved[1].get()?, saved[2].get()?.contiguous());
            saved_bias.as_ref().map(Saved::get).transpose()?;
            let (cotangent, scale) = (cotangent.to_kind(plan.options.0).contiguous(), plain.scale);
            let for_hidden = wanted.get(0).then(|| Tensor::empty(hidden.size(), plan.options));
            let for_weight = wanted.get(1).then(|| weight.empty_like());
            let for_bias =
                (wanted.get(2) && plain.bias.is_some()).then(|| Tensor::zeros([weight.size()[0]], plan.options));
            let scratch = plan.scratch();
            // In half precision a tile's share is summed in f32 before it is rounded.
            let wide = plan.options.0 != kind;
            let share =
                (wide && for_weight.is_some()).then(|| Tensor::empty([plan.columns, weight.size()[1]], plan.options));
            for (j, columns) in plan.tiles().enumerate() {
                let tile_weight = columns.of(weight).to_kind(plan.options.0);
                let target_weight = for_weight.as_ref().map(|whole| {
                    share.as_ref().map_or_else(|| columns.of(whole), |share| share.narrow(0, 0, columns.length))
                });
                // Taken, because it is overwritten: a second pass over a kept graph computes it again.
                let whole = kept.get_mut(j).and_then(Option::take);
                for span in plan.blocks() {
                    let tile = match &whole {
                        Some(whole) => span.of(whole),
                        None => {
                            let tile = Plan::tile(&scratch, span, columns);
                            plain.logits_into(&tile, &span.of(hidden), &tile_weight, columns)?;
                            tile
                        }
                    };
                    let bend = plain.bend(&tile);
                    let [max, log_sum] = log_z.each_ref().map(|part| span.of(part));
                    slope(&tile, columns.start, &span.of(&targets), [&max, &log_sum], &span.of(&cotangent))?;
                    if let Some(bend) = bend {
                        let _ = tile.shallow_clone().g_mul_(&bend);
                    }
                    if let Some(whole) = &for_hidden {
                        let part = span.of(whole);
                        addmm_out(&part, &part, &tile, &tile_weight, f64::from(j > 0), scale)?;
                    }
                    if let Some(part) = &target_weight {
                        let hidden = span.of(hidden).to_kind(plan.options.0);
                        addmm_out(part, part, &tile.tr(), &hidden, f64::from(span.start > 0), scale)?;
                    }
                    if let Some(whole) = &for_bias {
                        let sum = tile.sum_dim_intlist([0].as_slice(), false, plan.options.0);
                        let _ = columns.of(whole).g_add_(&(sum * scale));
                    }
                }
                if let (Some(whole), Some(share), true) = (&for_weight, &target_weight, wide) {
                    columns.of(whole).copy_(share);
                }
            }
            let narrow = |gradient: Option<Tensor>| gradient.map(|gradient| gradient.to_kind(kind));
            let mut gradients = vec![narrow(for_hidden), for_weight];
            if plain.bias.is_some() {
                gradients.push(narrow(for_bias));
            }
            Ok(gradients)
        })?;
        Ok((output, rows))
    }

    /// With a gradient to the hidden states alone: d log π/dh = s·(W[y] − Σ p W), summed beside log Z in one pass.
    fn frozen(&self, hidden: &Tensor, targets: &Tensor, entropy: bool) -> Result<(Tensor, Rows)> {
        let guard = tch::no_grad_guard();
        let (tokens, plan, plain) = (hidden.size()[0], self.plan(hidden.size()[0]), self.detached());
        let (states, targets, kind) = (hidden.detach(), targets.contiguous(), hidden.kind());
        let rows = Rows::new(tokens, entropy, plan.options);
        let direction = Tensor::empty(states.size(), plan.options);
        let (scratch, correction) = (plan.scratch(), Tensor::empty([plan.rows], plan.options));
        for (j, columns) in plan.tiles().enumerate() {
            let weight = columns.of(&plain.weight).to_kind(plan.options.0);
            for span in plan.blocks() {
                let tile = Plan::tile(&scratch, span, columns);
                plain.logits_into(&tile, &span.of(&states), &weight, columns)?;
                let bend = plain.bend(&tile);
                let correction = correction.narrow(0, 0, span.length);
                rows.absorb(span, &tile, columns.start, &span.of(&targets), Some(&correction))?;
                if let Some(bend) = bend {
                    let _ = tile.shallow_clone().g_mul_(&bend);
                }
                let part = span.of(&direction);
                if j > 0 {
                    let _ = part.shallow_clone().g_mul_(&correction.unsqueeze(1));
                }
                addmm_out(&part, &part, &tile, &weight, f64::from(j > 0), 1.0)?;
            }
        }
        // W[y] is gathered for no more rows at a time than fit where the logits were.
        let at_once = (plan.rows * plan.columns / states.size()[1]).max(1);
        for span in Span::parts(tokens, at_once) {
            let mut target = plain.weight.f_index_select(0, &span.of(&targets))?.to_kind(plan.options.0);
            if let Some(bend) = plain.bend(&span.of(rows.target())) {
                let _ = target.g_mul_(&bend.unsqueeze(1));
            }
            let mut part = span.of(&direction);
            let _ = part.g_div_(&span.of(rows.sum()).unsqueeze(1)).g_sub_(&target).g_mul_scalar_(-plain.scale);
        }
        let output = rows.logps();
        drop(guard);
        let output = custom(&[hidden], output, move |cotangent, _| {
            let gradient = &direction * cotangent.to_kind(direction.kind()).unsqueeze(1);
            Ok(vec![Some(gradient.to_kind(kind))])
        })?;
        Ok((output, rows))
    }
}
