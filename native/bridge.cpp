// What libtorch has and tch does not bind. Every function returns null, or a message that the caller frees with `free`.
//
// A handle is a pointer to an at::Tensor, as in torch-sys; a handle written to a `result` belongs to the caller.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using torch::autograd::variable_list;
using Handle = at::Tensor *;

namespace {

template <class F> char *guarded(F f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error &e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("a C++ exception of unknown type");
  }
}

std::vector<at::Tensor> tensors(const Handle *handles, int n) {
  std::vector<at::Tensor> list;
  list.reserve(n);
  for (int i = 0; i < n; i++) list.push_back(*handles[i]);
  return list;
}

Handle owned(at::Tensor tensor) { return tensor.defined() ? new at::Tensor(std::move(tensor)) : nullptr; }

// cotangents[n] (null where undefined), wanted[m], gradients[m] to be filled (null for none).
using Call = char *(*)(void *closure, const Handle *cotangents, int n, const uint8_t *wanted, Handle *gradients, int m);
using Drop = void (*)(void *closure);

struct ClosureBackward : torch::autograd::Node {
  std::shared_ptr<void> closure;
  Call call;
  int inputs;

  ClosureBackward(std::shared_ptr<void> closure, Call call, int inputs)
      : closure(std::move(closure)), call(call), inputs(inputs) {}

  std::string name() const override { return "ClosureBackward"; }

  // The engine calls this after `apply` unless the graph is kept.
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    closure.reset();
  }

  variable_list apply(variable_list &&cotangents) override {
    std::shared_ptr<void> held;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      held = closure;
    }
    if (!held)
      throw std::runtime_error("backward a second time through a closure whose graph has been freed: keep the graph the first time");
    if (at::GradMode::is_enabled())
      throw std::runtime_error("a closure's backward cannot itself be differentiated (create_graph)");
    std::vector<Handle> given;
    for (auto &c : cotangents) given.push_back(c.defined() ? &c : nullptr);
    std::vector<uint8_t> wanted(inputs);
    for (int i = 0; i < inputs; i++) wanted[i] = task_should_compute_output(i);
    std::vector<Handle> gradients(inputs, nullptr);
    char *error = call(held.get(), given.data(), static_cast<int>(given.size()), wanted.data(), gradients.data(), inputs);
    variable_list result;
    for (Handle gradient : gradients) {
      result.push_back(gradient ? std::move(*gradient) : at::Tensor());
      delete gradient;
    }
    if (error) {
      std::string message(error);
      std::free(error);
      throw std::runtime_error(message);
    }
    return result;
  }
};

} // namespace

extern "C" {

// Makes `outputs` functions of `inputs` whose backward is `call(closure, …)`. Takes the closure over in every case: `drop` frees it.
char *pf_attach(const Handle *inputs, int n_in, const Handle *outputs, int n_out, void *closure, Call call, Drop drop) {
  std::shared_ptr<void> owner(closure, drop);
  return guarded([&] {
    auto sources = tensors(inputs, n_in);
    bool needed = false;
    for (auto &source : sources) needed |= source.requires_grad();
    if (!needed || !at::GradMode::is_enabled()) return;
    for (int i = 0; i < n_out; i++) {
      if (outputs[i]->requires_grad() || outputs[i]->is_view())
        throw std::runtime_error("output " + std::to_string(i) + " of a closure's forward has a history of its own or is a view");
      for (auto &source : sources)
        if (source.is_alias_of(*outputs[i]))
          throw std::runtime_error("output " + std::to_string(i) + " of a closure's forward shares its memory with an input");
    }
    auto node = c10::make_intrusive<ClosureBackward>(owner, call, n_in);
    node->set_next_edges(torch::autograd::collect_next_edges(sources));
    for (int i = 0; i < n_out; i++) torch::autograd::set_history(*outputs[i], node);
  });
}

// Vector–Jacobian product: the gradients of Σ outputs·cotangents with respect to `inputs`; null where an input is not reached.
char *pf_vjp(const Handle *outputs, int n_out, const Handle *cotangents, const Handle *inputs, int n_in, int keep_graph,
             Handle *result) {
  return guarded([&] {
    // The engine takes what has no graph for what cannot be, and an empty list of inputs for all leaves.
    torch::autograd::edge_list roots, leaves;
    variable_list weights;
    std::vector<int> asked;
    for (int i = 0; i < n_out; i++)
      if (outputs[i]->requires_grad()) {
        roots.push_back(torch::autograd::impl::gradient_edge(*outputs[i]));
        weights.push_back(*cotangents[i]);
      }
    for (int i = 0; i < n_in; i++)
      if (inputs[i]->requires_grad()) {
        leaves.push_back(torch::autograd::impl::gradient_edge(*inputs[i]));
        asked.push_back(i);
      }
    if (roots.empty() || leaves.empty()) return;
    auto &engine = torch::autograd::Engine::get_default_engine();
    auto gradients = engine.execute(roots, weights, keep_graph, false, false, leaves);
    for (size_t i = 0; i < asked.size(); i++) result[asked[i]] = owned(std::move(gradients[i]));
  });
}

// How often the tensor was written to in place.
int64_t pf_version(Handle tensor) {
  try {
    return tensor->_version();
  } catch (...) {
    // Made in inference mode, where writing is not counted.
    return -1;
  }
}

int pf_is_view(Handle tensor) { return tensor->defined() && tensor->is_view(); }

// One AdamW step over a list of one device and kind; `steps` (0-dim, f32) count up by one. Gradients are multiplied by `scale` in place.
char *pf_fused_adamw(int n, const Handle *parameters, const Handle *gradients, const Handle *first, const Handle *second,
                     const Handle *steps, double rate, double beta1, double beta2, double decay, double epsilon, double scale) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto counts = tensors(steps, n), slopes = tensors(gradients, n);
    for (auto &slope : slopes) TORCH_CHECK(!slope.is_sparse(), "AdamW takes dense gradients, and one is sparse");
    at::_foreach_add_(counts, 1);
    std::optional<at::Tensor> inverse;
    if (scale != 1) {
      // The kernel scales on its way, but by a number in f32.
      if (slopes.front().scalar_type() == at::kDouble) at::_foreach_mul_(slopes, scale);
      else inverse = at::full({}, 1 / scale, slopes.front().options().dtype(at::kFloat));
    }
    at::_fused_adamw_(tensors(parameters, n), slopes, tensors(first, n), tensors(second, n), {}, counts, rate, beta1, beta2, decay,
                      epsilon, false, false, inverse, std::nullopt);
  });
}

// The Euclidean norm of each tensor, stacked, f64. Half-precision tensors are summed in f32: a norm of eight bits clips wrongly.
char *pf_norms(int n, const Handle *list, Handle *result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> wide, half, norms;
    for (auto &tensor : tensors(list, n)) {
      bool narrow = tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
      (narrow ? half : wide).push_back(tensor);
    }
    if (!wide.empty()) norms = at::_foreach_norm(wide, 2);
    if (!half.empty())
      for (auto &norm : at::_foreach_norm(half, 2, at::kFloat)) norms.push_back(norm);
    for (auto &norm : norms) norm = norm.to(list[0]->device(), at::kDouble);
    *result = owned(at::stack(norms));
  });
}

// out = beta·self + alpha·a·b, matrices; `self` may be `out`.
char *pf_addmm_out(Handle out, Handle self, Handle a, Handle b, double beta, double alpha) {
  return guarded([&] { at::addmm_out(*out, *self, *a, *b, beta, alpha); });
}

// The same for batches of matrices.
char *pf_baddbmm_out(Handle out, Handle self, Handle a, Handle b, double beta, double alpha) {
  return guarded([&] { at::baddbmm_out(*out, *self, *a, *b, beta, alpha); });
}

// Lets oneDNN take f32 products on the CPU (1) or leaves them to libtorch's default (0). Other devices are not touched.
char *pf_set_onednn_products(int on) {
  return guarded([&] {
    at::globalContext().setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL,
                                            on ? at::Float32Precision::BF16 : at::Float32Precision::NONE);
  });
}

int pf_onednn_products() {
  return at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL) == at::Float32Precision::BF16;
}
}
