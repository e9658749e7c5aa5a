#include <ATen/ops/add.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include "call.h"

// Derivatives of conv and conv_backward, of any order: each is written with the two ops again.
//
// The convolution y = W * x + b is bilinear. With gradients g of y:   grad_x = Bx(g, W), grad_W = Bw(g, x), grad_b =
// sum g and these are bilinear too, so that a tangent or a second derivative is the same ops on other pairs.
namespace torch_ext::ops {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::IValuePacker;
using torch::dynamo::autograd::PackedArgs;
using torch::dynamo::autograd::SwapSavedVariables;

// Nodes are held by intrusive_ptr since torch 2.14, by shared_ptr with a deleter of its own before.
template <class N>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, N>) {
    return c10::make_intrusive<N>();
  } else {
    return std::shared_ptr<N>(new N, [](auto* node) { deleteNode(node); });
  }
}

struct Numbers {
  std::vector<c10::SymInt> stride, padding, dilation;
  c10::SymInt groups;
};

Tensor conv(const Tensor& input, const Tensor& weight, const Tensor& bias, const Numbers& n) {
  return ops::conv(input, weight, bias.defined() ? std::optional(bias) : std::nullopt, n.stride, n.padding, n.dilation,
                   n.groups);
}

Gradients conv_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Numbers& n,
                        Mask mask) {
  return ops::conv_backward(grad_output, input, weight, n.stride, n.padding, n.dilation, n.groups, mask);
}

Tensor sum(const Tensor& a, const Tensor& b) {
  if (!a.defined()) return b;
  if (!b.defined()) return a;
  return at::add(a, b);
}

// A bias [O] as a tensor like the output [N, O, *].
Tensor expand_bias(const Tensor& bias, const Tensor& output) {
  std::vector<int64_t> per_channel(output.dim() - 1, 1);
  per_channel[0] = -1;
  return bias.view(per_channel).expand_as(output);
}

// What both nodes have in common: saved tensors, the numbers of the convolution, and being a pure function of these and
// of the incoming gradients (Derivative::gradients), which is what compiled autograd traces.
template <class Derivative>
struct ConvNode : Node {
  std::vector<SavedVariable> saved;
  Numbers numbers;

  std::string name() const override { return Derivative::name; }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return Derivative::gradients(grads, unpack(), numbers, wanted());
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(saved, /*is_output=*/false);
    args.collect(numbers.stride);
    args.collect(numbers.padding);
    args.collect(numbers.dilation);
    args.collect(numbers.groups);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    const auto for_each = [&](const auto& visit) {
      visit(saved);
      visit(numbers.stride);
      visit(numbers.padding);
      visit(numbers.dilation);
      visit(numbers.groups);
    };
    for_each([&](auto& value) { swap.before(value); });
    PackedArgs args;
    std::vector<at::TypePtr> schema;
    const auto pack = [&]<class T>(const T& value) {
      args.pack(value);
      schema.push_back(IValuePacker<T>::packed_type());
    };
    pack(unpack());
    pack(numbers.stride);
    pack(numbers.padding);
    pack(numbers.dilation);
    pack(numbers.groups);
    pack(wanted());

    const auto edges = torch::dynamo::autograd::get_input_metadata(next_edges());
    const auto metadata = IValuePacker<std::decay_t<decltype(edges)>>::pack(edges);
    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    const auto bound = compiler->bind_function(swap.get_py_compiler(), name(), apply_packed, schema,
                                               /*is_custom_function=*/true, /*is_traceable=*/true);
    auto result =
        compiler->call_function(swap.get_py_compiler(), "apply_functional", bound, grads, args.vec(), metadata);
    for_each([&](auto& value) { swap.after(value); });
    return result;
  }

 private:
  static variable_list apply_packed(const variable_list& grads, const std::vector<at::IValue>& values) {
    PackedArgs args(values);
    const auto tensors = args.unpack<variable_list>();
    Numbers numbers;
    numbers.stride = args.unpack<std::vector<c10::SymInt>>();
    numbers.padding = args.unpack<std::vector<c10::SymInt>>();
    numbers.dilation = args.unpack<std::vector<c10::SymInt>>();
    numbers.groups = args.unpack<c10::SymInt>();
    return Derivative::gradients(grads, tensors, numbers, args.unpack<std::vector<bool>>());
  }

  variable_list unpack() const {
    variable_list tensors;
    for (const auto& variable : saved) tensors.push_back(variable.unpack());
    return tensors;
  }

  std::vector<bool> wanted() const {
    std::vector<bool> result;
    for (size_t i = 0; i < num_outputs(); ++i) result.push_back(task_should_compute_output(i));
    return result;
  }
};

// Of y = conv(x, W, b); saved are x and W.
struct ConvDerivative {
  static constexpr const char* name = "torch_ext::ConvBackward";

  static variable_list gradients(const variable_list& grads, const variable_list& saved, const Numbers& numbers,
                                 const std::vector<bool>& wanted) {
    if (!grads[0].defined()) return variable_list(3);
    const Mask mask = {wanted[0], wanted[1], wanted[2]};
    const auto [grad_input, grad_weight, grad_bias] = conv_backward(grads[0], saved[0], saved[1], numbers, mask);
    return {grad_input, grad_weight, grad_bias};
  }
};

// Of (grad_x, grad_W, grad_b) = conv_backward(g, x, W); saved are g, x and W.
struct ConvBackwardDerivative {
  static constexpr const char* name = "torch_ext::ConvBackwardBackward";

  static variable_list gradients(const variable_list& grads, const variable_list& saved, const Numbers& numbers,
                                 const std::vector<bool>& wanted) {
    const Tensor &to_input = grads[0], &to_weight = grads[1], &to_bias = grads[2];
    const Tensor &grad_output = saved[0], &input = saved[1], &weight = saved[2];
    variable_list result(3);
    if (wanted[0]) {
      if (to_input.defined()) result[0] = conv(to_input, weight, to_bias, numbers);
      if (to_weight.defined())
        result[0] = sum(result[0], conv(input, to_weight, to_input.defined() ? Tensor() : to_bias, numbers));
      if (!result[0].defined() && to_bias.defined()) result[0] = expand_bias(to_bias, grad_output);
    }
    if (wanted[1] && to_weight.defined())
      result[1] = std::get<0>(conv_backward(grad_output, input, to_weight, numbers, {true, false, false}));
    if (wanted[2] && to_input.defined())
      result[2] = std::get<1>(conv_backward(grad_output, to_input, weight, numbers, {false, true, false}));
    return result;
  }
};

// Records the derivative of a call on these tensors if one of them needs it; else null.
template <class Derivative, class... Tensors>
auto record(const Numbers& numbers, std::initializer_list<Tensor> saved, const Tensors&... tensors) {
  using NodePointer = decltype(make_node<ConvNode<Derivative>>());
  if (!torch::autograd::compute_requires_grad(tensors...)) return NodePointer();
  NodePointer node = make_node<ConvNode<Derivative>>();
  node->set_next_edges(torch::autograd::collect_next_edges(tensors...));
  for (const Tensor& tensor : saved) node->saved.emplace_back(tensor, /*is_output=*/false);
  node->numbers = numbers;
  return node;
}

// A tensor without its tangent, and the tangent (undefined if there is none).
Tensor primal(const Tensor& tensor) { return torch::autograd::isFwGradDefined(tensor) ? tensor._fw_primal(0) : tensor; }
Tensor tangent(const Tensor& tensor) { return tensor.defined() ? tensor._fw_grad(0) : tensor; }

Tensor conv_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                     const std::optional<Tensor>& optional_bias, c10::SymIntArrayRef stride,
                     c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups) {
  using namespace torch::autograd;
  const Tensor bias = optional_bias.value_or(Tensor());
  const Numbers numbers{stride.vec(), padding.vec(), dilation.vec(), groups};

  const auto node = record<ConvDerivative>(numbers, {input, weight}, input, weight, bias);
  Tensor output = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return conv_redispatch(keys & c10::after_autograd_keyset, input, weight, optional_bias, stride, padding, dilation,
                           groups);
  }();
  if (node) set_history(output, node);

  if (isFwGradDefined(input) || isFwGradDefined(weight) || isFwGradDefined(bias)) {
    const Tensor dx = tangent(input), dw = tangent(weight), db = tangent(bias);
    Tensor dy;
    if (dx.defined()) dy = conv(dx, primal(weight), db, numbers);
    if (dw.defined()) dy = sum(dy, conv(primal(input), dw, dx.defined() ? Tensor() : db, numbers));
    if (!dy.defined()) dy = expand_bias(db, output);
    output._set_fw_grad(dy, /*level=*/0, /*is_inplace_op=*/false);
  }
  return output;
}

Gradients conv_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                                 const Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                 c10::SymIntArrayRef dilation, c10::SymInt groups, Mask mask) {
  using namespace torch::autograd;
  const Numbers numbers{stride.vec(), padding.vec(), dilation.vec(), groups};

  const auto node = record<ConvBackwardDerivative>(numbers, {grad_output, input, weight}, grad_output, input, weight);
  Gradients result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return conv_backward_redispatch(keys & c10::after_autograd_keyset, grad_output, input, weight, stride, padding,
                                    dilation, groups, mask);
  }();
  auto& [grad_input, grad_weight, grad_bias] = result;
  if (node) {
    for (const Tensor& gradient : {grad_input, grad_weight, grad_bias}) set_history(gradient, node);
  }

  if (isFwGradDefined(grad_output) || isFwGradDefined(input) || isFwGradDefined(weight)) {
    const Tensor dg = tangent(grad_output), dx = tangent(input), dw = tangent(weight);
    const Tensor g = primal(grad_output), x = primal(input), w = primal(weight);
    Gradients tangents;
    auto& [d_input, d_weight, d_bias] = tangents;
    if (dg.defined()) tangents = conv_backward(dg, x, w, numbers, mask);
    if (mask[0] && dw.defined())
      d_input = sum(d_input, std::get<0>(conv_backward(g, x, dw, numbers, {true, false, false})));
    if (mask[1] && dx.defined())
      d_weight = sum(d_weight, std::get<1>(conv_backward(g, dx, w, numbers, {false, true, false})));
    if (d_input.defined()) grad_input._set_fw_grad(d_input, 0, false);
    if (d_weight.defined()) grad_weight._set_fw_grad(d_weight, 0, false);
    if (d_bias.defined()) grad_bias._set_fw_grad(d_bias, 0, false);
  }
  return result;
}

TORCH_LIBRARY_IMPL(torch_ext, Autograd, m) {
  m.impl("conv", conv_autograd);
  m.impl("conv_backward", conv_backward_autograd);
}

}  // namespace
}  // namespace torch_ext::ops
