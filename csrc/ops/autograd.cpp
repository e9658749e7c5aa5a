#include <ATen/ops/add.h>
#include <torch/library.h>

#include <algorithm>

#include "call.h"
#include "node.h"

// Derivatives of conv, separable_conv and their backward ops, of any order: each is written with the two ops again.
//
// An op y = f(t) + b is linear in each of its factors t: input and weight, or input and both weights. With a gradient g
// of y, its backward op gives the gradients of all factors, B(g, t), and sum g. These are linear in g and in each
// factor too, so that a tangent or a second derivative is the same two ops with one factor replaced.
namespace torch_ext::ops {
namespace {

using at::Tensor;
using torch::autograd::variable_list;

std::optional<Tensor> optional(const Tensor& tensor) { return tensor.defined() ? std::optional(tensor) : std::nullopt; }

// The ops that are differentiated: their factors, forward and backward.
struct Conv {
  static constexpr int kFactors = 2;
  static constexpr const char *kName = "torch_ext::ConvBackward", *kBackwardName = "torch_ext::ConvBackwardBackward";
  using Factors = std::array<Tensor, kFactors>;
  using Mask = std::array<bool, kFactors + 1>;  // of the factors and the bias

  static Tensor forward(const Factors& t, const Tensor& bias, const Numbers& n) {
    return conv(t[0], t[1], optional(bias), n.stride, n.padding, n.dilation, n.groups);
  }
  static variable_list backward(const Tensor& grad_output, const Factors& t, const Numbers& n, Mask mask) {
    const auto [x, w, b] = conv_backward(grad_output, t[0], t[1], n.stride, n.padding, n.dilation, n.groups, mask);
    return {x, w, b};
  }
};

struct SeparableConv {
  static constexpr int kFactors = 3;
  static constexpr const char *kName = "torch_ext::SeparableConvBackward",
                              *kBackwardName = "torch_ext::SeparableConvBackwardBackward";
  using Factors = std::array<Tensor, kFactors>;
  using Mask = std::array<bool, kFactors + 1>;

  static Tensor forward(const Factors& t, const Tensor& bias, const Numbers& n) {
    return separable_conv(t[0], t[1], t[2], optional(bias), n.stride, n.padding, n.dilation);
  }
  static variable_list backward(const Tensor& grad_output, const Factors& t, const Numbers& n, Mask mask) {
    const auto [x, d, p, b] =
        separable_conv_backward(grad_output, t[0], t[1], t[2], n.stride, n.padding, n.dilation, mask);
    return {x, d, p, b};
  }
};

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

template <class Op>
typename Op::Factors factors(const Tensor* first) {
  typename Op::Factors t;
  std::copy_n(first, Op::kFactors, t.begin());
  return t;
}

template <class Op>
typename Op::Factors with(typename Op::Factors t, int i, const Tensor& replacement) {
  t[i] = replacement;
  return t;
}

// The sum of f over the replacements of one factor each; a bias is added to the first term.
template <class Op>
Tensor sum_of_forwards(const typename Op::Factors& t, const typename Op::Factors& replacements, Tensor bias,
                       const Numbers& numbers) {
  Tensor result;
  for (int i = 0; i < Op::kFactors; ++i) {
    if (!replacements[i].defined()) continue;
    result = sum(result, Op::forward(with<Op>(t, i, replacements[i]), bias, numbers));
    bias = Tensor();
  }
  return result;
}

// Adds B over the replacements of one factor each, but for the gradient of that factor itself.
template <class Op>
void add_backwards(const Tensor& grad_output, const typename Op::Factors& t, const typename Op::Factors& replacements,
                   const Numbers& numbers, const std::vector<bool>& wanted, Tensor* result) {
  for (int i = 0; i < Op::kFactors; ++i) {
    typename Op::Mask mask{};
    bool any = false;
    for (int j = 0; j < Op::kFactors; ++j) any |= mask[j] = i != j && wanted[j] && replacements[i].defined();
    if (!any) continue;
    const auto terms = Op::backward(grad_output, with<Op>(t, i, replacements[i]), numbers, mask);
    for (int j = 0; j < Op::kFactors; ++j) result[j] = sum(result[j], terms[j]);
  }
}

// Of y = f(t) + b; saved are the factors.
template <class Op>
struct Derivative {
  static constexpr const char* name = Op::kName;

  static variable_list gradients(const variable_list& grads, const variable_list& saved, const Numbers& numbers,
                                 const std::vector<bool>& wanted) {
    if (!grads[0].defined()) return variable_list(Op::kFactors + 1);
    typename Op::Mask mask;
    std::copy_n(wanted.begin(), mask.size(), mask.begin());
    return Op::backward(grads[0], factors<Op>(saved.data()), numbers, mask);
  }
};

// Of (B(g, t), sum g); saved are g and the factors.
template <class Op>
struct BackwardDerivative {
  static constexpr const char* name = Op::kBackwardName;

  static variable_list gradients(const variable_list& grads, const variable_list& saved, const Numbers& numbers,
                                 const std::vector<bool>& wanted) {
    const Tensor &grad_output = saved[0], &to_bias = grads[Op::kFactors];
    const auto t = factors<Op>(&saved[1]), to_factors = factors<Op>(grads.data());
    variable_list result(1 + Op::kFactors);
    if (wanted[0]) {
      result[0] = sum_of_forwards<Op>(t, to_factors, to_bias, numbers);
      if (!result[0].defined() && to_bias.defined()) result[0] = expand_bias(to_bias, grad_output);
    }
    add_backwards<Op>(grad_output, t, to_factors, numbers, std::vector<bool>(wanted.begin() + 1, wanted.end()),
                      &result[1]);
    return result;
  }
};

// A tensor without its tangent, and the tangent (undefined if there is none).
Tensor primal(const Tensor& tensor) { return torch::autograd::isFwGradDefined(tensor) ? tensor._fw_primal(0) : tensor; }
Tensor tangent(const Tensor& tensor) { return tensor.defined() ? tensor._fw_grad(0) : tensor; }

template <class Op>
typename Op::Factors each(const typename Op::Factors& t, Tensor (*function)(const Tensor&)) {
  typename Op::Factors result;
  std::transform(t.begin(), t.end(), result.begin(), function);
  return result;
}

template <class Op, class Call>
Tensor forward_autograd(const typename Op::Factors& t, const Tensor& bias, const Numbers& numbers, const Call& call) {
  using namespace torch::autograd;
  variable_list tensors(t.begin(), t.end());
  tensors.push_back(bias);
  const auto node = record<Derivative<Op>>(numbers, tensors, Op::kFactors);
  Tensor output = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call();
  }();
  if (node) set_history(output, node);

  if (has_tangent(tensors)) {
    const Tensor to_bias = tangent(bias);
    Tensor dy = sum_of_forwards<Op>(each<Op>(t, primal), each<Op>(t, tangent), to_bias, numbers);
    if (!dy.defined()) dy = expand_bias(to_bias, output);
    output._set_fw_grad(dy, /*level=*/0, /*is_inplace_op=*/false);
  }
  return output;
}

template <class Op, class Call>
auto backward_autograd(const Tensor& grad_output, const typename Op::Factors& t, const Numbers& numbers,
                       typename Op::Mask mask, const Call& call) {
  using namespace torch::autograd;
  variable_list tensors{grad_output};
  tensors.insert(tensors.end(), t.begin(), t.end());
  const auto node = record<BackwardDerivative<Op>>(numbers, tensors, tensors.size());
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call();
  }();
  const variable_list gradients = std::apply([](const auto&... all) { return variable_list{all...}; }, result);
  if (node)
    for (const Tensor& gradient : gradients) set_history(gradient, node);

  if (has_tangent(tensors)) {
    const Tensor dg = tangent(grad_output);
    const auto primals = each<Op>(t, primal);
    variable_list tangents(gradients.size());
    if (dg.defined()) tangents = Op::backward(dg, primals, numbers, mask);
    add_backwards<Op>(primal(grad_output), primals, each<Op>(t, tangent), numbers,
                      std::vector<bool>(mask.begin(), mask.end()), tangents.data());
    for (size_t i = 0; i < tangents.size(); ++i)
      if (tangents[i].defined()) gradients[i]._set_fw_grad(tangents[i], 0, false);
  }
  return result;
}

Tensor conv_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                     const std::optional<Tensor>& bias, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                     c10::SymIntArrayRef dilation, c10::SymInt groups) {
  const Numbers numbers{stride.vec(), padding.vec(), dilation.vec(), groups};
  return forward_autograd<Conv>({input, weight}, bias.value_or(Tensor()), numbers, [&] {
    return conv_redispatch(keys & c10::after_autograd_keyset, input, weight, bias, stride, padding, dilation, groups);
  });
}

Gradients conv_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                                 const Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                 c10::SymIntArrayRef dilation, c10::SymInt groups, Mask mask) {
  const Numbers numbers{stride.vec(), padding.vec(), dilation.vec(), groups};
  return backward_autograd<Conv>(grad_output, {input, weight}, numbers, mask, [&] {
    return conv_backward_redispatch(keys & c10::after_autograd_keyset, grad_output, input, weight, stride, padding,
                                    dilation, groups, mask);
  });
}

Tensor separable_conv_autograd(c10::DispatchKeySet keys, const Tensor& input, const Tensor& depthwise_weight,
                               const Tensor& pointwise_weight, const std::optional<Tensor>& bias,
                               c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation) {
  const Numbers numbers{stride.vec(), padding.vec(), dilation.vec(), 1};
  const SeparableConv::Factors factors{input, depthwise_weight, pointwise_weight};
  return forward_autograd<SeparableConv>(factors, bias.value_or(Tensor()), numbers, [&] {
    return separable_conv_redispatch(keys & c10::after_autograd_keyset, input, depthwise_weight, pointwise_weight, bias,
                                     stride, padding, dilation);
  });
}

SeparableGradients separable_conv_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad_output,
                                                    const Tensor& input, const Tensor& depthwise_weight,
                                                    const Tensor& pointwise_weight, c10::SymIntArrayRef stride,
                                                    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                    SeparableMask mask) {
  const Numbers numbers{stride.vec(), padding.vec(), dilation.vec(), 1};
  const SeparableConv::Factors factors{input, depthwise_weight, pointwise_weight};
  return backward_autograd<SeparableConv>(grad_output, factors, numbers, mask, [&] {
    return separable_conv_backward_redispatch(keys & c10::after_autograd_keyset, grad_output, input, depthwise_weight,
                                              pointwise_weight, stride, padding, dilation, mask);
  });
}

TORCH_LIBRARY_IMPL(torch_ext, Autograd, m) {
  m.impl("conv", conv_autograd);
  m.impl("conv_backward", conv_backward_autograd);
  m.impl("separable_conv", separable_conv_autograd);
  m.impl("separable_conv_backward", separable_conv_backward_autograd);
}

}  // namespace
}  // namespace torch_ext::ops
