use std::f64::consts::TAU;

use serde_json::Value;
use tch::{Kind, Tensor};

use super::{error::Loaded, keys::Keys};
use crate::{Result, autograd::custom, packed::Readout};

const SCALINGS: &str = "default, linear, llama3 or yarn";
/// The share of a head that is turned.
const SHARE: &str = "partial_rotary_factor";

/// Rotary positions: the pair (i, i + width/2) of a head is turned by the angle position · f_i, and scaled by m.
///
/// f_i = θ^{−2i/width} and m = 1, unless the configuration stretches them: `linear` (f/factor), `llama3` (slow turns divided by the
/// factor, with a ramp), `yarn` (Peng et al. 2023, "YaRN"). Source: Su et al. 2021, "RoFormer"; the constants are transformers'.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
    magnitude: f64,
}

impl Rope {
    /// From `rope_theta` and `rope_scaling`, or `rope_parameters`, which holds both.
    pub fn read(keys: &mut Keys, width: i64, context: i64) -> Loaded<Self> {
        let whole = [Value::from(1), Value::from(1.0)];
        let theta = keys.positive("rope_theta")?;
        keys.only(SHARE, &whole, "1")?;
        let (scaling, parameters) = (keys.nested("rope_scaling")?, keys.nested("rope_parameters")?);
        let Some(mut keys) = scaling.or(parameters) else {
            return Ok(Self { frequencies: frequencies(theta.unwrap_or(10_000.0), width), magnitude: 1.0 });
        };
        keys.only(SHARE, &whole, "1")?;
        let theta = keys.positive("rope_theta")?.or(theta).unwrap_or(10_000.0);
        let (new, old) = (keys.word("rope_type")?, keys.word("type")?);
        let kind = new.or(old).unwrap_or_else(|| "default".to_owned());
        let plain = frequencies(theta, width);
        let rope = match kind.as_str() {
            "default" => Self { frequencies: plain, magnitude: 1.0 },
            "linear" => {
                let factor = keys.required_positive("factor")?;
                Self { frequencies: plain.iter().map(|f| f / factor).collect(), magnitude: 1.0 }
            }
            "llama3" => llama3(&mut keys, &plain, context)?,
            "yarn" => yarn(&mut keys, &plain, theta, width, context)?,
            _ => return Err(keys.unsupported("rope_type", kind, SCALINGS)),
        };
        keys.finish(&[])?;
        Ok(rope)
    }

    /// The turns at these positions, `[..]` (Int64).
    pub fn at(&self, positions: &Tensor, kind: Kind) -> Result<Turn> {
        let frequencies = Tensor::from_slice(&self.frequencies).f_to_device(positions.device())?;
        // In f64: at position 10⁴ an angle in f32 is off by a thousandth.
        let angles = positions.f_to_kind(Kind::Double)?.f_unsqueeze(-1)? * frequencies;
        let angles = angles.f_unsqueeze(-2)?;
        let sin = (angles.f_sin()? * self.magnitude).f_to_kind(kind)?;
        Ok(Turn { cos: (angles.f_cos()? * self.magnitude).f_to_kind(kind)?, back: sin.f_neg()?, sin })
    }
}

fn frequencies(theta: f64, width: i64) -> Vec<f64> {
    (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect()
}

/// Turns longer than `original`/low positions are slowed by the factor, shorter ones than `original`/high left, those between mixed.
fn llama3(keys: &mut Keys, plain: &[f64], context: i64) -> Loaded<Rope> {
    let factor = keys.required_positive("factor")?;
    let (low, high) = (keys.required_positive("low_freq_factor")?, keys.required_positive("high_freq_factor")?);
    let original = keys.size("original_max_position_embeddings")?.unwrap_or(context) as f64;
    let slowed = |f: &f64| {
        let turns = original * f / TAU;
        let kept = if turns > high {
            1.0
        } else if turns < low {
            0.0
        } else {
            (turns - low) / (high - low)
        };
        f * (kept + (1.0 - kept) / factor)
    };
    Ok(Rope { frequencies: plain.iter().map(slowed).collect(), magnitude: 1.0 })
}

/// A ramp over the pairs, between those that make `beta_fast` and `beta_slow` turns in the original context.
fn yarn(keys: &mut Keys, plain: &[f64], theta: f64, width: i64, context: i64) -> Loaded<Rope> {
    let original = keys.size("original_max_position_embeddings")?.unwrap_or(context) as f64;
    let factor = keys.positive("factor")?.unwrap_or(context as f64 / original);
    let attention = |scale: f64| if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 };
    let magnitude = match (keys.positive("mscale")?, keys.positive("mscale_all_dim")?) {
        (Some(own), Some(all)) => attention(own) / attention(all),
        _ => attention(1.0),
    };
    let magnitude = keys.positive("attention_factor")?.unwrap_or(magnitude);
    let fast = keys.positive("beta_fast")?.unwrap_or(32.0);
    let slow = keys.positive("beta_slow")?.unwrap_or(1.0);
    let pair = |turns: f64| width as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (low, high) = match keys.flag("truncate", true)? {
        true => (pair(fast).floor(), pair(slow).ceil()),
        false => (pair(fast), pair(slow)),
    };
    let (low, high) = (low.max(0.0), high.min((width - 1) as f64));
    let span = if low == high { 0.001 } else { high - low };
    let slowed = |(i, f): (usize, &f64)| {
        let ramp = ((i as f64 - low) / span).clamp(0.0, 1.0);
        f * (1.0 - ramp + ramp / factor)
    };
    Ok(Rope { frequencies: plain.iter().enumerate().map(slowed).collect(), magnitude })
}

/// Cosines and sines at some positions, `[.., 1, width/2]`.
#[derive(Debug)]
pub(super) struct Turn {
    cos: Tensor,
    sin: Tensor,
    back: Tensor,
}

impl Turn {
    /// Those of a readout's tokens.
    pub fn of(&self, readout: &Readout) -> Result<Self> {
        let [cos, sin, back] = [&self.cos, &self.sin, &self.back].map(|part| readout.select(part));
        Ok(Self { cos: cos?, sin: sin?, back: back? })
    }

    pub fn shallow_clone(&self) -> Self {
        let [cos, sin, back] = [&self.cos, &self.sin, &self.back].map(Tensor::shallow_clone);
        Self { cos, sin, back }
    }

    /// Turns `[.., heads, width]`. The gradient is turned back: two passes over the numbers each way, and nothing saved.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let output = {
            let _no_grad = tch::no_grad_guard();
            turned(&x.detach(), &self.cos, &self.sin, &self.back)?
        };
        let turn = self.shallow_clone();
        custom(&[x], output, move |cotangent, _| Ok(vec![Some(turned(cotangent, &turn.cos, &turn.back, &turn.sin)?)]))
    }
}

/// (a cos − b sin, b cos + a sin) of the halves (a, b), with −sin at hand.
fn turned(x: &Tensor, cos: &Tensor, sin: &Tensor, minus_sin: &Tensor) -> Result<Tensor> {
    let output = Tensor::f_empty(x.size(), (x.kind(), x.device()))?;
    let ([a, b], [mut into_a, mut into_b]) = (halves(x)?, halves(&output)?);
    let _ = a.f_mul_out(&into_a, cos)?;
    let _ = into_a.f_addcmul_(&b, minus_sin)?;
    let _ = b.f_mul_out(&into_b, cos)?;
    let _ = into_b.f_addcmul_(&a, sin)?;
    Ok(output)
}

fn halves(x: &Tensor) -> Result<[Tensor; 2]> {
    let half = x.size().last().copied().unwrap_or_default() / 2;
    Ok([x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?])
}
