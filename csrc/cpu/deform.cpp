#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "conv.h"
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

// Of columns and samples: a thread's, and what all threads share; and of packed images.
constexpr int64_t kColumnsBytes = 1 << 20, kSharedBytes = 1 << 20, kImageBytes = 1 << 20;

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

// The distance of pixels that are evenly spaced and whose channels lie side by side; or none.
template <class T>
std::optional<int64_t> pixel_stride(const View<T>& v, const Triple<int64_t>& sizes, int64_t channels) {
  if (channels > 1 && v.c != 1) return {};
  std::optional<int64_t> stride;
  int64_t pixels = 1;
  for (int axis = 2; axis >= 0; --axis) {
    if (sizes[axis] > 1) {
      if (!stride) stride = v.spatial[axis] / pixels;
      if (v.spatial[axis] != *stride * pixels) return {};
    }
    pixels *= sizes[axis];
  }
  return stride.value_or(0);
}

int64_t padded(int64_t channels, int64_t lanes) { return ceil_div(channels, lanes) * lanes; }

// Some images, packed so, in the type of the sums.
template <class T>
class PackedImages {
 public:
  PackedImages(const Tensor& tensor, const Triple<int64_t>& sizes, int64_t channels, int64_t most = 1)
      : tensor_(tensor),
        sizes_(sizes),
        channels_(channels),
        pixels_(sizes[0] * sizes[1] * sizes[2]),
        count_(std::clamp<int64_t>(kImageBytes / (pixels_ * channels_ * sizeof(Acc<T>)), 1, most)),
        storage_(buffer<T>(count_ * pixels_ * channels_ + kLanes<Acc<T>>, tensor)) {}

  int64_t count() const { return count_; }
  Acc<T>* at(int64_t i) const { return data<T>(storage_) + i * pixels_ * channels_; }
  void clear() { storage_.zero_(); }
  void load(Range images) {
    each_part(size(images), [&](int64_t i, Range part) {
      table().of<T>().deform.pack_positions(view<const T>(tensor_), sizes_, images.begin + i, channels_, part,
                                            at(i) + part.begin * channels_, channels_);
    });
  }
  void store(int64_t n) {
    each_part(1, [&](int64_t i, Range part) {
      table().of<T>().deform.unpack_positions(at(i) + part.begin * channels_, channels_, sizes_, n + i, channels_, part,
                                              view<T>(tensor_));
    });
  }

 private:
  template <class Body>
  void each_part(int64_t images, const Body& body) {
    constexpr int64_t kWorthAThread = 1 << 15;  // numbers
    at::parallel_for(0, images * pixels_, ceil_div(kWorthAThread, channels_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin / pixels_; i * pixels_ < end; ++i)
        body(i, Range{std::max(begin - i * pixels_, int64_t{0}), std::min(end - i * pixels_, pixels_)});
    });
  }

  const Tensor& tensor_;
  const Triple<int64_t> sizes_;
  const int64_t channels_, pixels_, count_;
  Tensor storage_;
};

// Where images are whose channels lie side by side.
template <class S>
struct Images {
  Range range;
  const S* first;
  int64_t image, pixel;  // from one to the next

  const S* at(int64_t n) const { return first + (n - range.begin) * image; }
};

// Calls body(images) for all images at once, where they lie, or for some packed ones after the other; or for all at
// once if they are not read.
template <class T, class Body>
void for_each_images(const Tensor& tensor, const Geometry& g, bool are_read, const Body& body) {
  const auto v = view<const T>(tensor);
  const auto pixel = pixel_stride(v, g.in, g.in_channels);
  if (pixel || !are_read) return body(Images<T>{{0, g.batch}, v.data, v.n, pixel.value_or(0)});
  PackedImages<T> packed(tensor, g.in, g.in_channels, g.batch);
  for (int64_t n = 0; n < g.batch; n += packed.count()) {
    const Range range{n, std::min(g.batch, n + packed.count())};
    packed.load(range);
    body(Images<Acc<T>>{range, packed.at(0), packed.at(1) - packed.at(0), g.in_channels});
  }
}

// The weight as [run][output][tap][channel], in Acc<T>; the way back for its gradient.
template <class T>
class RunWeights {
 public:
  using A = Acc<T>;
  RunWeights(const Deform& g, const std::vector<ChannelRun>& runs) : g_(g), runs_(runs) {}

  void load(const Tensor& weight) {
    storage_ = at::empty({weight.numel()}, weight.options().dtype(sum_type<T>()));
    const Tensor ordered = weight.flatten(2).transpose(1, 2);
    for (const ChannelRun& run : runs_) of(run).copy_(part_of(ordered, run));
  }
  void clear(const Tensor& gradient) {
    storage_ = at::zeros({gradient.numel()}, gradient.options().dtype(sum_type<T>()));
  }
  void store(Tensor& gradient) {
    const Tensor ordered = gradient.flatten(2).transpose(1, 2);  // a view: it is dense
    for (const ChannelRun& run : runs_) part_of(ordered, run).copy_(of(run));
  }
  // [outputs of the group, taps * channels], of some taps.
  Matrix<A> matrix(const ChannelRun& run, Range taps) const {
    const int64_t channels = size(run.channels), row = g_.taps() * channels;
    return {data<T>(storage_) + first(run) + taps.begin * channels, g_.conv.out_per_group(), size(taps) * channels, row,
            1};
  }

 private:
  int64_t first(const ChannelRun& run) const { return run.channels.begin * g_.conv.out_per_group() * g_.taps(); }
  Tensor of(const ChannelRun& run) const {
    const std::vector<int64_t> sizes{g_.conv.out_per_group(), g_.taps(), size(run.channels)};
    return storage_.narrow(0, first(run), sizes[0] * sizes[1] * sizes[2]).view(sizes);
  }
  Tensor part_of(const Tensor& ordered, const ChannelRun& run) const {
    const int64_t outputs = g_.conv.out_per_group(), inputs = g_.conv.in_per_group();
    return ordered.narrow(0, run.group * outputs, outputs)
        .narrow(2, run.channels.begin - run.group * inputs, size(run.channels));
  }

  const Deform& g_;
  const std::vector<ChannelRun>& runs_;
  Tensor storage_;
};

template <class Body>
void for_each_range(int64_t count, int64_t step, const Body& body) {
  const int64_t parts = ceil_div(count, step);
  for (int64_t i = 0; i < parts; ++i) body(part(count, parts, i));
}

// Some positions of an image of a tensor [N, C, *] as a matrix [position, channel], where it lies, if it can be.
template <class V, class A = Acc<std::remove_const_t<V>>>
std::optional<Matrix<A>> matrix_in_place(const View<V>& v, const Triple<int64_t>& sizes, int64_t channels, int64_t n,
                                         Range positions) {
  if constexpr (std::same_as<std::remove_const_t<V>, A>) {
    const auto row = pixel_stride(View<V>{v.data, v.n, 1, v.spatial}, sizes, channels);
    const int64_t column = channels > 1 ? v.c : 1, count = size(positions);
    // As a matrix product takes it: one stride is 1, and the other skips a row of it.
    const bool by_rows = row && column == 1 && (*row >= channels || count == 1);
    const bool by_columns = row && *row == 1 && (column >= count || channels == 1);
    if (by_rows || by_columns)
      return Matrix<A>{const_cast<A*>(v.at(n, 0)) + positions.begin * *row, count, channels, *row, column};
  }
  return {};
}

template <class A>
Matrix<A> columns_of(const Matrix<A>& m, int64_t first, int64_t count) {
  return {m.data + first * m.column_stride, m.rows, count, m.row_stride, m.column_stride};
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

  for_each_images<T>(input, g.conv, /*are_read=*/true, [&]<class S>(const Images<S>& source) {
    for_each_item(size(source.range) * strips, [&](int64_t item) {
      const int64_t n = source.range.begin + item / strips;
      const S* const image = source.at(n);
      const Range positions = part(g.positions(), strips, item % strips);
      auto* const columns = static_cast<A*>(
          Scratch::of_this_thread().reserve((columns_size + result_size) * sizeof(A) + most * g.offset_groups * bytes));
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
          table().of<S>().deform.make_columns(g.conv.dims, samples + run.offset_group * part.samples() * bytes,
                                              part.samples(), image + run.channels.begin, source.pixel,
                                              size(run.channels),
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

// Each thread takes some runs of channels: all that belongs to them, so that sums have one order.
template <class T>
void backward(const Deform& g, const Tensor& grad_output, const Tensor& input, const Tensor& offset,
              const Tensor& weight, const Tensor& mask, std::array<Tensor, 4>& gradients) {
  using A = Acc<T>;
  const auto& [grad_input, grad_offset, grad_weight, grad_mask] = gradients;
  const bool wants_sampling = grad_offset.defined() || grad_mask.defined();
  const int64_t channels = g.conv.in_channels, outputs = g.conv.out_channels, lanes = kLanes<A>;
  const auto runs = channel_runs(g, std::clamp(padded(ceil_div(channels, 8), lanes), lanes, 4 * lanes));
  const int64_t run_count = std::ssize(runs), corners = int64_t{1} << g.conv.dims;
  int64_t widest = 0;
  for (const ChannelRun& run : runs) widest = std::max(widest, size(run.channels));
  RunWeights<T> weights(g, runs), sums(g, runs);
  if (grad_input.defined() || wants_sampling) weights.load(weight);
  if (grad_weight.defined()) sums.clear(grad_weight);

  // What threads share of a sample, and what each has of it.
  const int64_t bytes = sample_bytes(g.conv.dims, sizeof(A));
  const int64_t shared = g.offset_groups * bytes + run_count * corners * static_cast<int64_t>(sizeof(A));
  const int64_t pitch = padded(outputs, lanes), element = sizeof(A);
  const DeformTile tile = deform_tile(g, shared + widest * element, pitch * element, kSharedBytes);
  const int64_t most = tile.samples();
  const int64_t samples_size = padded(most * g.offset_groups * bytes, 64), dots_size = padded(most * corners, 16);
  auto* const samples = static_cast<std::byte*>(
      Scratch::of_this_call().reserve(samples_size + (run_count * dots_size + tile.positions * pitch) * sizeof(A)));
  A* const dots = reinterpret_cast<A*>(samples + samples_size);
  A* const packed = dots + run_count * dots_size;

  std::optional<PackedImages<T>> packed_grad;
  std::optional<int64_t> grad_pixel;
  if (grad_input.defined()) {
    if constexpr (std::same_as<T, A>) grad_pixel = pixel_stride(view<T>(grad_input), g.conv.in, channels);
    if (grad_pixel) Tensor(grad_input).zero_();
    else packed_grad.emplace(grad_input, g.conv.in, channels);
  }

  const auto each_image = [&]<class S>(int64_t n, const S* image, int64_t pixel) {
    A* grad_image = nullptr;
    if (packed_grad) packed_grad->clear(), grad_image = packed_grad->at(0);
    else if constexpr (std::same_as<T, A>)
      if (grad_input.defined()) grad_image = view<T>(grad_input).at(n, 0);
    const int64_t to_pixel = packed_grad ? channels : grad_pixel.value_or(0);

    for_each_range(g.positions(), tile.positions, [&](Range positions) {
      const auto in_place = matrix_in_place(view<const T>(grad_output), g.conv.out, outputs, n, positions);
      const Matrix<A> gradient = in_place.value_or(Matrix<A>{packed, size(positions), outputs, pitch, 1});
      for_each_range(g.taps(), tile.taps, [&](Range taps) {
        const SampledPart part{n, positions, taps};
        const auto block = [&](int64_t group) { return samples + group * part.samples() * bytes; };
        const auto each_position = [&](const auto& body) {
          at::parallel_for(positions.begin, positions.end, ceil_div(1 << 8, size(taps) * g.offset_groups),
                           [&](int64_t begin, int64_t end) {
                             body(Range{begin, end});
                           });
        };
        each_position([&](Range some) {
          if (!in_place && taps.begin == 0)
            table().of<T>().deform.pack_positions(view<const T>(grad_output), g.conv.out, n, outputs, some,
                                                  packed + (some.begin - positions.begin) * pitch, pitch);
          for (int64_t group = 0; group < g.offset_groups; ++group)
            sample<T>(g, offset, mask, part, group, some, block(group));
        });
        for_each_item(run_count, [&](int64_t i) {
          const ChannelRun& run = runs[i];
          const int64_t count = size(run.channels), terms = size(taps) * count;
          const Matrix<A> columns{static_cast<A*>(Scratch::of_this_thread().reserve(most * widest * sizeof(A))),
                                  size(positions), terms, terms, 1};
          const auto gradient_of_group =
              columns_of(gradient, run.group * g.conv.out_per_group(), g.conv.out_per_group());
          const auto& kernels = table().of<S>().deform;
          if (grad_weight.defined()) {
            kernels.make_columns(g.conv.dims, block(run.offset_group), part.samples(), image + run.channels.begin,
                                 pixel, count, columns.data, count);
            multiply(sums.matrix(run, taps), gradient_of_group.transposed(), columns, 1);
          }
          if (!grad_image && !wants_sampling) return;
          multiply(columns, gradient_of_group, weights.matrix(run, taps), 0);
          kernels.spread_columns(g.conv.dims, block(run.offset_group), part.samples(), image + run.channels.begin,
                                 pixel, count, columns.data, count,
                                 grad_image ? grad_image + run.channels.begin : nullptr, to_pixel,
                                 wants_sampling ? dots + i * dots_size : nullptr);
        });
        if (!wants_sampling) return;
        each_position([&](Range some) {
          const int64_t begin = (some.begin - positions.begin) * size(taps) * corners;
          const int64_t end = (some.end - positions.begin) * size(taps) * corners;
          for (int64_t i = 0; i < run_count;) {
            A* const total = dots + i * dots_size;
            const int64_t group = runs[i].offset_group;
            for (++i; i < run_count && runs[i].offset_group == group; ++i)
              for (int64_t j = begin; j < end; ++j) total[j] += dots[i * dots_size + j];
            if (grad_offset.defined())
              with_type_of<T>(offset, [&]<class O>(O*) {
                table().of<O>().deform.grad_offset(g, block(group), total, part, group, some, view<O>(grad_offset));
              });
            if (grad_mask.defined())
              with_type_of<T>(mask, [&]<class M>(M*) {
                table().of<M>().deform.grad_mask(g, block(group), total, part, group, some, view<M>(grad_mask));
              });
          }
        });
      });
    });
    if (packed_grad) packed_grad->store(n);
  };
  for_each_images<T>(input, g.conv, grad_weight.defined() || wants_sampling, [&]<class S>(const Images<S>& source) {
    for (int64_t n = source.range.begin; n < source.range.end; ++n) each_image(n, source.at(n), source.pixel);
  });
  if (grad_weight.defined()) sums.store(gradients[2]);
}

Tensor deform_conv(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation) {
  const Deform g =
      ops::check_deform<int64_t>("deform_conv", input, offset, weight, mask, bias, stride, padding, dilation);
  Tensor output = ops::empty_output(input, g.conv, ops::wants_channels_last(input, weight));
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
    dispatch(input, [&]<class T>(T*) { backward<T>(g, grad_output, input, offset, weight, modulation, gradients); });
  }
  return {gradients[0], gradients[1], gradients[2], gradients[3], to_bias};
}

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  m.impl("deform_conv", deform_conv);
  m.impl("deform_conv_backward", deform_conv_backward);
}

}  // namespace
}  // namespace torch_ext::cpu
