//! Each loss of one pair in plain f64, written from the papers and not from the crate.

/// log σ(x) without overflow: min(x, 0) − log(1 + e^{−|x|}).
pub fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Rafailov et al. 2023, eq. 7, with the flip rate of Mitchell 2023, eq. 3.
pub fn dpo(bh: f64, flip: f64) -> f64 {
    -(1.0 - flip) * log_sigmoid(bh) - flip * log_sigmoid(-bh)
}

/// Chowdhury et al. 2024, eq. 12.
pub fn robust_dpo(bh: f64, flip: f64) -> f64 {
    (-(1.0 - flip) * log_sigmoid(bh) + flip * log_sigmoid(-bh)) / (1.0 - 2.0 * flip)
}

/// Azar et al. 2023, eq. 17.
pub fn ipo(h: f64, tau: f64) -> f64 {
    (h - 1.0 / (2.0 * tau)).powi(2)
}

/// Zhao et al. 2023, eq. 2, on log-ratios.
pub fn hinge(bh: f64) -> f64 {
    (1.0 - bh).max(0.0)
}

/// Fisch et al. 2024, eq. 6.
pub fn distillation(margin: f64, bh: f64) -> f64 {
    (margin - bh).powi(2)
}

/// Sharifnassab et al. 2024: −μ log σ(αd)/α with μ = (π_w + π_l)^power.
pub fn spo(chosen: f64, rejected: f64, alpha: f64, power: f64) -> f64 {
    -(chosen.exp() + rejected.exp()).powf(power) * log_sigmoid(alpha * (chosen - rejected)) / alpha
}

/// log(1 − eˣ), x < 0.
pub fn log1mexp(x: f64) -> f64 {
    if x > -0.5 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

/// Nath et al. 2024: d² + α (1 − p_w)^γ [−log π_w − s·log(1 − π_l)], p_w = σ(log π_w − log π_l), d the difference of the margins; s is 1
/// in the corrected form and −1 in the printed one.
pub fn drdo(residual: f64, [chosen, rejected]: [f64; 2], alpha: f64, gamma: f64, sign: f64) -> f64 {
    let contrast = -chosen - sign * log1mexp(rejected);
    residual.powi(2) + alpha * sigmoid(rejected - chosen).powf(gamma) * contrast
}

/// Ji et al. 2024, eq. 16: the divergence of Bernoulli(σ(βh)) from Bernoulli(1 − ε), in its logarithms.
pub fn exo(bh: f64, smoothing: f64) -> f64 {
    sigmoid(bh) * (log_sigmoid(bh) - (1.0 - smoothing).ln()) + sigmoid(-bh) * (log_sigmoid(-bh) - smoothing.ln())
}

/// Chen et al. 2024, for pairs, of the two rewards.
pub fn nca(chosen: f64, rejected: f64) -> f64 {
    -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)
}

/// Lu et al. 2024, eq. 5; the exponential part through its logarithm.
pub fn discopop(bh: f64, temperature: f64) -> f64 {
    (log_sigmoid(bh / temperature) - bh).exp() - sigmoid(-bh / temperature) * log_sigmoid(bh)
}

/// log odds of e^x, x < 0.
pub fn log_odds(x: f64) -> f64 {
    x - log1mexp(x)
}

/// Cross-entropy against a soft label p, of which 1 − p is given apart so that neither is rounded to 0.
pub fn matching(p: f64, not_p: f64, bh: f64) -> f64 {
    -p * log_sigmoid(bh) - not_p * log_sigmoid(-bh)
}

/// KL(reference ‖ policy) of log-probabilities, with 0 log 0 = 0.
pub fn kl(reference: &[f64], policy: &[f64]) -> f64 {
    let terms = reference.iter().zip(policy).filter(|(r, _)| **r > f64::NEG_INFINITY);
    terms.map(|(r, p)| r.exp() * (r - p)).sum()
}

/// Schulman's k1 = −log ρ, ρ = π/π_ref, averaged over samples of the reference.
pub fn k1(reference: &[f64], policy: &[f64]) -> f64 {
    mean(reference.iter().zip(policy).map(|(r, p)| r - p))
}

/// Schulman's k3 = ρ − 1 − log ρ.
pub fn k3(reference: &[f64], policy: &[f64]) -> f64 {
    mean(reference.iter().zip(policy).map(|(r, p)| (p - r).exp_m1() - (p - r)))
}

pub fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// Σ w x / Σ w.
pub fn weighted_mean(values: &[f64], weights: &[f64]) -> f64 {
    values.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>() / weights.iter().sum::<f64>()
}

/// Simplex weights of the point of conv(rows) of smallest weighted norm, for at most three rows, by geometry: the best of all
/// vertices, of the foot on every edge and of the foot on the triangle's plane where it lies inside. No Gram matrix of
/// residuals and no active set, unlike the crate's.
pub fn hull_weights(rows: &[Vec<f64>], pair_weights: &[f64]) -> Vec<f64> {
    assert!(rows.len() <= 3, "the oracle knows points, segments and triangles");
    let dot = |a: &[f64], b: &[f64]| (0..a.len()).map(|j| pair_weights[j] * a[j] * b[j]).sum::<f64>();
    let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x - y).collect::<Vec<_>>();
    let mut candidates = Vec::new();
    for i in 0..rows.len() {
        let mut vertex = vec![0.0; rows.len()];
        vertex[i] = 1.0;
        candidates.push(vertex.clone());
        for j in 0..i {
            let edge = minus(&rows[j], &rows[i]);
            let t = (-dot(&rows[i], &edge) / dot(&edge, &edge)).clamp(0.0, 1.0);
            if t.is_finite() {
                let mut foot = vec![0.0; rows.len()];
                (foot[i], foot[j]) = (1.0 - t, t);
                candidates.push(foot);
            }
        }
    }
    if let [origin, u, v] = rows {
        let (u, v) = (minus(u, origin), minus(v, origin));
        let (uu, uv, vv) = (dot(&u, &u), dot(&u, &v), dot(&v, &v));
        let (a, b) = (-dot(origin, &u), -dot(origin, &v));
        let determinant = uu * vv - uv * uv;
        let (s, t) = ((a * vv - b * uv) / determinant, (b * uu - a * uv) / determinant);
        if s >= 0.0 && t >= 0.0 && s + t <= 1.0 {
            candidates.push(vec![1.0 - s - t, s, t]);
        }
    }
    let norm = |w: &Vec<f64>| {
        let point = mix(rows, w);
        dot(&point, &point)
    };
    candidates.into_iter().min_by(|a, b| norm(a).total_cmp(&norm(b))).expect("a vertex at least")
}

/// Σ_i w_i row_i.
pub fn mix(rows: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    (0..rows[0].len()).map(|j| rows.iter().zip(weights).map(|(row, w)| w * row[j]).sum()).collect()
}

/// log of the Gibbs policy ∝ reference · e^{r/β}.
pub fn gibbs(reference: &[f64], rewards: &[f64], beta: f64) -> Vec<f64> {
    log_softmax(&reference.iter().zip(rewards).map(|(l, r)| l + r / beta).collect::<Vec<_>>())
}

pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
    logits.iter().map(|l| l - total).collect()
}
