//! The fused update: parameters of any layout and kind, gradients that share memory, and steps counted one by one.

use prefopt::{
    Result,
    tch::{Device, Kind, Tensor},
    train::{AdamW, AdamWConfig, Descent},
};

use crate::{all_close, close, number, numbers};

/// Zeros to start from, so that a step is left as it is by no rounding.
pub fn origin(length: i64, kind: Kind) -> Tensor {
    Tensor::zeros([length], (kind, Device::Cpu)).set_requires_grad(true)
}

/// With β₁ = β₂ = 0, ε = 1 and a rate of 1, a step goes from x to x − g/(|g| + 1), in which the gradient can be read.
pub fn legible<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<Descent> {
    Descent::new(optimizer(parameters, AdamWConfig::new((0.0, 0.0), 1.0, 0.0)?)?, 1.0)
}

/// −g/(|g| + 1).
pub fn moved(gradient: f64) -> f64 {
    -gradient / (gradient.abs() + 1.0)
}

fn optimizer<'a>(parameters: impl IntoIterator<Item = &'a Tensor>, config: AdamWConfig) -> Result<AdamW> {
    AdamW::new(parameters.into_iter().map(Tensor::shallow_clone).collect(), config)
}

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// Σ cos(x) + x²/2.
fn bowl(x: &Tensor) -> Tensor {
    (x.cos() + x.square() * 0.5).sum(Kind::Double)
}

#[test]
fn a_transposed_parameter_moves_as_its_contiguous_twin() -> Result<()> {
    let twin = Tensor::from_slice2(&[[1.5, -2.0, 0.3], [0.7, 4.0, -1.0]]).set_requires_grad(true);
    let transposed = twin.detach().tr().contiguous().tr().set_requires_grad(true);
    let before = numbers(&twin);
    for x in [&twin, &transposed] {
        let optimizer = optimizer([x], AdamWConfig::new((0.9, 0.99), 1e-8, 0.1)?)?;
        let mut descent = Descent::new(optimizer, 0.05)?;
        for _ in 0..5 {
            descent.descend(&bowl(x))?;
        }
    }
    all_close(&numbers(&transposed), &numbers(&twin), 1e-14, "transposed");
    assert!(!transposed.is_contiguous() && numbers(&twin) != before);
    Ok(())
}

/// The engine hands both parameters of a sum the same tensor, which is scaled in place.
#[test]
fn a_gradient_that_two_parameters_share_is_clipped_once() -> Result<()> {
    let (a, b) = (origin(2, Kind::Double), origin(2, Kind::Double));
    let norm = legible([&a, &b])?.descend(&((&a + &b) * Tensor::from_slice(&[30.0, 40.0])).sum(Kind::Double))?;
    close(norm, 50.0 * 2.0_f64.sqrt(), 1e-14, 0.0, "norm");
    let expected = [30.0, 40.0].map(|g| moved(g / (norm + 1e-6)));
    all_close(&numbers(&a), &expected, 1e-12, "one");
    all_close(&numbers(&b), &expected, 1e-12, "the other");
    Ok(())
}

/// The gradients of what was put together are views into that of the whole.
#[test]
fn a_gradient_that_is_a_view_into_another_is_clipped_once() -> Result<()> {
    let (a, b, d) = (leaf(&[10.0, 20.0, 30.0, 40.0]), leaf(&[1.0, 2.0]), leaf(&[3.0, 4.0]));
    let loss = (&a + Tensor::cat(&[&b, &d], 0)).square().sum(Kind::Double);
    let norm = legible([&a, &b, &d])?.descend(&loss)?;
    let gradient = [22.0, 44.0, 66.0, 88.0];
    close(norm, gradient.map(|g: f64| 2.0 * g * g).iter().sum::<f64>().sqrt(), 1e-14, 0.0, "norm");
    let [one, two, three, four] = gradient.map(|g| moved(g / (norm + 1e-6)));
    all_close(&numbers(&a), &[10.0 + one, 20.0 + two, 30.0 + three, 40.0 + four], 1e-12, "the whole");
    all_close(&numbers(&b), &[1.0 + one, 2.0 + two], 1e-12, "its first half");
    all_close(&numbers(&d), &[3.0 + three, 4.0 + four], 1e-12, "its second half");
    Ok(())
}

/// One number stands for all elements of the gradient of a sum.
#[test]
fn an_expanded_gradient_is_one_like_any_other() -> Result<()> {
    let x = origin(4, Kind::Double);
    close(legible([&x])?.descend(&x.sum(Kind::Double))?, 2.0, 1e-15, 0.0, "norm");
    all_close(&numbers(&x), &[moved(1.0 / (2.0 + 1e-6)); 4], 1e-12, "clipped");
    Ok(())
}

#[test]
fn kinds_are_mixed() -> Result<()> {
    const KINDS: [(Kind, f64); 3] = [(Kind::Float, 1e-6), (Kind::Double, 1e-12), (Kind::BFloat16, 1e-2)];
    for (max_norm, scale) in [(None, 1.0), (Some(1.0), 1.0 / (27.0_f64.sqrt() + 1e-6))] {
        let parameters = KINDS.map(|(kind, _)| origin(1, kind));
        let losses = parameters.each_ref().map(|x| (x.to_kind(Kind::Double) * 3.0).sum(Kind::Double));
        let norm = legible(&parameters)?.with_max_norm(max_norm)?.descend(&losses.iter().sum())?;
        close(norm, 27.0_f64.sqrt(), 1e-7, 0.0, "norm");
        for (x, (kind, tolerance)) in parameters.iter().zip(KINDS) {
            assert_eq!(x.kind(), kind);
            close(number(x), moved(3.0 * scale), tolerance, 0.0, format_args!("{kind:?} with {max_norm:?}"));
        }
    }
    Ok(())
}

/// Adam's first step is x − ηg/(|g| + ε), the bias of both moments being corrected, whenever it comes; what follows is as for any other.
#[test]
fn steps_are_counted_for_each_parameter() -> Result<()> {
    const RATE: f64 = 0.1;
    let start = [2.0, -0.5];
    let (early, late, twin) = (leaf(&[1.0]), leaf(&start), leaf(&start));
    let mut both = Descent::new(optimizer([&early, &late], AdamWConfig::default())?, RATE)?.with_max_norm(None)?;
    let mut alone = Descent::new(optimizer([&twin], AdamWConfig::default())?, RATE)?.with_max_norm(None)?;
    for _ in 0..2 {
        both.descend(&bowl(&early))?;
        assert_eq!(numbers(&late), start);
    }
    for step in 3..=5 {
        both.descend(&(bowl(&early) + bowl(&late)))?;
        alone.descend(&bowl(&twin))?;
        if step == 3 {
            let first = start.map(|x: f64| {
                let gradient = x - x.sin();
                x - RATE * gradient / (gradient.abs() + 1e-8)
            });
            all_close(&numbers(&late), &first, 1e-12, "its first step");
        }
        assert_eq!(numbers(&late), numbers(&twin), "after step {step}");
    }
    Ok(())
}

#[test]
fn a_step_of_ones_own_takes_what_backward_has_left() -> Result<()> {
    let (x, unreached) = (origin(1, Kind::Double), origin(1, Kind::Double));
    let mut optimizer = optimizer([&x, &unreached], AdamWConfig::new((0.0, 0.0), 1.0, 0.0)?)?;
    (&x * 6.0).sum(Kind::Double).backward();
    optimizer.step(1.0, 0.5)?;
    close(number(&x), moved(3.0), 1e-14, 0.0, "half the gradient");
    assert_eq!(number(&unreached), 0.0);
    optimizer.zero_grad();
    optimizer.step(1.0, 1.0)?;
    close(number(&x), moved(3.0), 1e-14, 0.0, "forgotten");
    Ok(())
}
