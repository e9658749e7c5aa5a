#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "conv.h"
#include "deform_layout.h"
#include "depthwise.h"
#include "launch.h"
#include "matrix.h"
#include "ops/call.h"
#include "ops/check.h"

// deform_conv and deform_conv_backward on the CPU: a matrix product of the weight with columns, which are sampled for
// some positions and taps at a time (kernels/deform.h). PyTorch's matrix product is called on each thread.
namespace torch_ext::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::DeformGradients;
using ops::DeformMask;
using Deform = DeformGeometry<int64_t>;

// Of columns and samples: a thread's, and what all threads share.
constexpr int64_t kColumnsBytes = 1 << 20, kSharedBytes = 1 << 20;

// Offsets and masks may be in float32 where the rest is in 16 bit.
template <class T, class Body>
void with_type_of(const Tensor& tensor, const Body& body) {
  tensor.scalar_type() == at::kFloat ? body(static_cast<float*>(nullptr)) : body(static_cast<T*>(nullptr));
}
template <class T, class Body>
requires std::same_as<T, double>
void with_type_of(const Tensor&, const Body& body) { body(static_cast<double*>(nullptr)); }

// Computes the samples of a block: those of one offset group.
template <class T>
void sample(const Deform& g, const Tensor& offset, const Tensor& mask, const SampledPart& part, int64_t group,
            Range positions, std::byte* block) {
  with_type_of<T>(offset, [&]<class O>(O*) {
    table().of<O>().deform.sample(g, view<const O>(offset), part, group, positions, block);
  });
  if (mask.defined())
    with_type_of<T>(mask, [&]<class M>(M*) {
      table().of<M>().deform.modulate(g, view<const M>(mask), part, group, positions, block);
    });
}

int64_t padded(int64_t channels, int64_t lanes) { return ceil_div(channels, lanes) * lanes; }

template <class Body>
void for_each_range(int64_t count, int64_t step, const Body& body) {
  const int64_t parts = ceil_div(count, step);
  for (int64_t i = 0; i < parts; ++i) body(part(count, parts, i));
}

template <class T>
void forward(const Deform& g, const Tensor& input, const Tensor& offset, const Tensor& weight, const Tensor& mask,
             const Tensor& bias, Tensor& output) {
  using A = Acc<T>;
  const int64_t channels = g.conv.in_channels, outputs = g.conv.out_channels, lanes = kLanes<A>;
  const auto groups = channel_runs({g.conv, 1}, channels), runs = channel_runs(g, channels);
  RunWeights<T> weights(g, groups);
  weights.load(weight);
  const Tensor wide_bias = bias.defined() ? bias.to(sum_type<T>()) : Tensor();

  const int64_t bytes = sample_bytes(g.conv.dims, sizeof(A));
  const int64_t column_bytes = channels * static_cast<int64_t>(sizeof(A)) + g.offset_groups * bytes;
  const int64_t pitch = padded(outputs, lanes);
  const DeformTile tile = deform_tile(g, column_bytes, pitch * static_cast<int64_t>(sizeof(A)), kColumnsBytes);
  const int64_t strips = ceil_div(g.positions(), tile.positions);
  const int64_t most = tile.samples();
  const int64_t columns_size = padded(most * channels, 16);
  const int64_t result_size = padded(tile.positions * pitch, 16);

  for_each_images<T>(
      input, g.conv, {0, g.conv.batch}, g.conv.batch, /*are_read=*/true, [&]<class S>(const Images<S>& source) {
        for_each_item(size(source.range) * strips, [&](int64_t item) {
          const int64_t n = source.range.begin + item / strips;
          const S* const image = source.at(n);
          const Range positions = part(g.positions(), strips, item % strips);
          auto* const columns = static_cast<A*>(Scratch::of_this_thread().reserve(
              (columns_size + result_size) * sizeof(A) + most * g.offset_groups * bytes));
          A* const packed = columns + columns_size;
          auto* const samples = reinterpret_cast<std::byte*>(packed + result_size);
          auto in_place = matrix_in_place(view<T>(output), g.conv.out, outputs, n, positions);
          if (in_place && in_place->column_stride != 1) in_place.reset();  // a product that stores by columns is slower
          const Matrix<A> result = in_place.value_or(Matrix<A>{packed, size(positions), outputs, pitch, 1});
          if (bias.defined()) {
            at::AutoDispatchBelowADInplaceOrView guard;
            result.tensor().copy_(wide_bias.expand({size(positions), outputs}));
          }
          for_each_range(g.taps(), tile.taps, [&](Range taps) {
            const SampledPart part{n, positions, taps};
            for (int64_t group = 0; group < g.offset_groups; ++group)
              sample<T>(g, offset, mask, part, group, positions, samples + group * part.samples() * bytes);
            for (const ChannelRun& run : runs) {
              const int64_t inputs = g.conv.in_per_group(), first = run.group * inputs;
              table().of<S>().deform.make_columns(
                  g.conv.dims, samples + run.offset_group * part.samples() * bytes, part.samples(),
                  image + run.channels.begin, source.pixel, size(run.channels),
                  columns + first * part.samples() + run.channels.begin - first, inputs);
            }
            for (const ChannelRun& group : groups) {
              const int64_t terms = size(taps) * size(group.channels);
              const Matrix<A> m{columns + group.channels.begin * part.samples(), size(positions), terms, terms, 1};
              multiply(columns_of(result, group.group * g.conv.out_per_group(), g.conv.out_per_group()), m,
                       weights.matrix(group, taps).transposed(), taps.begin > 0 || bias.defined());
            }
          });
          if (!in_place)
            table().of<T>().deform.unpack_positions(packed, pitch, g.conv.out, n, outputs, positions, view<T>(output));
        });
      });
}

// The backward pass. Threads take some runs of channels each: all that belongs to them, so that sums have one order.
template <class T>
class Backward {
 public:
  using A = Acc<T>;
  Backward(const Deform& g, const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
           const Tensor& mask, std::array<Tensor, 4>& gradients)
      : g_(g),
        grad_output_(grad_output),
        input_(input),
        offset_(offset),
        mask_(mask),
        grad_input_(gradients[0]),
        grad_offset_(gradients[1]),
        grad_weight_(gradients[2]),
        grad_mask_(gradients[3]),
        runs_(
            channel_runs(g, std::clamp(padded(ceil_div(g.conv.in_channels, 8), kLanes<A>), kLanes<A>, 4 * kLanes<A>))),
        weights_(g, runs_) {
    for (const ChannelRun& run : runs_) widest_ = std::max(widest_, size(run.channels));
    if (grad_input_.defined() || wants_sampling()) weights_.load(weight);
    if constexpr (std::same_as<T, A>)
      if (grad_input_.defined()) grad_pixel_ = pixel_stride(view<T>(grad_input_), g.conv.in, g.conv.in_channels);
    if (grad_pixel_) grad_input_.zero_();
  }

  void run() {
    // Runs are few where channels are: images are shared out, too, and each slice has its sums of the weight's
    // gradient.
    constexpr int64_t kItems = 16, kSumsBytes = 1 << 18;
    const int64_t sums_bytes = g_.conv.out_channels * g_.conv.in_per_group() * g_.taps() * sizeof(A);
    const int64_t most = std::min(kItems / std::ssize(runs_), kSumsBytes / sums_bytes);
    const int64_t slices = std::clamp<int64_t>(most, 1, g_.conv.batch);
    std::vector<RunWeights<T>> sums(slices, RunWeights<T>(g_, runs_));
    if (grad_weight_.defined())
      for (auto& each : sums) each.clear(grad_weight_);
    if (slices == 1) {
      images({0, g_.conv.batch}, g_.conv.batch, sums[0]);
    } else {
      at::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) images(part(g_.conv.batch, slices, i), 1, sums[i]);
      });
    }
    if (!grad_weight_.defined()) return;
    for (int64_t i = 1; i < slices; ++i) sums[0].add(sums[i]);
    sums[0].store(grad_weight_);
  }

 private:
  bool wants_sampling() const { return grad_offset_.defined() || grad_mask_.defined(); }

  // `most` packed ones at a time.
  void images(Range some, int64_t most, RunWeights<T>& sums) {
    std::optional<PackedImages<T>> packed_grad;
    if (grad_input_.defined() && !grad_pixel_) packed_grad.emplace(grad_input_, g_.conv.in, g_.conv.in_channels);
    const bool are_read = grad_weight_.defined() || wants_sampling();
    for_each_images<T>(input_, g_.conv, some, most, are_read, [&]<class S>(const Images<S>& source) {
      for (int64_t n = source.range.begin; n < source.range.end; ++n) {
        A* grad_image = nullptr;
        if (packed_grad) packed_grad->clear(), grad_image = packed_grad->at(0);
        else if constexpr (std::same_as<T, A>)
          if (grad_pixel_) grad_image = view<T>(grad_input_).at(n, 0);
        const int64_t grad_pixel = packed_grad ? g_.conv.in_channels : grad_pixel_.value_or(0);
        image(n, source.at(n), source.pixel, grad_image, grad_pixel, sums);
        if (packed_grad) packed_grad->store(n);
      }
    });
  }

  template <class S>
  void image(int64_t n, const S* image, int64_t pixel, A* grad_image, int64_t grad_pixel, RunWeights<T>& sums) {
    const int64_t outputs = g_.conv.out_channels, run_count = std::ssize(runs_), corners = int64_t{1} << g_.conv.dims;
    // What threads share of a sample, and what each has of it.
    const int64_t bytes = sample_bytes(g_.conv.dims, sizeof(A)), element = sizeof(A);
    const int64_t shared = g_.offset_groups * bytes + run_count * corners * element;
    const int64_t pitch = padded(outputs, kLanes<A>);
    const DeformTile tile = deform_tile(g_, shared + widest_ * element, pitch * element, kSharedBytes);
    const int64_t most = tile.samples();
    const int64_t samples_size = padded(most * g_.offset_groups * bytes, 64), dots_size = padded(most * corners, 16);
    auto* const samples = static_cast<std::byte*>(
        Scratch::of_this_call().reserve(samples_size + (run_count * dots_size + tile.positions * pitch) * element));
    A* const dots = reinterpret_cast<A*>(samples + samples_size);
    A* const packed = dots + run_count * dots_size;

    for_each_range(g_.positions(), tile.positions, [&](Range positions) {
      const auto in_place = matrix_in_place(view<const T>(grad_output_), g_.conv.out, outputs, n, positions);
      const Matrix<A> gradient = in_place.value_or(Matrix<A>{packed, size(positions), outputs, pitch, 1});
      for_each_range(g_.taps(), tile.taps, [&](Range taps) {
        const SampledPart part{n, positions, taps};
        const auto block = [&](int64_t group) { return samples + group * part.samples() * bytes; };
        const auto each_position = [&](const auto& body) {
          at::parallel_for(positions.begin, positions.end, ceil_div(1 << 8, size(taps) * g_.offset_groups),
                           [&](int64_t begin, int64_t end) {
                             body(Range{begin, end});
                           });
        };
        each_position([&](Range some) {
          if (!in_place && taps.begin == 0)
            table().of<T>().deform.pack_positions(view<const T>(grad_output_), g_.conv.out, n, outputs, some,
                                                  packed + (some.begin - positions.begin) * pitch, pitch);
          for (int64_t group = 0; group < g_.offset_groups; ++group)
            sample<T>(g_, offset_, mask_, part, group, some, block(group));
        });
        for_each_item(run_count, [&](int64_t i) {
          const ChannelRun& run = runs_[i];
          const int64_t count = size(run.channels), terms = size(taps) * count;
          const Matrix<A> columns{static_cast<A*>(Scratch::of_this_thread().reserve(most * widest_ * element)),
                                  size(positions), terms, terms, 1};
          const auto gradient_of_group =
              columns_of(gradient, run.group * g_.conv.out_per_group(), g_.conv.out_per_group());
          const auto& kernels = table().of<S>().deform;
          if (grad_weight_.defined()) {
            kernels.make_columns(g_.conv.dims, block(run.offset_group), part.samples(), image + run.channels.begin,
                                 pixel, count, columns.data, count);
            multiply(sums.matrix(run, taps), gradient_of_group.transposed(), columns, 1);
          }
          if (!grad_image && !wants_sampling()) return;
          multiply(columns, gradient_of_group, weights_.matrix(run, taps), 0);
          kernels.spread_columns(g_.conv.dims, block(run.offset_group), part.samples(), image + run.channels.begin,
                                 pixel, count, columns.data, count,
                                 grad_image ? grad_image + run.channels.begin : nullptr, grad_pixel,
                                 wants_sampling() ? dots + i * dots_size : nullptr);
        });
        if (wants_sampling())
          each_position([&](Range some) { sampling_gradients(part, some, samples, dots, dots_size); });
      });
    });
  }

  // The gradients of offset and mask, from dots[run][sample][corner].
  void sampling_gradients(const SampledPart& part, Range some, const std::byte* samples, A* dots, int64_t dots_size) {
    const int64_t corners = int64_t{1} << g_.conv.dims, bytes = sample_bytes(g_.conv.dims, sizeof(A));
    const int64_t begin = (some.begin - part.positions.begin) * size(part.taps) * corners;
    const int64_t end = (some.end - part.positions.begin) * size(part.taps) * corners;
    for (int64_t i = 0, run_count = std::ssize(runs_); i < run_count;) {
      A* const total = dots + i * dots_size;
      const int64_t group = runs_[i].offset_group;
      for (++i; i < run_count && runs_[i].offset_group == group; ++i)
        for (int64_t j = begin; j < end; ++j) total[j] += dots[i * dots_size + j];
      const std::byte* const block = samples + group * part.samples() * bytes;
      if (grad_offset_.defined())
        with_type_of<T>(offset_, [&]<class O>(O*) {
          table().of<O>().deform.grad_offset(g_, block, total, part, group, some, view<O>(grad_offset_));
        });
      if (grad_mask_.defined())
        with_type_of<T>(mask_, [&]<class M>(M*) {
          table().of<M>().deform.grad_mask(g_, block, total, part, group, some, view<M>(grad_mask_));
        });
    }
  }

  const Deform& g_;
  const Tensor &grad_output_, &input_, &offset_, &mask_;
  Tensor &grad_input_, &grad_offset_, &grad_weight_, &grad_mask_;
  const std::vector<ChannelRun> runs_;
  RunWeights<T> weights_;
  int64_t widest_ = 0;
  std::optional<int64_t> grad_pixel_;  // if the input's gradient can be added to where it lies
};

Tensor deform_conv(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  const Deform g =
      ops::check_deform<int64_t>("deform_conv", input, offset, weight, mask, bias, stride, padding, dilation);
  Tensor output = ops::empty_output(input.options(), g.conv, ops::wants_channels_last(input, weight));
  if (is_empty(g.conv)) {
    set_to_bias(output, bias);
    return output;
  }
  dispatch(input, [&]<class T>(T*) {
    forward<T>(g, input, offset, weight, mask.value_or(Tensor()), bias.value_or(Tensor()), output);
  });
  return output;
}

DeformGradients deform_conv_backward(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                     const Tensor& weight, const std::optional<Tensor>& mask, IntArrayRef stride,
                                     IntArrayRef padding, IntArrayRef dilation, DeformMask output_mask) {
  const Deform g = ops::check_deform_backward<int64_t>("deform_conv_backward", grad_output, input, offset, weight, mask,
                                                       stride, padding, dilation);
  const Tensor modulation = mask.value_or(Tensor());
  std::array<Tensor, 4> gradients;
  const std::array<const Tensor*, 4> tensors{&input, &offset, &weight, &modulation};
  for (int i = 0; i < 4; ++i)
    if (output_mask[i] && tensors[i]->defined())
      gradients[i] = ops::empty_in_format_of(*tensors[i], tensors[i]->sym_sizes());
  Tensor to_bias;
  if (output_mask[4]) {
    to_bias = at::empty({g.conv.out_channels}, input.options());
    grad_output.numel() > 0 ? grad_bias(g.conv, grad_output, to_bias) : void(to_bias.zero_());
  }
  const bool wanted = std::any_of(gradients.begin(), gradients.end(), [](const Tensor& t) { return t.defined(); });
  if (is_empty(g.conv)) {
    for (Tensor& gradient : gradients)
      if (gradient.defined()) gradient.zero_();
  } else if (wanted) {
    dispatch(input,
             [&]<class T>(T*) { Backward<T>(g, grad_output, input, offset, weight, modulation, gradients).run(); });
  }
  return {gradients[0], gradients[1], gradients[2], gradients[3], to_bias};
}

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  m.impl("deform_conv", deform_conv);
  m.impl("deform_conv_backward", deform_conv_backward);
}

}  // namespace
}  // namespace torch_ext::cpu
