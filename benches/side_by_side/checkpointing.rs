//! Activation checkpointing: time against memory, on layers with attention and an MLP.

use anyhow::Result;
use prefopt::autograd::checkpoint;
use tch::{Device, Kind, Tensor};

use crate::measure::{Table, peak, products, race, with_product};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);
const LAYERS: usize = 12;
const WIDTH: i64 = 576;
const HEADS: i64 = 9;
const BATCH: i64 = 16;
const TIME: i64 = 128;

/// Query–key–value, output, up and down projections.
struct Layer([Tensor; 4]);

impl Layer {
    fn new() -> Self {
        let shapes = [[3 * WIDTH, WIDTH], [WIDTH, WIDTH], [4 * WIDTH, WIDTH], [WIDTH, 4 * WIDTH]];
        Self(shapes.map(|shape| (Tensor::randn(shape, F32) * 0.02).set_requires_grad(true)))
    }

    fn shallow_clone(&self) -> Self {
        Self(self.0.each_ref().map(Tensor::shallow_clone))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [qkv, output, up, down] = &self.0;
        let product = |x: &Tensor, weight: &Tensor| x.linear::<&Tensor>(weight, None);
        let norm = |x: &Tensor| x.layer_norm::<&Tensor>([WIDTH], None, None, 1e-5, false);
        let heads = |x: &Tensor| x.view([BATCH, TIME, HEADS, WIDTH / HEADS]).transpose(1, 2);
        let parts = product(&norm(x), qkv).chunk(3, -1);
        let [q, k, v] = [0, 1, 2].map(|i| heads(&parts[i]));
        let seen = Tensor::scaled_dot_product_attention::<&Tensor>(&q, &k, &v, None, 0.0, true, None, false);
        let x = x + product(&seen.transpose(1, 2).reshape([BATCH, TIME, WIDTH]), output);
        &x + product(&product(&norm(&x), up).gelu("tanh"), down)
    }
}

struct Model {
    layers: Vec<Layer>,
    input: Tensor,
}

impl Model {
    fn run(&mut self, checkpointed: bool) -> Result<()> {
        let mut x = self.input.shallow_clone();
        for layer in &self.layers {
            x = if checkpointed {
                let own = layer.shallow_clone();
                checkpoint(&[&x], &layer.0.each_ref(), move |inputs| Ok(own.forward(&inputs[0])))?
            } else {
                layer.forward(&x)
            };
        }
        x.square().mean(Kind::Float).f_backward()?;
        self.layers.iter_mut().flat_map(|layer| &mut layer.0).for_each(Tensor::zero_grad);
        Ok(())
    }
}

pub fn run(table: &mut Table) -> Result<()> {
    table.heading(&format!("activation checkpointing, {LAYERS} layers x {WIDTH}, {BATCH} sequences of {TIME} tokens"));
    let layers = (0..LAYERS).map(|_| Layer::new()).collect();
    let model = std::cell::RefCell::new(Model {
        layers,
        input: Tensor::randn([BATCH, TIME, WIDTH], F32).set_requires_grad(true),
    });
    let (mut kept, mut again) = (|| model.borrow_mut().run(false), || model.borrow_mut().run(true));
    // The gradients are there from the first run on, so that what is compared are activations.
    again()?;
    for product in products()? {
        with_product(product, || {
            let checkpointed_mb = peak(&mut again)?;
            let plain_mb = peak(&mut kept)?;
            let [plain, checkpointed] = race(3, [&mut kept, &mut again])?;
            let part = format!("checkpointing, {product}");
            table.row(&part, &format!("all activations kept, {product}"), plain, plain_mb);
            table.row(&part, &format!("checkpointed at each layer, {product}"), checkpointed, checkpointed_mb);
            table.ratio("time, checkpointed / kept", checkpointed, plain);
            if let (Some(few), Some(all)) = (checkpointed_mb, plain_mb) {
                table.ratio("memory, checkpointed / kept", few, all);
            }
            Ok(())
        })?;
    }
    Ok(())
}
