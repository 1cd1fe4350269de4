//! Small networks on feature vectors, and the loop that fits them: what the claims on bandits share.

use anyhow::Result;
use prefopt::train::{AdamW, AdamWConfig, Descent, Warmup};
use tch::{
    Device, Kind, Tensor,
    nn::{self, Module},
};

/// Two hidden layers of tanh units, seeded: `[n, inputs]` to `[n, outputs]`. The last layer starts at 0, so a policy starts uniform.
#[derive(Debug)]
pub struct Mlp {
    store: nn::VarStore,
    layers: [nn::Linear; 3],
}

impl Mlp {
    /// `seed` fixes the weights whatever other threads draw: they come from the host.
    pub fn new(inputs: i64, hidden: i64, outputs: i64, seed: u64) -> Result<Self> {
        use rand::SeedableRng;
        let store = nn::VarStore::new(Device::Cpu);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let root = store.root();
        let layer = |name: &str, inputs, outputs| nn::linear(&root / name, inputs, outputs, Default::default());
        let mut layers = [layer("0", inputs, hidden), layer("1", hidden, hidden), layer("2", hidden, outputs)];
        let _no_grad = tch::no_grad_guard();
        for (i, layer) in layers.iter_mut().enumerate() {
            let size = layer.ws.size();
            let scale = if i < 2 { (size[1] as f64).sqrt().recip() } else { 0.0 };
            let values = normal(&mut rng, (size[0] * size[1]) as usize);
            layer.ws.copy_(&(matrix(&values, size[1]) * scale));
            if let Some(bias) = &mut layer.bs {
                let _ = bias.zero_();
            }
        }
        Ok(Self { store, layers })
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second, last] = &self.layers;
        last.forward(&self.features(x, first, second))
    }

    fn features(&self, x: &Tensor, first: &nn::Linear, second: &nn::Linear) -> Tensor {
        second.forward(&first.forward(x).tanh()).tanh()
    }

    /// What the last layer reads, `[n, hidden]`.
    pub fn hidden(&self, x: &Tensor) -> Tensor {
        self.features(x, &self.layers[0], &self.layers[1])
    }

    pub fn parameters(&self) -> Vec<Tensor> {
        self.store.trainable_variables()
    }
}

/// `steps` updates by AdamW at a rate that falls to 0 by a cosine; `loss` takes the step's index from 0.
pub fn descend(
    parameters: Vec<Tensor>,
    steps: usize,
    rate: f64,
    mut loss: impl FnMut(usize) -> Result<Tensor>,
) -> Result<()> {
    let optimizer = AdamW::new(parameters, AdamWConfig::default())?;
    let schedule = Warmup::new(0).then_cosine(steps.max(1) as u64 + 1)?;
    let mut descent = Descent::new(optimizer, rate)?.with_schedule(schedule);
    for step in 0..steps {
        descent.descend(&loss(step)?)?;
    }
    Ok(())
}

/// Standard normal numbers.
pub fn normal(rng: &mut impl rand::Rng, n: usize) -> Vec<f64> {
    use rand_distr::{Distribution, StandardNormal};
    StandardNormal.sample_iter(rng).take(n).collect()
}

/// Rows of this width, `[n, width]`, f32.
pub fn matrix(values: &[f64], width: i64) -> Tensor {
    Tensor::from_slice(values).view([-1, width]).to_kind(Kind::Float)
}

/// `[n]`, f32.
pub fn vector(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Float)
}

/// Indices, `[n]`.
pub fn indices(values: &[usize]) -> Tensor {
    Tensor::from_slice(&values.iter().map(|&i| i as i64).collect::<Vec<_>>())
}

/// The numbers of a tensor, flattened.
pub fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.detach().to_kind(Kind::Double).flatten(0, -1))?)
}
