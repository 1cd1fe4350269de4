//! Backward passes that are closures: their gradients, their lives and their failures; vector–Jacobian products; checkpoints.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use prefopt::{
    Error, Result,
    autograd::{Saved, Wanted, checkpoint, custom, custom_many, vjp},
    tch::{Cuda, Device, Kind, Tensor, no_grad_guard},
};

use crate::{all_close, number, numbers};

type Gradients = Result<Vec<Option<Tensor>>>;

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// x·sin y with its gradients by hand.
fn x_sin_y(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let output = {
        let _no_grad = no_grad_guard();
        x * y.sin()
    };
    let saved = [Saved::new("x", x), Saved::new("y", y)];
    custom(&[x, y], output, move |cotangent, wanted| {
        let [x, y] = [saved[0].get()?, saved[1].get()?];
        Ok(vec![wanted.get(0).then(|| cotangent * y.sin()), wanted.get(1).then(|| cotangent * x * y.cos())])
    })
}

/// A copy of x with this backward pass.
fn copied<F>(x: &Tensor, backward: F) -> Result<Tensor>
where
    F: FnMut(&Tensor, Wanted) -> Gradients + Send + 'static,
{
    custom(&[x], x.detach().copy(), backward)
}

/// What the backward pass of Σ output says when it fails.
#[track_caller]
fn failure(output: &Tensor) -> String {
    output.sum(Kind::Double).f_backward().expect_err("the backward pass must fail").to_string()
}

/// Writes to a tensor in place, as an optimiser does.
pub fn overwrite(tensor: &Tensor) {
    let _no_grad = no_grad_guard();
    let _ = tensor.shallow_clone().fill_(0.5);
}

/// Whether a graph is recorded on this thread.
fn recording() -> bool {
    leaf(&[1.0]).exp().requires_grad()
}

/// Runs a test again by its name, in a process where no other runs beside it; true in that process. For what belongs to a whole
/// process: resident memory, the product in use.
pub fn alone(test: &str) -> bool {
    const MARK: &str = "PREFOPT_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().expect("a test is a program"));
    // A backtrace would take the debug information into memory.
    again.args(["--exact", test, "--nocapture"]).env(MARK, "1").env("RUST_BACKTRACE", "0");
    let output = again.output().expect("the same program starts again");
    let [said, aside] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    eprint!("{aside}");
    assert!(output.status.success() && said.contains("1 passed"), "{test} alone:\n{said}");
    false
}

#[test]
fn a_gradient_by_hand_is_libtorchs() -> Result<()> {
    let gradients = |f: fn(&Tensor, &Tensor) -> Result<Tensor>| -> Result<[Vec<f64>; 2]> {
        let (x, y) = (leaf(&[0.5, -2.0, 3.0]), leaf(&[1.0, 0.25, -4.0]));
        // With a graph before it and after it.
        f(&x.exp(), &y)?.square().sum(Kind::Double).backward();
        Ok([numbers(&x.grad()), numbers(&y.grad())])
    };
    let (found, expected) = (gradients(x_sin_y)?, gradients(|x, y| Ok(x * y.sin()))?);
    all_close(&found[0], &expected[0], 1e-14, "x");
    all_close(&found[1], &expected[1], 1e-14, "y");
    Ok(())
}

#[test]
fn a_gradient_by_hand_equals_central_differences() -> Result<()> {
    const STEP: f64 = 1e-5;
    let at = [0.5, -2.0, 1.0, 0.25];
    let loss = |values: [f64; 4]| -> Result<(Tensor, [Tensor; 2])> {
        let leaves = [leaf(&values[..2]), leaf(&values[2..])];
        Ok((x_sin_y(&leaves[0], &leaves[1])?.exp().sum(Kind::Double), leaves))
    };
    let moved = |index: usize, step: f64| -> Result<f64> {
        let mut values = at;
        values[index] += step;
        Ok(number(&loss(values)?.0))
    };
    let expected: Result<Vec<f64>> = (0..4).map(|i| Ok((moved(i, STEP)? - moved(i, -STEP)?) / (2.0 * STEP))).collect();
    let (value, leaves) = loss(at)?;
    value.backward();
    let found: Vec<f64> = leaves.iter().flat_map(|leaf| numbers(&leaf.grad())).collect();
    all_close(&found, &expected?, 1e-8, "gradient");
    Ok(())
}

/// x² and sin x, of which the loss takes one, the other, or both.
#[test]
fn an_output_that_the_loss_does_not_take_has_no_cotangent() -> Result<()> {
    const X: [f64; 2] = [0.5, -2.0];
    for taken in [[true, false], [false, true], [true, true]] {
        let x = leaf(&X);
        let outputs = {
            let _no_grad = no_grad_guard();
            vec![x.square(), x.sin()]
        };
        let (saved, (tell, told)) = (Saved::new("x", &x), mpsc::channel());
        let outputs = custom_many(&[&x], outputs, move |cotangents, _| {
            tell.send(cotangents.iter().map(Option::is_some).collect::<Vec<_>>()).expect("the test listens");
            let x = saved.get()?;
            let parts = cotangents.iter().zip([x * 2.0, x.cos()]);
            let parts = parts.filter_map(|(cotangent, slope)| cotangent.as_ref().map(|c| c * slope));
            Ok(vec![parts.reduce(|sum, part| sum + part)])
        })?;
        let losses = outputs.iter().zip(taken).filter(|(_, taken)| *taken).map(|(y, _)| y.sum(Kind::Double));
        losses.reduce(|sum, loss| sum + loss).expect("takes one").backward();
        assert_eq!(told.try_recv().expect("one pass"), taken);
        let slope = |x: f64| f64::from(taken[0]) * 2.0 * x + f64::from(taken[1]) * x.cos();
        all_close(&numbers(&x.grad()), &X.map(slope), 1e-15, format_args!("{taken:?}"));
    }
    Ok(())
}

#[test]
fn only_gradients_that_will_be_used_are_wanted() -> Result<()> {
    let (x, y, constant) = (leaf(&[1.0]), leaf(&[2.0]), Tensor::from_slice(&[3.0]));
    let (tell, told) = mpsc::channel();
    let output = custom(&[&x, &y, &constant], Tensor::from_slice(&[6.0]), move |cotangent, wanted| {
        tell.send([0, 1, 2, 3].map(|input| wanted.get(input))).expect("the test listens");
        Ok((0..3).map(|input| wanted.get(input).then(|| cotangent.shallow_clone())).collect())
    })?;
    Tensor::f_run_backward(&[&output], &[&x], true, false)?;
    assert_eq!(told.try_recv().expect("one pass"), [true, false, false, false]);
    output.backward();
    assert_eq!(told.try_recv().expect("another"), [true, true, false, false]);
    Ok(())
}

#[test]
fn an_input_of_integers_has_no_gradient() -> Result<()> {
    let (table, index) = (leaf(&[1.0, 2.0, 3.0]), Tensor::from_slice(&[2_i64, 0, 2]));
    let (output, kept) = (table.detach().index_select(0, &index), index.shallow_clone());
    let output = custom(&[&table, &index], output, move |cotangent, wanted| {
        assert!(wanted.get(0) && !wanted.get(1));
        let nothing = Tensor::zeros([3], (Kind::Double, Device::Cpu));
        Ok(vec![Some(nothing.index_add(0, &kept, cotangent)), None])
    })?;
    output.sum(Kind::Double).backward();
    assert_eq!(numbers(&table.grad()), [1.0, 0.0, 2.0]);
    Ok(())
}

#[test]
fn without_a_graph_the_closure_is_dropped_at_once() -> Result<()> {
    let counted = Arc::new(());
    let copy = |x: &Tensor| {
        let held = Arc::clone(&counted);
        copied(x, move |cotangent, _| {
            let _held = &held;
            Ok(vec![Some(cotangent.shallow_clone())])
        })
    };
    let of_a_constant = copy(&Tensor::from_slice(&[1.0]))?;
    let guarded = {
        let _no_grad = no_grad_guard();
        copy(&leaf(&[1.0]))?
    };
    assert!(!of_a_constant.requires_grad() && !guarded.requires_grad());
    assert_eq!(Arc::strong_count(&counted), 1);
    Ok(())
}

#[test]
fn a_closure_lives_as_long_as_its_graph() -> Result<()> {
    let (x, counted) = (leaf(&[1.0, 2.0]), Arc::new(()));
    let alive = || Arc::strong_count(&counted) - 1;
    let tripled = || -> Result<Tensor> {
        let held = Arc::clone(&counted);
        let tripled = copied(&x, move |cotangent, _| {
            let _held = &held;
            Ok(vec![Some(cotangent * 3.0)])
        })?;
        Ok(tripled.sum(Kind::Double))
    };
    let pass = |loss: &Tensor, keep| Tensor::f_run_backward(&[loss], &[&x], keep, false);
    let loss = tripled()?;
    assert_eq!(alive(), 1);
    drop(loss);
    assert_eq!(alive(), 0, "dropped with its output");

    let loss = tripled()?;
    let first = pass(&loss, true)?;
    assert_eq!(alive(), 1, "kept with the graph");
    let second = pass(&loss, false)?;
    assert_eq!(alive(), 0, "freed by a pass that does not keep the graph, although the output is still there");
    assert_eq!(numbers(&first[0]), [3.0; 2]);
    assert_eq!(numbers(&second[0]), numbers(&first[0]));
    let again = pass(&loss, false).expect_err("the graph is gone").to_string();
    assert!(again.contains("keep the graph"), "{again}");
    Ok(())
}

#[test]
fn a_closure_cannot_be_differentiated_twice() -> Result<()> {
    let x = leaf(&[1.0]);
    let loss = copied(&x, |cotangent, _| Ok(vec![Some(cotangent * 3.0)]))?.sum(Kind::Double);
    let refused = Tensor::f_run_backward(&[&loss], &[&x], true, true).expect_err("create_graph").to_string();
    assert!(refused.contains("cannot itself be differentiated"), "{refused}");
    assert_eq!(numbers(&Tensor::f_run_backward(&[&loss], &[&x], false, false)?[0]), [3.0]);
    Ok(())
}

/// And the same thread goes on as if nothing had happened.
#[test]
fn a_failure_arrives_with_its_message() -> Result<()> {
    type Failure = (fn() -> Gradients, &'static str);
    let failures: [Failure; 6] = [
        (|| Err(Error::NothingObserved), "the running minimum has seen no batch since its last reset"),
        (|| panic!("out of ideas"), "panic in a backward closure: out of ideas"),
        (|| panic!("{}", "out of ideas".to_uppercase()), "panic in a backward closure: OUT OF IDEAS"),
        (|| std::panic::panic_any(3), "panic in a backward closure: without a message"),
        (|| Ok(vec![None, None]), "a backward closure gave 2 gradients for 1 inputs"),
        (|| Ok(vec![Some(Tensor::from_slice(&[1.0, 2.0, 3.0]))]), "invalid gradient at index 0"),
    ];
    let x = leaf(&[1.0, 2.0]);
    for (fail, message) in failures {
        let said = failure(&copied(&x, move |_, _| fail())?);
        assert!(said.contains(message), "{said}");
        assert!(!x.grad().defined() && recording(), "after {message}");
        let next = x_sin_y(&x, &x)?.sum(Kind::Double);
        let slopes = numbers(&Tensor::f_run_backward(&[next], &[&x], false, false)?[0]);
        all_close(&slopes, &[1.0_f64, 2.0].map(|x| x.sin() + x * x.cos()), 1e-15, format_args!("after {message}"));
    }
    Ok(())
}

#[test]
fn an_output_must_be_fresh() {
    let (x, constant) = (leaf(&[1.0, 2.0]), Tensor::from_slice(&[3.0, 4.0]));
    let view = (&x.detach() * 2.0).narrow(0, 0, 1);
    let own = "output 0 of a closure's forward has a history of its own or is a view";
    let input = "output 0 of a closure's forward shares its memory with an input";
    let outputs = [
        (&x * 2.0, own),
        (x.shallow_clone(), own),
        (view, own),
        (constant.shallow_clone(), input),
        (constant.detach(), input),
    ];
    for (output, message) in outputs {
        let error = custom(&[&x, &constant], output, |_, _| Ok(vec![None, None])).expect_err("not fresh");
        assert!(matches!(error, Error::Torch(_)) && error.to_string().contains(message), "{error}");
    }
}

#[test]
fn what_is_saved_must_stay_as_it_was() -> Result<()> {
    const SAID: &str = "x was written to in place between the forward and the backward pass";
    let (x, y) = (leaf(&[1.0, 2.0]), leaf(&[3.0, 4.0]));
    let (saved, output) = (Saved::new("x", &x), x_sin_y(&x, &y)?);
    assert_eq!(numbers(saved.get()?), [1.0, 2.0]);
    assert!(!saved.get()?.requires_grad());
    overwrite(&x);
    let error = saved.get().expect_err("written to");
    assert!(matches!(error, Error::Modified { tensor: "x" }));
    assert_eq!(error.to_string(), SAID);
    let said = failure(&output);
    assert!(said.contains(SAID), "{said}");
    Ok(())
}

#[test]
fn any_thread_may_go_backward() -> Result<()> {
    let (x, y) = (leaf(&[0.5, -2.0]), leaf(&[1.0, 0.25]));
    let loss = x_sin_y(&x, &y)?.sum(Kind::Double);
    std::thread::spawn(move || loss.backward()).join().expect("goes backward");
    all_close(&numbers(&x.grad()), &[1.0_f64, 0.25].map(f64::sin), 1e-15, "x");
    Ok(())
}

/// On a thread of libtorch's, one for each device.
#[test]
fn a_gpu_goes_backward_too() -> Result<()> {
    if !Cuda::is_available() {
        eprintln!("skipped: no GPU");
        return Ok(());
    }
    let there = |values: &[f64]| Tensor::from_slice(values).to_device(Device::Cuda(0)).set_requires_grad(true);
    let (x, y) = (there(&[0.5, -2.0]), there(&[1.0, 0.25]));
    x_sin_y(&x, &y)?.sum(Kind::Double).backward();
    all_close(&numbers(&x.grad()), &[1.0_f64, 0.25].map(f64::sin), 1e-14, "x");
    all_close(&numbers(&y.grad()), &[0.5 * 1.0_f64.cos(), -2.0 * 0.25_f64.cos()], 1e-14, "y");
    let (tell, told) = mpsc::channel();
    let said = failure(&copied(&x, move |_, _| {
        tell.send(std::thread::current().id()).expect("the test listens");
        panic!("out of ideas")
    })?);
    assert!(said.contains("panic in a backward closure: out of ideas"), "{said}");
    assert_ne!(told.try_recv().expect("one pass"), std::thread::current().id());
    Ok(())
}

/// ∂(c·x² + d·xw)/∂x = 2cx + dw and ∂/∂w = dx.
#[test]
fn vjp_weighs_outputs_with_cotangents() -> Result<()> {
    let (x, w, elsewhere) = (leaf(&[2.0, -1.0]), leaf(&[0.5, 3.0]), leaf(&[7.0]));
    let [c, d] = [[1.0, 10.0], [100.0, 1000.0]].map(|cotangent| Tensor::from_slice(&cotangent));
    let found = vjp(&[x.square(), &x * &w], &[c, d], &[&x, &w, &elsewhere])?;
    let found: Vec<_> = found.iter().map(|gradient| gradient.as_ref().map(numbers)).collect();
    assert_eq!(found, [Some(vec![54.0, 2980.0]), Some(vec![200.0, -1000.0]), None]);
    assert!(!x.grad().defined(), "nothing is added to a leaf's own gradient");
    Ok(())
}

#[test]
fn vjp_of_a_constant_is_none() -> Result<()> {
    let (x, constant) = (leaf(&[2.0]), Tensor::from_slice(&[3.0]));
    let one = || [Tensor::from_slice(&[1.0])];
    assert!(vjp(&[constant.square()], &one(), &[&x])?[0].is_none());
    assert!(vjp(&[&x * &constant], &one(), &[&constant])?[0].is_none());
    assert!(vjp(&[x.square()], &one(), &[])?.is_empty());
    assert!(!x.grad().defined(), "nothing is added to a leaf's own gradient");
    Ok(())
}

#[test]
fn vjp_needs_a_cotangent_for_each_output() {
    let x = leaf(&[2.0]);
    let error = vjp(&[x.square(), x.exp()], &[Tensor::from_slice(&[1.0])], &[&x]).expect_err("one is missing");
    assert!(matches!(error, Error::Length { .. }));
    assert_eq!(error.to_string(), "cotangents must have shape [outputs] with outputs = 2, got outputs = 1");
}

/// Numbers in [−1, 1] that look random enough.
fn wave(shape: &[i64], step: f64) -> Tensor {
    let angles = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) * step;
    angles.sin().view(shape)
}

/// A, a, B and b of [`mlp`].
fn weights() -> [Tensor; 4] {
    let shapes: [&[i64]; 4] = [&[3, 5], &[5], &[5, 2], &[2]];
    let steps = [1.3, 0.7, 2.9, 1.9];
    std::array::from_fn(|i| wave(shapes[i], steps[i]).set_requires_grad(true))
}

/// tanh(tanh(x A + a) B + b).
fn mlp(x: &Tensor, [first, first_bias, second, second_bias]: &[Tensor; 4]) -> Tensor {
    ((x.matmul(first) + first_bias).tanh().matmul(second) + second_bias).tanh()
}

/// Value, and gradients of its squared norm at x and at the weights.
fn value_and_gradients(y: &Tensor, x: &Tensor, weights: &[Tensor; 4]) -> Result<Vec<Vec<f64>>> {
    let leaves: Vec<&Tensor> = std::iter::once(x).chain(weights).collect();
    let gradients = Tensor::f_run_backward(&[y.square().sum(Kind::Double)], &leaves, false, false)?;
    Ok(std::iter::once(y).chain(&gradients).map(numbers).collect())
}

#[test]
fn a_checkpoint_is_its_function_run_twice() -> Result<()> {
    let (x, weights, runs) = (wave(&[4, 3], 2.3).set_requires_grad(true), weights(), Arc::new(AtomicUsize::new(0)));
    let (inside, counter) = (weights.each_ref().map(Tensor::shallow_clone), Arc::clone(&runs));
    let y = checkpoint(&[&x], &weights.each_ref(), move |inputs| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(mlp(&inputs[0], &inside))
    })?;
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    let found = value_and_gradients(&y, &x, &weights)?;
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    assert_eq!(found, value_and_gradients(&mlp(&x, &weights), &x, &weights)?);
    Ok(())
}

/// [`mlp`] in a checkpoint in a checkpoint …
fn nested(depth: usize, x: &Tensor, weights: &[Tensor; 4]) -> Result<Tensor> {
    let inside = weights.each_ref().map(Tensor::shallow_clone);
    checkpoint(&[x], &weights.each_ref(), move |inputs| match depth {
        0 => Ok(mlp(&inputs[0], &inside)),
        depth => nested(depth - 1, &inputs[0], &inside),
    })
}

#[test]
fn checkpoints_nest() -> Result<()> {
    let (x, weights) = (wave(&[4, 3], 2.3).set_requires_grad(true), weights());
    let expected = value_and_gradients(&mlp(&x, &weights), &x, &weights)?;
    for depth in [1, 3] {
        assert_eq!(value_and_gradients(&nested(depth, &x, &weights)?, &x, &weights)?, expected, "depth {depth}");
    }
    Ok(())
}

/// A layer may be frozen, and so may be what comes in.
#[test]
fn a_checkpoint_has_no_gradient_for_what_is_frozen() -> Result<()> {
    let (x, weights) = (wave(&[4, 3], 2.3), weights());
    let _ = weights[0].set_requires_grad(false);
    let inside = weights.each_ref().map(Tensor::shallow_clone);
    let y = checkpoint(&[&x], &weights.each_ref(), move |inputs| Ok(mlp(&inputs[0], &inside)))?;
    let gradients = |y: &Tensor| Tensor::f_run_backward(&[y.sum(Kind::Double)], &weights[1..], false, false);
    let (found, expected) = (gradients(&y)?, gradients(&mlp(&x, &weights))?);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(numbers(found), numbers(expected));
    }
    Ok(())
}

#[test]
fn a_checkpoint_shares_no_memory_with_its_input() -> Result<()> {
    type Function = fn(&[Tensor]) -> Result<Tensor>;
    let functions: [Function; 3] =
        [|inputs| Ok(inputs[0].tr()), |inputs| Ok(inputs[0].shallow_clone()), |inputs| Ok(inputs[0].narrow(0, 1, 2))];
    for f in functions {
        let x = wave(&[4, 3], 2.3).set_requires_grad(true);
        let (found, plain) = (checkpoint(&[&x], &[], f)?, f(&[x.shallow_clone()])?);
        assert_eq!(numbers(&found), numbers(&plain));
        let gradients = |y: &Tensor| Tensor::f_run_backward(&[(y * y.exp()).sum(Kind::Double)], &[&x], false, false);
        assert_eq!(numbers(&gradients(&found)?[0]), numbers(&gradients(&plain)?[0]));
        let before = numbers(&x);
        overwrite(&found.detach());
        assert_eq!(numbers(&x), before);
    }
    Ok(())
}

#[test]
fn a_checkpoint_that_forgets_its_input_sends_it_nothing() -> Result<()> {
    let x = leaf(&[1.0, 2.0]);
    checkpoint(&[&x], &[], |inputs| Ok(inputs[0].detach() * 2.0))?.sum(Kind::Double).f_backward()?;
    assert!(!x.grad().defined());
    Ok(())
}

#[test]
fn a_checkpoint_computes_from_what_it_was_given() -> Result<()> {
    for (changed, name) in [(0, "input of a checkpoint"), (1, "parameter of a checkpoint")] {
        let tensors = [leaf(&[1.0, 2.0]), leaf(&[3.0, 4.0])];
        let inside = tensors[1].shallow_clone();
        let y = checkpoint(&[&tensors[0]], &[&tensors[1]], move |inputs| Ok(&inputs[0] * &inside))?;
        overwrite(&tensors[changed]);
        let said = failure(&y);
        assert!(said.contains(&format!("{name} was written to in place between")), "{said}");
    }
    let refused = checkpoint(&[&leaf(&[1.0])], &[], |_| Err(Error::NothingObserved)).expect_err("what f says");
    assert!(matches!(refused, Error::NothingObserved));
    Ok(())
}

/// The second run records a graph of its own: whether the thread does so must not depend on how that run ended.
#[test]
fn a_panic_in_a_checkpoint_leaves_recording_as_it_was() -> Result<()> {
    for guarded in [false, true] {
        let (x, runs) = (leaf(&[1.0, 2.0]), AtomicUsize::new(0));
        let y = checkpoint(&[&x], &[], move |inputs| {
            assert!(runs.fetch_add(1, Ordering::Relaxed) == 0, "out of ideas");
            Ok(inputs[0].exp())
        })?;
        let loss = y.sum(Kind::Double);
        let guard = guarded.then(no_grad_guard);
        let said = loss.f_backward().expect_err("the second run panics").to_string();
        assert!(said.contains("panic in a backward closure: out of ideas"), "{said}");
        assert_eq!(recording(), !guarded);
        drop(guard);
        assert!(recording());
    }
    Ok(())
}

/// Resident memory in bytes, where the system tells.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| 4096 * pages)
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    const WARM_UP: usize = 1000;
    if !alone("autograd::nothing_is_left_behind") {
        return Ok(());
    }
    let (x, counted) = (leaf(&[1.0; 64]), Arc::new(()));
    let mut warm = None;
    for i in 0..WARM_UP + 10_000 {
        if i == WARM_UP {
            warm = resident();
        }
        let held = Arc::clone(&counted);
        let y = copied(&x, move |cotangent, _| {
            let _held = &held;
            assert!(i % 1000 != 500, "once in a thousand");
            if i % 10 == 3 { Err(Error::NothingObserved) } else { Ok(vec![Some(cotangent * 2.0)]) }
        })?;
        let loss = y.sum(Kind::Double);
        // One in ten goes without a backward pass.
        if i % 10 != 7 {
            assert_eq!(loss.f_backward().is_err(), i % 10 == 3 || i % 1000 == 500, "iteration {i}");
        }
    }
    assert_eq!(Arc::strong_count(&counted), 1, "closures are alive");
    match warm.zip(resident()) {
        Some((warm, now)) => assert!(now < warm + (8 << 20), "{} kB more", (now - warm) / 1024),
        None => eprintln!("skipped: no /proc/self/statm"),
    }
    Ok(())
}
