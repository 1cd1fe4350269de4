use tch::Tensor;

use crate::{PreferenceBatch, Result, RewardScores, domain::Beta};

/// A batch's numbers on the host, in f64, brought there by one copy: what is made of them costs no kernel.
pub(super) struct Columns {
    pub beta: f64,
    /// log π(y_w), log π(y_l), nats.
    pub logps: [Vec<f64>; 2],
    /// log π/π_ref of y_w and of y_l, nats.
    pub log_ratios: [Vec<f64>; 2],
    /// False where log π_ref is 0 throughout, which no distribution gives to two responses: `reference_free`.
    pub has_reference: bool,
    /// βh, units of reward.
    pub margins: Vec<f64>,
    /// Tokens of y_w and of y_l.
    pub lengths: Option<[Vec<f64>; 2]>,
    pub soft_labels: Option<Vec<f64>>,
    /// Δr of each member, `[members][batch]`; no member without the column.
    pub rewards: Vec<Vec<f64>>,
}

impl Columns {
    pub fn of(batch: &PreferenceBatch, beta: f64) -> Result<Self> {
        let (_no_grad, beta) = (tch::no_grad_guard(), Beta::new(beta)?.get());
        let (logps, kind) = (batch.logps(), batch.logps().chosen().kind());
        let labels = batch.require_soft_labels("batch_metrics").ok();
        let row = |vector: &Tensor| vector.unsqueeze(0);
        let mut rows: Vec<Tensor> =
            vec![row(logps.chosen()), row(logps.rejected()), row(logps.ref_chosen()), row(logps.ref_rejected())];
        if let Some(lengths) = batch.lengths() {
            // A length is exact in f32 up to 16 million tokens.
            rows.extend([lengths.chosen(), lengths.rejected()].map(|tokens| row(&tokens.to_kind(kind))));
        }
        rows.extend(labels.map(row));
        rows.extend(batch.rewards().map(RewardScores::margins));

        let numbers = Vec::<f64>::try_from(Tensor::f_cat(&rows, 0)?.flatten(0, -1))?;
        let mut rows = numbers.chunks_exact(batch.len() as usize).map(<[f64]>::to_vec);
        let mut next = || rows.next().expect("as many rows as were put in");
        let [chosen, rejected, ref_chosen, ref_rejected] = [(); 4].map(|()| next());
        let lengths = batch.lengths().map(|_| [next(), next()]);
        let soft_labels = labels.map(|_| next());
        let rewards = (0..batch.rewards().map_or(0, RewardScores::members)).map(|_| next()).collect();

        let has_reference = ref_chosen.iter().chain(&ref_rejected).any(|&logp| logp != 0.0);
        let log_ratios = [less(&chosen, &ref_chosen), less(&rejected, &ref_rejected)];
        let margins = less(&log_ratios[0], &log_ratios[1]).into_iter().map(|h| beta * h).collect();
        let logps = [chosen, rejected];
        Ok(Self { beta, logps, log_ratios, has_reference, margins, lengths, soft_labels, rewards })
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.margins.len()
    }
}

/// Differences of two columns.
pub(super) fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}
