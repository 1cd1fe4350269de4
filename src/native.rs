//! Safe faces of the functions in `native/`, each checked for what the C++ side takes for granted.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::{Device, Kind, TchError, Tensor};

use crate::Result;

pub(crate) type Handle = *mut torch_sys::C_tensor;
pub(crate) type Call = extern "C" fn(*mut c_void, *const Handle, c_int, *const u8, *mut Handle, c_int) -> *mut c_char;
pub(crate) type Drop = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn pf_attach(
        inputs: *const Handle,
        n_in: c_int,
        outputs: *const Handle,
        n_out: c_int,
        closure: *mut c_void,
        call: Call,
        drop: Drop,
    ) -> *mut c_char;
    fn pf_vjp(
        outputs: *const Handle,
        n_out: c_int,
        cotangents: *const Handle,
        inputs: *const Handle,
        n_in: c_int,
        keep_graph: c_int,
        result: *mut Handle,
    ) -> *mut c_char;
    fn pf_version(tensor: Handle) -> i64;
    fn pf_is_view(tensor: Handle) -> c_int;
    fn pf_fused_adamw(
        n: c_int,
        parameters: *const Handle,
        gradients: *const Handle,
        first: *const Handle,
        second: *const Handle,
        steps: *const Handle,
        rate: f64,
        beta1: f64,
        beta2: f64,
        decay: f64,
        epsilon: f64,
        scale: f64,
    ) -> *mut c_char;
    fn pf_norms(n: c_int, list: *const Handle, result: *mut Handle) -> *mut c_char;
    fn pf_addmm_out(out: Handle, this: Handle, a: Handle, b: Handle, beta: f64, alpha: f64) -> *mut c_char;
    fn pf_baddbmm_out(out: Handle, this: Handle, a: Handle, b: Handle, beta: f64, alpha: f64) -> *mut c_char;
    fn pf_set_onednn_products(on: c_int) -> *mut c_char;
    fn pf_onednn_products() -> c_int;
    fn pf_absorb(
        x: *mut f32,
        rows: i64,
        columns: i64,
        start: i64,
        targets: *const i64,
        max: *mut f32,
        sum: *mut f32,
        moment: *mut f32,
        target: *mut f32,
        correction: *mut f32,
    ) -> c_int;
    fn pf_slope(
        x: *mut f32,
        rows: i64,
        columns: i64,
        start: i64,
        targets: *const i64,
        max: *const f32,
        log_sum: *const f32,
        cotangent: *const f32,
    ) -> c_int;
    fn pf_nearest(a: *const f32, b: *const f32, t: *const f32, w: *const f32, rows: i64, columns: i64) -> i64;
    fn free(pointer: *mut c_void);
}

/// The message of a refusal, as an error.
fn check(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message that is not null is a C string from strdup, and ours.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    unsafe { free(message.cast()) };
    // What follows is where in libtorch's sources it was raised.
    let text = text.split("\nException raised from").next().unwrap_or_default().to_owned();
    Err(TchError::Torch(text).into())
}

fn handle(tensor: &Tensor) -> Handle {
    tensor.as_ptr().cast_mut()
}

fn handles<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<Handle> {
    tensors.into_iter().map(handle).collect()
}

/// The length of a list, as C counts.
fn count<T>(list: &[T]) -> c_int {
    c_int::try_from(list.len()).expect("fewer than 2³¹ tensors")
}

/// Takes over a handle that the C++ side has given away; null is `None`.
///
/// # Safety
/// The handle is one that bridge.cpp's `owned` has made, and nobody else's.
unsafe fn take(handle: Handle) -> Option<Tensor> {
    // SAFETY: by this function's contract.
    (!handle.is_null()).then(|| unsafe { Tensor::from_ptr(handle) })
}

/// Another handle to a tensor that the C++ side keeps; null is `None`.
///
/// # Safety
/// The handle is null or that of a living tensor.
pub(crate) unsafe fn borrow(handle: Handle) -> Option<Tensor> {
    // SAFETY: by this function's contract; the copy counts for itself.
    (!handle.is_null()).then(|| unsafe { Tensor::clone_from_ptr(handle) })
}

/// Gives a tensor away to the C++ side.
pub(crate) fn give(tensor: Tensor) -> Handle {
    let mut tensor = std::mem::ManuallyDrop::new(tensor);
    tensor.as_mut_ptr()
}

/// Makes `outputs` functions of `inputs`; `closure` is given away in every case, and freed by `drop`.
///
/// # Safety
/// `call` and `drop` fit `closure`, which may be used and freed on any thread.
pub(crate) unsafe fn attach(
    inputs: &[&Tensor],
    outputs: &[Tensor],
    closure: *mut c_void,
    call: Call,
    drop: Drop,
) -> Result<()> {
    let (inputs, outputs) = (handles(inputs.iter().copied()), handles(outputs));
    // SAFETY: the handles live through the call; the rest is this function's contract.
    check(unsafe { pf_attach(inputs.as_ptr(), count(&inputs), outputs.as_ptr(), count(&outputs), closure, call, drop) })
}

pub(crate) fn vjp(
    outputs: &[Tensor],
    cotangents: &[Tensor],
    inputs: &[&Tensor],
    keep_graph: bool,
) -> Result<Vec<Option<Tensor>>> {
    assert_eq!(outputs.len(), cotangents.len(), "one cotangent for each output");
    let (outputs, cotangents, inputs) = (handles(outputs), handles(cotangents), handles(inputs.iter().copied()));
    let mut result = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: the lists are as long as said, and the handles live through the call.
    check(unsafe {
        pf_vjp(
            outputs.as_ptr(),
            count(&outputs),
            cotangents.as_ptr(),
            inputs.as_ptr(),
            count(&inputs),
            c_int::from(keep_graph),
            result.as_mut_ptr(),
        )
    })?;
    // SAFETY: `pf_vjp` has made each of them for us.
    Ok(result.into_iter().map(|handle| unsafe { take(handle) }).collect())
}

pub(crate) fn version(tensor: &Tensor) -> i64 {
    // SAFETY: the tensor is alive.
    unsafe { pf_version(handle(tensor)) }
}

pub(crate) fn is_view(tensor: &Tensor) -> bool {
    // SAFETY: the tensor is alive.
    unsafe { pf_is_view(handle(tensor)) != 0 }
}

/// Numbers of one AdamW step.
pub(crate) struct AdamWStep {
    pub rate: f64,
    pub betas: (f64, f64),
    pub decay: f64,
    pub epsilon: f64,
    /// What gradients are multiplied by first, in place.
    pub scale: f64,
}

/// Lists of equal length, device and kind, and not empty: parameters, gradients, first moments, second moments; and step counts.
pub(crate) fn fused_adamw(lists: [&[&Tensor]; 5], step: &AdamWStep) -> Result<()> {
    assert!(lists.iter().all(|list| list.len() == lists[0].len()), "lists of one length");
    let [parameters, gradients, first, second, steps] = lists.map(|list| handles(list.iter().copied()));
    // SAFETY: the lists are of one length, and the handles live through the call.
    check(unsafe {
        pf_fused_adamw(
            count(&parameters),
            parameters.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            steps.as_ptr(),
            step.rate,
            step.betas.0,
            step.betas.1,
            step.decay,
            step.epsilon,
            step.scale,
        )
    })
}

/// Euclidean norm of each of one or more tensors, `[tensors]`, f64.
pub(crate) fn norms(tensors: &[&Tensor]) -> Result<Tensor> {
    let (list, mut result) = (handles(tensors.iter().copied()), std::ptr::null_mut());
    // SAFETY: the list is as long as said, and its handles live through the call.
    check(unsafe { pf_norms(count(&list), list.as_ptr(), &raw mut result) })?;
    // SAFETY: `pf_norms` has made it for us.
    Ok(unsafe { take(result) }.expect("a norm of something"))
}

/// out ← beta·this + alpha·a·b for matrices. `this` may be `out`.
pub(crate) fn addmm_out(out: &Tensor, this: &Tensor, a: &Tensor, b: &Tensor, beta: f64, alpha: f64) -> Result<()> {
    // SAFETY: the tensors are alive.
    check(unsafe { pf_addmm_out(handle(out), handle(this), handle(a), handle(b), beta, alpha) })
}

/// out ← beta·this + alpha·a·b for batches of matrices. `this` may be `out`.
pub(crate) fn baddbmm_out(out: &Tensor, this: &Tensor, a: &Tensor, b: &Tensor, beta: f64, alpha: f64) -> Result<()> {
    // SAFETY: the tensors are alive.
    check(unsafe { pf_baddbmm_out(handle(out), handle(this), handle(a), handle(b), beta, alpha) })
}

pub(crate) fn set_onednn_products(on: bool) -> Result<()> {
    // SAFETY: sets a number.
    check(unsafe { pf_set_onednn_products(c_int::from(on)) })
}

pub(crate) fn onednn_products() -> bool {
    // SAFETY: reads a number.
    unsafe { pf_onednn_products() != 0 }
}

/// The address of a contiguous f32 tensor's numbers on the CPU.
fn floats(tensor: &Tensor, numel: i64) -> *mut f32 {
    assert!(
        tensor.kind() == Kind::Float
            && tensor.device() == Device::Cpu
            && tensor.is_contiguous()
            && tensor.numel() as i64 == numel,
        "a contiguous tensor of {numel} f32 on the CPU"
    );
    tensor.data_ptr().cast()
}

fn integers(tensor: &Tensor, numel: i64) -> *const i64 {
    assert!(
        tensor.kind() == Kind::Int64
            && tensor.device() == Device::Cpu
            && tensor.is_contiguous()
            && tensor.numel() as i64 == numel,
        "a contiguous tensor of {numel} integers on the CPU"
    );
    tensor.data_ptr().cast_const().cast()
}

fn code(code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(TchError::Torch("libtorch's threads refused a kernel".to_owned()).into()) }
}

/// What a tile of logits is taken into, `[rows]` each.
pub(crate) struct Running<'a> {
    pub max: &'a Tensor,
    pub sum: &'a Tensor,
    pub moment: Option<&'a Tensor>,
    pub target: &'a Tensor,
}

/// See `pf_absorb` in kernels.cpp.
pub(crate) fn absorb(
    tile: &Tensor,
    start: i64,
    targets: &Tensor,
    into: &Running,
    correction: Option<&Tensor>,
) -> Result<()> {
    let (rows, columns) = (tile.size()[0], tile.size()[1]);
    let optional = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null_mut(), |t| floats(t, rows));
    // SAFETY: every address was checked to hold as many numbers as the kernel reads or writes.
    code(unsafe {
        pf_absorb(
            floats(tile, rows * columns),
            rows,
            columns,
            start,
            integers(targets, rows),
            floats(into.max, rows),
            floats(into.sum, rows),
            optional(into.moment),
            floats(into.target, rows),
            optional(correction),
        )
    })
}

/// See `pf_slope` in kernels.cpp.
pub(crate) fn slope(
    tile: &Tensor,
    start: i64,
    targets: &Tensor,
    [max, log_sum]: [&Tensor; 2],
    cotangent: &Tensor,
) -> Result<()> {
    let (rows, columns) = (tile.size()[0], tile.size()[1]);
    // SAFETY: as in `absorb`.
    code(unsafe {
        pf_slope(
            floats(tile, rows * columns),
            rows,
            columns,
            start,
            integers(targets, rows),
            floats(max, rows),
            floats(log_sum, rows),
            floats(cotangent, rows),
        )
    })
}

/// Where the kernels work.
pub(crate) fn has_kernel(kind: Kind, device: Device) -> bool {
    kind == Kind::Float && device == Device::Cpu
}

/// See `pf_nearest` in kernels.cpp. `a` and `b` `[rows, columns]`, `t` and `weights` `[columns]`.
pub(crate) fn nearest(a: &Tensor, b: &Tensor, t: &Tensor, weights: Option<&Tensor>) -> i64 {
    let (rows, columns) = (a.size()[0], a.size()[1]);
    let [a, b, t] = [a, b, t].map(Tensor::contiguous);
    let weights = weights.map(Tensor::contiguous);
    let optional = weights.as_ref().map_or(std::ptr::null_mut(), |w| floats(w, columns));
    // SAFETY: as in `absorb`.
    unsafe {
        let (a, b) = (floats(&a, rows * columns), floats(&b, rows * columns));
        pf_nearest(a, b, floats(&t, columns), optional, rows, columns)
    }
}
