//! Operations whose backward pass is a Rust closure, vector–Jacobian products, and activation checkpointing.
//!
//! libtorch differentiates what its own operations compute. Where a better backward is known by hand (it needs less memory, or less
//! work), compute the output without a graph and say what the gradient is:
//!
//! ```
//! # fn main() -> prefopt::Result<()> {
//! use prefopt::{Result, autograd::{Saved, custom}, tch::{Kind, Tensor, no_grad_guard}};
//!
//! /// log(1 + e^x), whose slope is σ(x): one saved tensor.
//! fn softplus(x: &Tensor) -> Result<Tensor> {
//!     let output = {
//!         let _no_grad = no_grad_guard();
//!         -(-x).log_sigmoid()
//!     };
//!     let saved = Saved::new("x", x);
//!     custom(&[x], output, move |cotangent, wanted| {
//!         Ok(vec![if wanted.get(0) { Some(cotangent * saved.get()?.sigmoid()) } else { None }])
//!     })
//! }
//!
//! let x = Tensor::from_slice(&[0.0, 1.0]).set_requires_grad(true);
//! (softplus(&x)? * 2.0).sum(Kind::Double).backward();
//! assert!((x.grad().double_value(&[0]) - 1.0).abs() < 1e-12);
//! # Ok(()) }
//! ```
//!
//! An error that the closure returns, and a panic in it, end the backward pass: `f_backward` and the trainers return it as
//! [`Error::Torch`] with the message. On CUDA the closure runs on libtorch's backward thread of that device.
#![allow(unsafe_code)]

use std::{
    any::Any,
    ffi::{CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use tch::Tensor;

use crate::{
    Error, Result,
    native::{self, Handle},
};

/// Which inputs' gradients a backward pass asks for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a>(&'a [u8]);

impl Wanted<'_> {
    /// Whether the gradient of this input, counted from 0, will be used. False for an index beyond the inputs.
    #[must_use]
    pub fn get(self, input: usize) -> bool {
        self.0.get(input).is_some_and(|&wanted| wanted != 0)
    }
}

type Closure = dyn FnMut(&[Option<Tensor>], Wanted) -> Result<Vec<Option<Tensor>>> + Send;

/// One allocation on the C++ side's account; the mutex serves two backward passes over one kept graph at once.
struct Context(Mutex<Box<Closure>>);

/// Makes `output`, computed without a graph, a function of `inputs` whose backward pass is a closure.
///
/// The closure gets the cotangent ∂L/∂output and says ∂L/∂input for each input, `None` where there is none or it is not
/// [`Wanted`]. It runs without a graph, once for each backward pass, and is freed after the first unless the graph is kept. What it
/// needs of its inputs it keeps itself, in [`Saved`]. A gradient that it has handed out is no longer its own: clipping scales it in place. Outside a graph (under a no-grad guard, or when no input requires a gradient) the
/// output is returned as it is and the closure is dropped at once.
///
/// # Errors
/// [`Torch`](Error::Torch) when the output has a graph of its own, is a view, or shares its memory with an input. The backward pass fails
/// with a message when the closure does, when its graph has been freed, under `create_graph`, or when a gradient does not fit its input.
/// (libtorch sums one that broadcasts from the input's shape.)
pub fn custom<F>(inputs: &[&Tensor], output: Tensor, mut backward: F) -> Result<Tensor>
where
    F: FnMut(&Tensor, Wanted) -> Result<Vec<Option<Tensor>>> + Send + 'static,
{
    let none = inputs.len();
    let outputs = custom_many(inputs, vec![output], move |cotangents, wanted| match &cotangents[0] {
        Some(cotangent) => backward(cotangent, wanted),
        None => Ok((0..none).map(|_| None).collect()),
    })?;
    Ok(outputs.into_iter().next().expect("one output in, one out"))
}

/// [`custom`] for several outputs: the closure gets a cotangent for each, `None` where the loss does not depend on it.
///
/// # Errors
/// As [`custom`].
pub fn custom_many<F>(inputs: &[&Tensor], outputs: Vec<Tensor>, backward: F) -> Result<Vec<Tensor>>
where
    F: FnMut(&[Option<Tensor>], Wanted) -> Result<Vec<Option<Tensor>>> + Send + 'static,
{
    let context = Box::new(Context(Mutex::new(Box::new(backward))));
    // SAFETY: `call` and `release` take the address of a `Context`, whose closure is `Send` and behind a mutex.
    unsafe { native::attach(inputs, &outputs, Box::into_raw(context).cast(), call, release) }?;
    Ok(outputs)
}

extern "C" fn call(
    context: *mut c_void,
    cotangents: *const Handle,
    n: c_int,
    wanted: *const u8,
    gradients: *mut Handle,
    m: c_int,
) -> *mut c_char {
    let run = || -> std::result::Result<(), String> {
        // SAFETY: the address is that of `custom_many`, alive until `release`, and the lists are as long as the caller says.
        let (context, cotangents, wanted, gradients) = unsafe {
            (
                &*context.cast::<Context>(),
                std::slice::from_raw_parts(cotangents, n as usize),
                std::slice::from_raw_parts(wanted, m as usize),
                std::slice::from_raw_parts_mut(gradients, m as usize),
            )
        };
        // SAFETY: the engine keeps the cotangents alive during the call.
        let cotangents: Vec<_> = cotangents.iter().map(|&c| unsafe { native::borrow(c) }).collect();
        // A panic in an earlier pass has been reported there.
        let mut closure = context.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = closure(&cotangents, Wanted(wanted)).map_err(|error| error.to_string())?;
        if found.len() != gradients.len() {
            return Err(format!("a backward closure gave {} gradients for {} inputs", found.len(), gradients.len()));
        }
        for (slot, gradient) in gradients.iter_mut().zip(found) {
            *slot = gradient.map_or(std::ptr::null_mut(), native::give);
        }
        Ok(())
    };
    let message = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(message)) => message,
        Err(panic) => format!("panic in a backward closure: {}", said(panic.as_ref())),
    };
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: copies a C string into memory that the other side frees with `free`.
    unsafe { strdup(message.as_ptr()) }
}

extern "C" fn release(context: *mut c_void) {
    // A panic must not cross into C++; what a closure's captures do when dropped is theirs.
    let _ = catch_unwind(|| {
        // SAFETY: the address is that of `custom_many`, given back once.
        drop(unsafe { Box::from_raw(context.cast::<Context>()) });
    });
}

unsafe extern "C" {
    fn strdup(text: *const c_char) -> *mut c_char;
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// A tensor kept for a backward pass, without its graph, and refused if it was written to in place since.
#[derive(Debug)]
pub struct Saved {
    name: &'static str,
    tensor: Tensor,
    version: i64,
}

impl Saved {
    /// Keeps a tensor under the name by which a refusal calls it.
    #[must_use]
    pub fn new(name: &'static str, tensor: &Tensor) -> Self {
        Self { name, tensor: tensor.detach(), version: native::version(tensor) }
    }

    /// The tensor.
    ///
    /// # Errors
    /// [`Modified`](Error::Modified) when it is no longer what was kept: an optimiser stepped before the backward pass, say.
    pub fn get(&self) -> Result<&Tensor> {
        // `detach` shares the version of what it was made from.
        if native::version(&self.tensor) == self.version {
            Ok(&self.tensor)
        } else {
            Err(Error::Modified { tensor: self.name })
        }
    }
}

/// Vector–Jacobian product: ∂/∂input of Σ outputs·cotangents for each input, `None` where the outputs do not depend on it.
///
/// tch's own `run_backward` starts from ones only. Nothing is added to any tensor's `grad`; the graph is freed.
///
/// # Errors
/// [`Length`](Error::Length) unless there is a cotangent for each output; [`Torch`](Error::Torch) from the pass.
pub fn vjp(outputs: &[Tensor], cotangents: &[Tensor], inputs: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    let (expected, found) = (outputs.len() as i64, cotangents.len() as i64);
    if expected != found {
        return Err(Error::Length { tensor: "cotangents", shape: "[outputs]", dimension: "outputs", expected, found });
    }
    native::vjp(outputs, cotangents, inputs, false)
}

/// Runs `f` on `inputs` without keeping what its backward pass needs, and again when that pass comes: less memory for about a third
/// more time.
///
/// `parameters` are the tensors other than the inputs whose gradients flow through `f`, such as a layer's weights, of which `f` holds its
/// own shallow clones; one that is left out gets no gradient. `f` must give the same both times (no dropout, no running
/// statistics) and leave its inputs as they are.
///
/// ```
/// # fn main() -> prefopt::Result<()> {
/// use prefopt::{autograd::checkpoint, tch::{Device, Kind, Tensor, nn::{self, Module}}};
///
/// let variables = nn::VarStore::new(Device::Cpu);
/// let layer = nn::linear(variables.root(), 4, 4, Default::default());
/// let (x, weights) = (Tensor::ones([2, 4], (Kind::Float, Device::Cpu)), [layer.ws.shallow_clone(), layer.bs.as_ref().unwrap().shallow_clone()]);
/// let y = checkpoint(&[&x], &[&weights[0], &weights[1]], move |inputs| Ok(layer.forward(&inputs[0]).tanh()))?;
/// y.sum(Kind::Float).backward();
/// assert_eq!(weights[0].grad().size(), [4, 4]);
/// # Ok(()) }
/// ```
///
/// Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
///
/// # Errors
/// Those of `f`, and as [`custom`].
pub fn checkpoint<F>(inputs: &[&Tensor], parameters: &[&Tensor], f: F) -> Result<Tensor>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
{
    let output = {
        let _no_grad = tch::no_grad_guard();
        let given: Vec<_> = inputs.iter().map(|input| input.detach()).collect();
        let output = f(&given)?;
        // A tensor that shares its memory with another cannot be given a history of its own.
        let alias = |other: &Tensor| other.data_ptr() == output.data_ptr();
        let shared = native::is_view(&output) || given.iter().any(alias) || parameters.iter().any(|p| alias(p));
        if shared { output.copy() } else { output }
    };
    let saved: Vec<_> =
        inputs.iter().map(|input| (Saved::new("input of a checkpoint", input), input.requires_grad())).collect();
    let weights: Vec<_> =
        parameters.iter().map(|p| (Saved::new("parameter of a checkpoint", p), p.shallow_clone())).collect();
    let all: Vec<&Tensor> = inputs.iter().chain(parameters).copied().collect();
    custom(&all, output, move |cotangent, wanted| {
        let recorded = GradMode::enabled();
        let mut given = Vec::with_capacity(saved.len());
        for (saved, requires_grad) in &saved {
            given.push(saved.get()?.detach().set_requires_grad(*requires_grad));
        }
        for (saved, _) in &weights {
            saved.get()?;
        }
        let output = f(&given)?;
        drop(recorded);
        let sources: Vec<&Tensor> = given.iter().chain(weights.iter().map(|(_, weight)| weight)).collect();
        let asked: Vec<usize> = (0..sources.len()).filter(|&i| wanted.get(i) && sources[i].requires_grad()).collect();
        let inputs: Vec<&Tensor> = asked.iter().map(|&i| sources[i]).collect();
        let found = match output.requires_grad() {
            true => vjp(&[output], &[cotangent.shallow_clone()], &inputs)?,
            false => Vec::new(),
        };
        let mut gradients: Vec<Option<Tensor>> = sources.iter().map(|_| None).collect();
        for (i, gradient) in asked.into_iter().zip(found) {
            gradients[i] = gradient;
        }
        Ok(gradients)
    })
}

/// Whether operations on this thread are recorded for a backward pass.
pub(crate) fn recording() -> bool {
    GradMode::enabled().0
}

/// Recording of a graph on this thread, put back as it was also by a panic.
struct GradMode(bool);

impl GradMode {
    fn enabled() -> Self {
        // SAFETY: sets a flag of this thread.
        Self(unsafe { torch_sys::at_grad_set_enabled(1) } != 0)
    }
}

impl Drop for GradMode {
    fn drop(&mut self) {
        // SAFETY: sets a flag of this thread.
        unsafe { torch_sys::at_grad_set_enabled(c_int::from(self.0)) };
    }
}
