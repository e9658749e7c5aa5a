#include "direct.h"

#include "depthwise.h"
#include "launch.h"

namespace torch_ext::cpu {
namespace {

void correlate(const Geometry& g, bool transposed, const at::Tensor& source, const at::Tensor& weight,
               const at::Tensor& bias, at::Tensor& target) {
  dispatch(source, [&]<class T>(T*) {
    auto from = view<const T>(source);
    auto to = view<T>(target);
    if (groups_share_vectors<T>(g, layout(from), layout(to)))
      return transposed ? depthwise_grad_input(g, source, weight, target)
                        : depthwise_forward(g, source, weight, bias, target);
    Geometry merged = g;
    transposed ? merge_axes(&merged, &to, &from) : merge_axes(&merged, &from, &to);
    const auto& kernels = table().of<T>().direct;
    const auto* bias_data = bias.defined() ? static_cast<const T*>(bias.const_data_ptr()) : nullptr;
    if (const auto pixels = plan_pixels<T>(merged, transposed, layout(from), layout(to))) {
      auto* const packed =
          static_cast<Acc<T>*>(Scratch::of_this_call().reserve(pixels->weight_size() * sizeof(Acc<T>)));
      constexpr int64_t kWorthAThread = 1 << 14;  // numbers
      at::parallel_for(0, pixels->rows.groups * pixels->panels(), ceil_div(kWorthAThread, pixels->panel_size()),
                       [&](int64_t begin, int64_t end) {
                         kernels.pack_panels(*pixels, view<const T>(weight), bias_data, packed, {begin, end});
                       });
      parallel<T>(*pixels, g,
                  [&](Range items, Acc<T>* scratch) { kernels.pixels(*pixels, from, packed, to, items, scratch); });
      return;
    }
    const DirectPlan plan = plan_direct<T>(merged, transposed, layout(from), layout(to));
    at::Tensor storage;
    const auto wide = wide_weight<T>(g, weight, &storage);
    parallel<T>(plan, g, [&](Range items, Acc<T>* scratch) {
      kernels.correlate(plan, from, wide, bias_data, to, items, scratch);
    });
  });
}

}  // namespace

void direct_forward(const Geometry& g, const at::Tensor& input, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias, at::Tensor& output) {
  correlate(g, false, input, weight, bias && bias->defined() ? bias->contiguous() : at::Tensor(), output);
}

void direct_grad_input(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& weight,
                       at::Tensor& grad_input) {
  correlate(g, true, grad_output, weight, {}, grad_input);
}

void direct_grad_weight(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                        at::Tensor& grad_weight) {
  dispatch(grad_output, [&]<class T>(T*) {
    const auto& kernels = table().of<T>().direct;
    auto factor = view<const T>(grad_output), source = view<const T>(input);
    if (grad_weight_shares_vectors<T>(g, layout(factor), layout(source)))
      return depthwise_grad_weight(g, grad_output, input, grad_weight);
    Geometry merged = g;
    merge_axes(&merged, &source, &factor);
    const auto run = [&](const auto& plan, auto* kernel, auto* add_slices, auto* add_wide_slices) {
      const auto sums = buffer<T>(plan.partial_sums_size(), input);
      parallel<T>(plan, g,
                  [&](Range items, Acc<T>* scratch) { kernel(plan, factor, source, data<T>(sums), items, scratch); });
      if (is_wide<T>(grad_weight)) add_wide_slices(plan, data<T>(sums), view<Acc<T>>(grad_weight));
      else add_slices(plan, data<T>(sums), view<T>(grad_weight));
    };
    const auto& wide = table().of<Acc<T>>().direct;
    if (const auto pixels = plan_pixel_grad_weight<T>(merged, layout(factor), layout(source)))
      run(*pixels, kernels.pixel_grad_weight, kernels.add_pixel_grad_weight, wide.add_pixel_grad_weight);
    else
      run(plan_direct_grad_weight<T>(merged, layout(factor), layout(source)), kernels.grad_weight,
          kernels.add_grad_weight, wide.add_grad_weight);
  });
}

}  // namespace torch_ext::cpu
