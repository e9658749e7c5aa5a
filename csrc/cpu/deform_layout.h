#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <vector>

#include "launch.h"
#include "matrix.h"

// Tensors as deformable convolution reads them: images whose channels lie side by side, the weight in the order of the
// columns, positions as the rows of a matrix.
namespace torch_ext::cpu {

constexpr int64_t kImageBytes = 1 << 20;  // of packed images at a time

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

// Some images, packed so, in the type of the sums.
template <class T>
class PackedImages {
 public:
  PackedImages(const at::Tensor& tensor, const Triple<int64_t>& sizes, int64_t channels, int64_t most = 1)
      : tensor_(tensor),
        sizes_(sizes),
        channels_(channels),
        pixels_(sizes[0] * sizes[1] * sizes[2]),
        count_(std::clamp<int64_t>(kImageBytes / (pixels_ * channels_ * sizeof(Acc<T>)), 1, most)),
        storage_(buffer<T>(count_ * pixels_ * channels_ + kLanes<Acc<T>>, tensor)) {}

  int64_t count() const { return count_; }
  Acc<T>* at(int64_t i) const { return data<T>(storage_) + i * pixels_ * channels_; }
  void clear() { std::fill_n(at(0), count_ * pixels_ * channels_, Acc<T>(0)); }
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

  const at::Tensor& tensor_;
  const Triple<int64_t> sizes_;
  const int64_t channels_, pixels_, count_;
  at::Tensor storage_;
};

// Where images are whose channels lie side by side.
template <class S>
struct Images {
  Range range;
  const S* first;
  int64_t image, pixel;  // from one to the next

  const S* at(int64_t n) const { return first + (n - range.begin) * image; }
};

// Calls body(images) for all of the images at once, where they lie, or for some packed ones after the other, `most` at
// a time; or for all at once if they are not read.
template <class T, class Body>
void for_each_images(const at::Tensor& tensor, const Geometry& g, Range images, int64_t most, bool are_read,
                     const Body& body) {
  const auto v = view<const T>(tensor);
  const auto pixel = pixel_stride(v, g.in, g.in_channels);
  if (pixel || !are_read) return body(Images<T>{images, v.at(images.begin, 0), v.n, pixel.value_or(0)});
  PackedImages<T> packed(tensor, g.in, g.in_channels, most);
  for (int64_t n = images.begin; n < images.end; n += packed.count()) {
    const Range range{n, std::min(images.end, n + packed.count())};
    packed.load(range);
    body(Images<Acc<T>>{range, packed.at(0), packed.at(1) - packed.at(0), g.in_channels});
  }
}

// The weight as [run][output][tap][channel], in Acc<T>; the way back for its gradient.
template <class T>
class RunWeights {
 public:
  using A = Acc<T>;
  RunWeights(const DeformGeometry<int64_t>& g, const std::vector<ChannelRun>& runs) : g_(g), runs_(runs) {}

  void load(const at::Tensor& weight) {
    storage_ = at::empty({weight.numel()}, weight.options().dtype(sum_type<T>()));
    const at::Tensor ordered = weight.flatten(2).transpose(1, 2);
    for (const ChannelRun& run : runs_) of(run).copy_(part_of(ordered, run));
  }
  void clear(const at::Tensor& gradient) {
    storage_ = at::zeros({gradient.numel()}, gradient.options().dtype(sum_type<T>()));
  }
  void store(at::Tensor& gradient) {
    const at::Tensor ordered = gradient.flatten(2).transpose(1, 2);  // a view: it is dense
    for (const ChannelRun& run : runs_) part_of(ordered, run).copy_(of(run));
  }
  void add(const RunWeights& other) { storage_.add_(other.storage_); }
  // [outputs of the group, taps * channels], of some taps.
  Matrix<A> matrix(const ChannelRun& run, Range taps) const {
    const int64_t channels = size(run.channels), row = g_.taps() * channels;
    return {data<T>(storage_) + first(run) + taps.begin * channels, g_.conv.out_per_group(), size(taps) * channels, row,
            1};
  }

 private:
  int64_t first(const ChannelRun& run) const { return run.channels.begin * g_.conv.out_per_group() * g_.taps(); }
  at::Tensor of(const ChannelRun& run) const {
    const std::vector<int64_t> sizes{g_.conv.out_per_group(), g_.taps(), size(run.channels)};
    return storage_.narrow(0, first(run), sizes[0] * sizes[1] * sizes[2]).view(sizes);
  }
  at::Tensor part_of(const at::Tensor& ordered, const ChannelRun& run) const {
    const int64_t outputs = g_.conv.out_per_group(), inputs = g_.conv.in_per_group();
    return ordered.narrow(0, run.group * outputs, outputs)
        .narrow(2, run.channels.begin - run.group * inputs, size(run.channels));
  }

  const DeformGeometry<int64_t>& g_;
  const std::vector<ChannelRun>& runs_;
  at::Tensor storage_;
};

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

}  // namespace torch_ext::cpu
