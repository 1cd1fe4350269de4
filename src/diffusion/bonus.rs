use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    domain::{BonusScale, Ridge},
    pairs::check::Named,
};

const FEATURES: &str = "[batch, width]";

/// Penalty for what a reward model's data say little about, in units of reward:
///
/// > ĝ(x) = c √(φᵀA⁻¹φ), A = Σ_i φ_i φ_iᵀ + λI over the scored samples, φ = (features of x, 1)
///
/// with the reward model's last features, those that its score is linear in. The constant feature is appended here, so that a sample
/// whose features vanish is penalised too. Never 0 for c > 0; falls (or stays) with every row of data; linear in c.
///
/// Where the score is ridge regression on φ with the same λ and the true reward is θᵀφ, scores without noise, |r̂ − r| ≤ ĝ for
/// c ≥ √λ ‖θ‖. For a trained network the bonus is a heuristic: its features are fixed, the network's uncertainty about them is not in it.
///
/// Inside in f64, on the device of the first [`update`](Self::update); before that on the CPU.
///
/// Source: Uehara et al. 2024 (BRAID); the ellipsoid is that of linear bandits (Abbasi-Yadkori, Pál and Szepesvári 2011).
#[derive(Debug)]
pub struct EllipticalBonus {
    width: i64,
    ridge: Ridge,
    scale: BonusScale,
    rows: i64,
    /// A, `[width + 1, width + 1]`.
    gram: Tensor,
    /// L lower triangular, A = LLᵀ.
    factor: Tensor,
}

impl EllipticalBonus {
    /// Without data, A = λI: features of this width, ridge λ (units of feature²), scale c (units of reward).
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless the width is at least 1, λ positive and finite, c at least 0 and finite.
    pub fn new(width: i64, ridge: f64, scale: f64) -> Result<Self> {
        let (ridge, scale) = (Ridge::new(ridge)?, BonusScale::new(scale)?);
        if width < 1 {
            return Err(Error::Domain { parameter: "width", domain: "at least 1", value: width as f64 });
        }
        let identity = Tensor::eye(width + 1, (Kind::Double, Device::Cpu));
        let (gram, factor) = (&identity * ridge.get(), identity * ridge.get().sqrt());
        Ok(Self { width, ridge, scale, rows: 0, gram, factor })
    }

    /// The same data with another c.
    ///
    /// # Errors
    /// [`Domain`](Error::Domain) unless c is at least 0 and finite.
    pub fn with_scale(self, scale: f64) -> Result<Self> {
        Ok(Self { scale: BonusScale::new(scale)?, ..self })
    }

    /// Rows of data so far.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.rows
    }

    /// Adds a block of data, features `[batch, width]` without a gradient: A ← A + φᵀφ, and its Cholesky factor anew. Blocks may be of any
    /// size and in any order; one factor a block, O(width³).
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Kind`](Error::Kind), [`Length`](Error::Length), [`Device`](Error::Device);
    /// [`Element`](Error::Element) for a feature that is not finite; [`Domain`](Error::Domain) for a ridge that is lost in the rounding of
    /// φᵀφ. Nothing is changed then. The checks wait for the device.
    pub fn update(&mut self, features: &Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let device = if self.rows == 0 { features.device() } else { self.gram.device() };
        let phi = self.extended(features, device)?;
        let gram = self.gram.to_device(device) + phi.tr().f_matmul(&phi)?;
        let (factor, info) = gram.f_linalg_cholesky_ex(false, false)?;
        if !bool::try_from(info.eq(0_i64).logical_and(&factor.isfinite().all()))? {
            let domain = "large enough beside φᵀφ for a Cholesky factor in f64";
            return Err(Error::Domain { parameter: "ridge", domain, value: self.ridge.get() });
        }
        (self.gram, self.factor, self.rows) = (gram, factor, self.rows + phi.size()[0]);
        Ok(())
    }

    /// ĝ, `[batch]`, of features `[batch, width]`, with its gradient to them; in their kind, f32 where they are in half precision.
    ///
    /// # Errors
    /// [`Rank`](Error::Rank), [`Empty`](Error::Empty), [`Kind`](Error::Kind), [`Length`](Error::Length), [`Device`](Error::Device);
    /// [`Element`](Error::Element) for a feature that is not finite, for which the check waits for the device.
    pub fn penalty(&self, features: &Tensor) -> Result<Tensor> {
        let phi = self.extended(features, self.gram.device())?;
        // L⁻¹φᵀ: its columns' squared norms are φᵀA⁻¹φ. The constant feature keeps them, and so the root's slope, away from 0.
        let whitened = self.factor.f_linalg_solve_triangular(&phi.tr(), false, true, false)?;
        let norms = whitened.square().sum_dim_intlist([0].as_slice(), false, Kind::Double).sqrt();
        let kind = if features.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        Ok((norms * self.scale.get()).to_kind(kind))
    }

    /// φ, `[batch, width + 1]`, f64.
    fn extended(&self, features: &Tensor, device: Device) -> Result<Tensor> {
        let named = Named::matrix("features", FEATURES, features).rank(2)?.float()?;
        let named = named.length(1, "width", self.width)?.device(device)?;
        named.elements("finite", &features.isfinite())?;
        Ok(features.to_kind(Kind::Double).f_pad([0, 1], "constant", 1.0)?)
    }
}

/// min_m r_m(x), `[batch]`, of scores `[members, batch]`: r̂ − ĝ where the members were fitted on bootstrap resamples of the data. A tie's
/// gradient goes to one member. One member is its own minimum, no penalty.
///
/// The scores are those of a [`RewardScorer`](crate::reward::RewardScorer) such as [`EnsembleHead`](crate::reward::EnsembleHead), or of
/// separate networks. The penalty is as large as the members differ: where all extrapolate alike it is small however far the data are.
///
/// Source: Uehara et al. 2024 (BRAID).
///
/// # Errors
/// [`Rank`](Error::Rank), [`Empty`](Error::Empty) or [`Kind`](Error::Kind).
pub fn bootstrap_minimum(scores: &Tensor) -> Result<Tensor> {
    Named::matrix("scores", "[members, batch]", scores).rank(2)?.wide()?;
    // `min_dim` and not `amin`, which would split the gradient of a tie.
    Ok(scores.f_min_dim(0, false)?.0)
}
