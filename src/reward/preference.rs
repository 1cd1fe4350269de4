use serde::{Deserialize, Serialize};
use tch::{
    Tensor,
    nn::{self, Module},
};

use crate::{
    Error, Result,
    domain::{PreferenceMargin, Temperature},
    pairs::check::Named,
};

const LAST: &[i64] = &[-1];

/// What an embedding is divided by at least, so that one of zeros stays zero.
const SHORTEST: f64 = 1e-12;

/// Length of an embedding v.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// v/‖v‖ over all 2k numbers: |s| ≤ max_b λ_b, so the temperature says how sure a preference can be.
    #[default]
    Unit,
    /// v as the linear map gives it. With k = 1 this contains Bradley–Terry: v = (r, 1).
    Free,
}

/// How the scales λ_b(x) ≥ 0 follow from numbers a_b that are linear in the prompt's hidden state.
///
/// That they depend on the prompt and are not negative is the paper's; their form is reconstructed. Both start at λ_b = 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleGate {
    /// λ_b = log(1 + e^{a_b}): a prompt may also say how sure its preferences are, and switch blocks off one by one.
    #[default]
    Softplus,
    /// λ_b = k·softmax(a)_b, which sum to k: a prompt only shifts weight between blocks. The form in the authors' code, but for a division
    /// of a by √width.
    Softmax,
}

/// Preference embedding: v = A·hidden + b, `[n, 2k]`, of a response in its prompt; block b, from 0, is the pair of numbers
/// (v\[2b\], v\[2b+1\]).
///
/// [`preference_score`] compares two embeddings. A single score ranks; this holds cycles too, with one forward pass a response. k blocks
/// of free length fit any antisymmetric table of rank 2k or less.
///
/// A starts at random: at v = 0 every score is 0 **and so is its gradient**, s being bilinear, and a head started there would never move.
/// The bias is kept (the authors' code has none), so that [`Norm::Free`] contains v = (r, 1).
///
/// Source: Zhang et al. 2024, "Beyond Bradley–Terry models: a general preference model for language model alignment". Its `value_head_dim`
/// is 2k.
#[derive(Debug)]
pub struct GeneralPreferenceHead {
    embedding: nn::Linear,
    gate: Option<(nn::Linear, ScaleGate)>,
    norm: Norm,
}

impl GeneralPreferenceHead {
    /// `blocks` blocks on hidden states of this width, of unit norm and without scales.
    pub fn new(vs: &nn::Path, width: i64, blocks: i64) -> Self {
        let embedding = nn::linear(vs / "embedding", width, 2 * blocks, nn::LinearConfig::default());
        Self { embedding, gate: None, norm: Norm::default() }
    }

    /// The same with embeddings of another length.
    #[must_use]
    pub fn with_norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// The same with scales λ_b(x) that depend on the prompt, which start at 1.
    #[must_use]
    pub fn with_prompt_scales(self, vs: &nn::Path, gate: ScaleGate) -> Self {
        let bias = match gate {
            ScaleGate::Softplus => (std::f64::consts::E - 1.0).ln(),
            ScaleGate::Softmax => 0.0,
        };
        let config =
            nn::LinearConfig { ws_init: nn::Init::Const(0.0), bs_init: Some(nn::Init::Const(bias)), bias: true };
        let layer = nn::linear(vs / "scales", self.width(), self.blocks(), config);
        Self { gate: Some((layer, gate)), ..self }
    }

    /// k.
    pub fn blocks(&self) -> i64 {
        self.embedding.ws.size()[0] / 2
    }

    fn width(&self) -> i64 {
        self.embedding.ws.size()[1]
    }

    /// v of each response, `[n, 2k]`, from the hidden state of its last token, `[n, width]`.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Length`](Error::Length), [`Device`](Error::Device) or [`KindOf`](Error::KindOf) when the hidden states do
    /// not fit the head.
    pub fn embed(&self, hidden: &Tensor) -> Result<Tensor> {
        self.fits("hidden", "[n, width]", hidden)?;
        let embedding = self.embedding.forward(hidden);
        Ok(match self.norm {
            Norm::Free => embedding,
            Norm::Unit => {
                let length = embedding.norm_scalaropt_dim(2.0, LAST, true).clamp_min(SHORTEST);
                embedding / length
            }
        })
    }

    /// λ_b(x) of each prompt, `[batch, k]`, from the hidden state of its last token, `[batch, width]`; all 1 without
    /// [`with_prompt_scales`](Self::with_prompt_scales).
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn scales(&self, prompt_hidden: &Tensor) -> Result<Tensor> {
        self.fits("prompt_hidden", "[batch, width]", prompt_hidden)?;
        let (batch, blocks, kind) = (prompt_hidden.size()[0], self.blocks(), prompt_hidden.kind());
        Ok(match &self.gate {
            None => Tensor::f_ones([batch, blocks], (kind, prompt_hidden.device()))?,
            Some((layer, ScaleGate::Softplus)) => layer.forward(prompt_hidden).softplus(),
            Some((layer, ScaleGate::Softmax)) => layer.forward(prompt_hidden).softmax(-1, kind) * blocks as f64,
        })
    }

    fn fits(&self, name: &'static str, shape: &'static str, hidden: &Tensor) -> Result<()> {
        let named = Named::matrix(name, shape, hidden).rank(2)?.length(1, "width", self.width())?;
        named.device(self.embedding.ws.device())?.kind_of(&self.embedding.ws)?;
        Ok(())
    }
}

/// s(i≻j) = Σ_b λ_b (v_i\[2b\]·v_j\[2b+1\] − v_i\[2b+1\]·v_j\[2b\]), `[..]`, from embeddings `[.., 2k]` of one shape and scales `[.., k]`,
/// 1 without them.
///
/// s(j≻i) = −s(i≻j) and s(i≻i) = 0 hold exactly. Scales are to be at least 0; a check would wait for the device, so there is none.
///
/// Source: Zhang et al. 2024, the preference score.
///
/// # Errors
/// [`OddEmbedding`](Error::OddEmbedding) unless the last size is even and positive; [`Empty`](Error::Empty), [`Rank`](Error::Rank),
/// [`Device`](Error::Device), [`Kind`](Error::Kind) or [`KindOf`](Error::KindOf) when the tensors do not fit each other.
pub fn preference_score(first: &Tensor, second: &Tensor, scales: Option<&Tensor>) -> Result<Tensor> {
    const SHAPE: &str = "[.., 2k]";
    let blocks = blocks(first)?;
    Named::matrix("first", SHAPE, first).rank(first.dim())?.float()?;
    like("second", "[.., 2k] like first", second, &first.size(), first)?;
    let area = even(first)? * odd(second)? - odd(first)? * even(second)?;
    let weighted = match scales {
        None => area,
        Some(scales) => {
            let mut size = first.size();
            size.pop();
            size.push(blocks);
            like("scales", "[.., k] like first, of size [.., 2k]", scales, &size, first)?;
            area * scales
        }
    };
    Ok(weighted.sum_dim_intlist(LAST, false, weighted.kind()))
}

/// s(i≻j) of all responses of a prompt against each other, `[batch, responses, responses]`, row i column j, from embeddings
/// `[batch, responses, 2k]` and scales `[batch, k]`, 1 without them.
///
/// As T − Tᵀ with T_ij = Σ_b λ_b v_i\[2b\] v_j\[2b+1\], so antisymmetric exactly, with 0 on the diagonal.
///
/// # Errors
/// As [`preference_score`], and [`Length`](Error::Length).
pub fn preference_table(embeddings: &Tensor, scales: Option<&Tensor>) -> Result<Tensor> {
    Named::matrix("embeddings", "[batch, responses, 2k]", embeddings).rank(3)?.float()?;
    let (batch, blocks) = (embeddings.size()[0], blocks(embeddings)?);
    let rows = match scales {
        None => even(embeddings)?,
        Some(scales) => {
            let named = Named::matrix("scales", "[batch, k]", scales).rank(2)?.length(0, "batch", batch)?;
            named.length(1, "k", blocks)?.device(embeddings.device())?.kind_of(embeddings)?;
            even(embeddings)? * scales.unsqueeze(1)
        }
    };
    let products = rows.f_matmul(&odd(embeddings)?.transpose(1, 2))?;
    Ok(&products - products.transpose(1, 2))
}

fn blocks(embedding: &Tensor) -> Result<i64> {
    let size = embedding.size().last().copied().unwrap_or_default();
    if size > 0 && size % 2 == 0 { Ok(size / 2) } else { Err(Error::OddEmbedding { size }) }
}

fn even(embedding: &Tensor) -> Result<Tensor> {
    Ok(embedding.f_slice(-1, 0_i64, None::<i64>, 2)?)
}

fn odd(embedding: &Tensor) -> Result<Tensor> {
    Ok(embedding.f_slice(-1, 1_i64, None::<i64>, 2)?)
}

/// Of exactly this size: shapes of one rank may broadcast.
fn like(name: &'static str, shape: &'static str, tensor: &Tensor, size: &[i64], first: &Tensor) -> Result<()> {
    let found = tensor.size();
    if found != size {
        return Err(Error::Rank { tensor: name, expected: shape, found });
    }
    Named::matrix(name, shape, tensor).device(first.device())?.kind_of(first)?;
    Ok(())
}

/// Likelihood of general preferences: −log σ((s − m)/τ), `[batch]`, nats, s = s(y_w≻y_l) of [`preference_score`].
///
/// The margin m, in units of score, is subtracted **before** the division. With v = (r, 1) and τ = 1 it is
/// [`BradleyTerry`](super::BradleyTerry). Serde and `Default`: τ = .1, m = 0.
///
/// Source: Zhang et al. 2024; τ = .1 for unit embeddings and the place of m after the authors' code (`HighDimGeneralPreferenceLoss`).
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{reward::{GeneralPreference, preference_score}, tch::Tensor};
///
/// // Three unit vectors at 120°: each beats the next, which no single score can say.
/// let at = |turns: f64| [(turns * 2.094395).cos(), (turns * 2.094395).sin()];
/// let cycle = Tensor::from_slice2(&[at(0.0), at(1.0), at(2.0)]);
/// let next = Tensor::from_slice2(&[at(1.0), at(2.0), at(0.0)]);
/// let scores = preference_score(&cycle, &next, None)?;
/// assert!(Vec::<f64>::try_from(&scores)?.iter().all(|s| (s - 0.75_f64.sqrt()).abs() < 1e-5));
/// assert!(GeneralPreference::default().mean(&scores)?.double_value(&[]) < 1e-3);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeneralPreference {
    temperature: Temperature,
    margin: PreferenceMargin,
}

impl Default for GeneralPreference {
    fn default() -> Self {
        Self {
            temperature: Temperature::new(0.1).expect("positive"),
            margin: PreferenceMargin::new(0.0).expect("not negative"),
        }
    }
}

impl GeneralPreference {
    /// At temperature τ, in units of score, without a margin.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless τ is positive and finite.
    pub fn new(temperature: f64) -> Result<Self> {
        Ok(Self { temperature: Temperature::new(temperature)?, ..Self::default() })
    }

    /// The same with a margin by which s should exceed 0, in units of score.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) for a margin that is negative or not finite.
    pub fn with_margin(self, margin: f64) -> Result<Self> {
        Ok(Self { margin: PreferenceMargin::new(margin)?, ..self })
    }

    /// Loss of each pair, `[batch]`, from s(y_w≻y_l), `[batch]`; its gradient goes to the scores.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty) or [`Kind`](Error::Kind) unless the scores are `[batch]` in f32 or f64.
    pub fn per_pair(&self, scores: &Tensor) -> Result<Tensor> {
        Named::vector("scores", scores).rank(1)?.wide()?;
        Ok(-((scores - self.margin.get()) / self.temperature.get()).log_sigmoid())
    }

    /// Mean over the batch, a scalar.
    ///
    /// # Errors
    /// As [`per_pair`](Self::per_pair).
    pub fn mean(&self, scores: &Tensor) -> Result<Tensor> {
        let losses = self.per_pair(scores)?;
        Ok(losses.mean(losses.kind()))
    }

    /// P(i≻j) = σ(s/τ) of scores of any shape. The margin is one of training and does not enter.
    pub fn probability(&self, scores: &Tensor) -> Tensor {
        (scores / self.temperature.get()).sigmoid()
    }
}
