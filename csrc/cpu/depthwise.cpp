#include "depthwise.h"

#include "launch.h"

namespace torch_ext::cpu {
namespace {

void correlate(const Geometry& g, bool transposed, const at::Tensor& source, const at::Tensor& weight,
               const at::Tensor& bias, at::Tensor& target) {
  dispatch(source, [&]<class T>(T*) {
    const auto& kernels = table().of<T>().depthwise;
    const auto from = view<const T>(source);
    const auto to = view<T>(target);
    const CorrelatePlan plan = plan_correlate<T>(g, transposed, layout(from), layout(to));
    const Acc<T>* packed = nullptr;
    if constexpr (std::same_as<T, Acc<T>>)
      if (lanes_are_columns(plan.order) && weight.is_contiguous())  // it is packed as it is
        packed = static_cast<const T*>(weight.const_data_ptr());
    if (!packed) {
      auto* const to = static_cast<Acc<T>*>(Scratch::of_this_call().reserve(plan.weight_size() * sizeof(Acc<T>)));
      kernels.pack_weight(plan, view<const T>(weight), to);
      packed = to;
    }
    const auto* bias_data = bias.defined() ? static_cast<const T*>(bias.const_data_ptr()) : nullptr;
    parallel<T>(plan, g, [&](Range items, Acc<T>* scratch) {
      kernels.correlate(plan, from, packed, bias_data, to, items, scratch);
    });
  });
}

}  // namespace

void depthwise_forward(const Geometry& g, const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::Tensor& output) {
  correlate(g, false, input, weight, bias && bias->defined() ? bias->contiguous() : at::Tensor(), output);
}

void depthwise_grad_input(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& weight,
                          at::Tensor& grad_input) {
  correlate(g, true, grad_output, weight, {}, grad_input);
}

void depthwise_grad_weight(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                           at::Tensor& grad_weight) {
  dispatch(grad_output, [&]<class T>(T*) {
    const auto& kernels = table().of<T>().depthwise;
    const auto factor = view<const T>(grad_output), source = view<const T>(input);
    const GradWeightPlan plan = plan_grad_weight<T>(g, layout(factor), layout(source));
    const auto sums = buffer<T>(plan.partial_sums_size(), input);
    parallel<T>(plan, g, [&](Range items, Acc<T>* scratch) {
      kernels.grad_weight(plan, factor, source, data<T>(sums), items, scratch);
    });
    if (is_wide<T>(grad_weight))
      table().of<Acc<T>>().depthwise.add_grad_weight(plan, data<T>(sums), view<Acc<T>>(grad_weight));
    else kernels.add_grad_weight(plan, data<T>(sums), view<T>(grad_weight));
  });
}

void grad_bias(const Geometry& g, const at::Tensor& grad_output, at::Tensor& grad_bias) {
  dispatch(grad_output, [&]<class T>(T*) {
    const auto& kernels = table().of<T>().depthwise;
    const auto factor = view<const T>(grad_output);
    const GradBiasPlan plan = plan_grad_bias<T>(g, layout(factor));
    const auto sums = buffer<T>(plan.partial_sums_size(), grad_output);
    parallel<T>(plan, g,
                [&](Range items, Acc<T>* scratch) { kernels.grad_bias(plan, factor, data<T>(sums), items, scratch); });
    kernels.add_grad_bias(plan, data<T>(sums), static_cast<T*>(grad_bias.mutable_data_ptr()));
  });
}

}  // namespace torch_ext::cpu
