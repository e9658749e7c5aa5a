#include "depthwise.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "isa.h"
#include "kernels/table.h"
#include "scratch.h"

// Views, buffers and threads around the depthwise kernels.
namespace torch_ext::cpu {
namespace {

template <class T>
struct KernelTypeOf {
  using type = T;
};
template <>
struct KernelTypeOf<at::BFloat16> {
  using type = BFloat16;
};
template <>
struct KernelTypeOf<at::Half> {
  using type = Half;
};

const KernelTable& table() { return isa() == Isa::kScalar ? scalar_table() : avx2_table(); }

// Calls `body` with a null pointer of the kernels' storage type.
template <class Body>
void dispatch(const at::Tensor& tensor, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, tensor.scalar_type(), "torch_ext",
                                  [&] { body(static_cast<typename KernelTypeOf<scalar_t>::type*>(nullptr)); });
}

// [n, c, *] as a view with three spatial axes. Sizes of 1 get stride 0, so that no kernel steps along them.
template <class T>
View<T> view(const at::Tensor& tensor) {
  const auto stride = [&](int64_t axis) { return tensor.size(axis) == 1 ? 0 : tensor.stride(axis); };
  View<T> result{static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())), stride(0), stride(1), {}};
  const int leading = 5 - static_cast<int>(tensor.dim());
  for (int axis = 0; axis < 3; ++axis) result.spatial[axis] = axis < leading ? 0 : stride(axis - leading + 2);
  return result;
}

template <class T>
at::Tensor buffer(int64_t elements, const at::Tensor& like) {
  return at::empty({elements}, like.options().dtype(std::same_as<Acc<T>, double> ? at::kDouble : at::kFloat));
}

template <class T>
Acc<T>* data(const at::Tensor& buffer) {
  return static_cast<Acc<T>*>(buffer.mutable_data_ptr());
}

// Runs kernel(range, scratch) over all items of a plan on the threads of PyTorch's pool. Small work stays on one
// thread.
template <class T, class Plan, class Kernel>
void parallel(const Plan& plan, const Geometry& g, const Kernel& kernel) {
  constexpr double kWorthAThread = 1 << 15;  // multiply-adds
  const double work = static_cast<double>(g.batch) * std::max(g.in_channels, g.out_channels) * g.out[0] * g.out[1] *
                      g.out[2] * g.kernel[0] * g.kernel[1] * g.kernel[2] / plan.items();
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(kWorthAThread / std::max(work, 1.0)));
  at::parallel_for(0, plan.items(), grain, [&](int64_t begin, int64_t end) {
    auto* scratch = static_cast<Acc<T>*>(Scratch::of_this_thread().reserve(plan.scratch_size() * sizeof(Acc<T>)));
    kernel(Range{begin, end}, scratch);
  });
}

void correlate(const Geometry& g, bool transposed, const at::Tensor& source, const at::Tensor& weight,
               const at::Tensor& bias, at::Tensor& target) {
  dispatch(source, [&]<class T>(T*) {
    const auto& kernels = table().depthwise<T>();
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
    const auto& kernels = table().depthwise<T>();
    const auto factor = view<const T>(grad_output), source = view<const T>(input);
    const GradWeightPlan plan = plan_grad_weight<T>(g, layout(factor), layout(source));
    const auto sums = buffer<T>(plan.partial_sums_size(), input);
    parallel<T>(plan, g, [&](Range items, Acc<T>* scratch) {
      kernels.grad_weight(plan, factor, source, data<T>(sums), items, scratch);
    });
    kernels.add_grad_weight(plan, data<T>(sums), view<T>(grad_weight));
  });
}

void depthwise_grad_bias(const Geometry& g, const at::Tensor& grad_output, at::Tensor& grad_bias) {
  dispatch(grad_output, [&]<class T>(T*) {
    const auto& kernels = table().depthwise<T>();
    const auto factor = view<const T>(grad_output);
    const GradBiasPlan plan = plan_grad_bias<T>(g, layout(factor));
    const auto sums = buffer<T>(plan.partial_sums_size(), grad_output);
    parallel<T>(plan, g,
                [&](Range items, Acc<T>* scratch) { kernels.grad_bias(plan, factor, data<T>(sums), items, scratch); });
    kernels.add_grad_bias(plan, data<T>(sums), static_cast<T*>(grad_bias.mutable_data_ptr()));
  });
}

}  // namespace torch_ext::cpu
