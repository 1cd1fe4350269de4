use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, PairLogps, Result, domain::LogSnrShift, pairs::check::Named};

const SHAPE: &str = "[batch, ..dims]";

/// How a squared error over the dimensions of a sample becomes one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimensions {
    /// Mean over dimensions, as denoising losses are commonly written: β keeps its meaning when the resolution changes, and is
    /// large (tens to thousands).
    #[default]
    Mean,
    /// Sum over dimensions, the squared norm as the formula is written.
    Sum,
}

/// The noise ε that two networks predict for both noised samples of each pair, `[batch, ..dims]` each.
///
/// x_t = √ᾱ_t x + √(1−ᾱ_t) ε, with **one** t and **one** ε for the two samples of a pair and for both networks.
#[derive(Debug)]
pub struct NoisePredictions {
    /// ε_θ(x_t⁺): what is trained, on the noised chosen sample. Its gradient is kept.
    pub chosen: Tensor,
    /// ε_θ(x_t⁻). Its gradient is kept.
    pub rejected: Tensor,
    /// ε_ref(x_t⁺) of the frozen pretrained network.
    pub ref_chosen: Tensor,
    /// ε_ref(x_t⁻).
    pub ref_rejected: Tensor,
}

/// Denoising log-ratio: log π := −w_t ‖ε − ε_θ(x_t)‖² and log π_ref := −w_t ‖ε − ε_ref(x_t)‖², with w_t = σ(−λ_t + b), λ_t the log-SNR
/// log ᾱ_t/(1−ᾱ_t).
///
/// > log π − log π_ref = R_θ(x_t) = w_t (‖ε − ε_ref(x_t)‖² − ‖ε − ε_θ(x_t)‖²), h = R_θ(x_t⁺) − R_θ(x_t⁻)
///
/// These are **no log-probabilities**: averaged over t and ε they are a reweighted evidence lower bound up to constants, and at
/// one t and ε an unbiased sample of that. Losses that are functions of h read them as what they are; a KL divergence, −log(1 −
/// π) or a mass that sums to 1 has no meaning here: a [`ForwardKl`](crate::loss::ForwardKl) of them may be negative in any of its
/// forms but k3.
///
/// Source: Lee et al. 2025 (CaPO): the sign as published, the form reconstructed; the weight is the sigmoid weighting of Kingma
/// and Gao 2023 and Hoogeboom et al. 2024. Without the weight and with labels it is Diffusion-DPO (Wallace et al. 2023).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denoising {
    shift: LogSnrShift,
    #[serde(default)]
    dimensions: Dimensions,
}

impl Denoising {
    /// With the shift b of the weight, in nats: steps of λ_t below b count fully, cleaner ones less and less. Means over dimensions.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless b is finite.
    pub fn new(shift: f64) -> Result<Self> {
        Ok(Self { shift: LogSnrShift::new(shift)?, dimensions: Dimensions::default() })
    }

    /// The same with another reduction over dimensions.
    #[must_use]
    pub fn with_dimensions(self, dimensions: Dimensions) -> Self {
        Self { dimensions, ..self }
    }

    /// w_t = σ(−λ_t + b), of the shape of λ_t, without a gradient.
    pub fn weight(&self, log_snr: &Tensor) -> Tensor {
        (self.shift.get() - log_snr.detach()).sigmoid()
    }

    /// The pair's log-probabilities in this sense, from ε `[batch, ..dims]`, λ_t `[batch]` and the predictions. Gradients flow to
    /// the predictions of the policy only.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Length`](Error::Length), [`Kind`](Error::Kind), [`KindOf`](Error::KindOf) or
    /// [`Device`](Error::Device), naming the tensor. Everything is f32 or f64 like the noise.
    pub fn logps(&self, noise: &Tensor, log_snr: &Tensor, predictions: &NoisePredictions) -> Result<PairLogps> {
        let size = noise.size();
        if size.len() < 2 {
            return Err(Error::Rank { tensor: "noise", expected: SHAPE, found: size });
        }
        Named::matrix("noise", SHAPE, noise).rank(size.len())?.wide()?;
        let named = Named::vector("log_snr", log_snr).rank(1)?.length(0, "batch", size[0])?;
        named.device(noise.device())?.kind_of(noise)?;
        let (noise, weight) = (noise.detach(), self.weight(log_snr));
        let logp = |name: &'static str, predicted: &Tensor| -> Result<Tensor> {
            if predicted.size() != size {
                let expected = "[batch, ..dims] of the noise";
                return Err(Error::Rank { tensor: name, expected, found: predicted.size() });
            }
            Named::matrix(name, SHAPE, predicted).device(noise.device())?.kind_of(&noise)?;
            Ok(-(self.dimensions.reduce(&(&noise - predicted).square()) * &weight))
        };
        PairLogps::new(
            logp("predictions.chosen", &predictions.chosen)?,
            logp("predictions.rejected", &predictions.rejected)?,
            logp("predictions.ref_chosen", &predictions.ref_chosen)?,
            logp("predictions.ref_rejected", &predictions.ref_rejected)?,
        )
    }
}

impl Dimensions {
    /// `[batch, ..dims]` to `[batch]`.
    fn reduce(self, values: &Tensor) -> Tensor {
        const LAST: &[i64] = &[1];
        let (flat, kind) = (values.flatten(1, -1), values.kind());
        match self {
            Self::Mean => flat.mean_dim(LAST, false, kind),
            Self::Sum => flat.sum_dim_intlist(LAST, false, kind),
        }
    }
}
