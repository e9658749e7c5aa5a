#pragma once

// A separable convolution in pieces: some images at a time or, where one image is much, some rows of one along an axis.
#include "plan.h"

namespace torch_ext::cpu {

// Rows of what lies between the steps (hidden), and of the input.
struct Piece {
  Range images;
  // Each row of hidden is in one piece, which computes it from these rows of the input.
  Range hidden, source;
  // Each row of the input is in one piece, which computes its gradient from these rows of hidden's; with `hidden`.
  Range target, reach;
};

class Pieces {
 public:
  // Of at most `most` bytes of hidden, or one row, or four times as many as two pieces share. Only a whole image where
  // the kernel fits into the padding.
  Pieces(const ConvGeometry<int64_t>& depthwise, int64_t element_bytes, int64_t most) : g_(depthwise) {
    const Triple<int64_t>& size = g_.out;
    const int64_t image = g_.out_channels * size[0] * size[1] * size[2] * element_bytes;
    images_ = std::clamp<int64_t>(most / image, 1, g_.batch);
    axis_ = 3 - g_.dims;
    while (2 * size[axis_] < std::max({size[0], size[1], size[2]})) ++axis_;
    rows_ = size[axis_];
    if (image <= most || g_.pad_before[axis_] >= extent() || g_.pad_after[axis_] >= extent()) return;
    // A piece computes some rows of hidden's gradient that its neighbour computes, too: few of many.
    const int64_t shared =
        std::min(ceil_div(std::max<int64_t>(extent() - g_.stride[axis_], 0), g_.stride[axis_]), rows_);
    rows_ = std::clamp<int64_t>(std::max(most / (image / size[axis_]), 4 * shared), 1, size[axis_]);
  }

  int axis() const { return axis_; }
  int64_t count() const { return ceil_div(g_.batch, images_) * parts(); }

  Piece piece(int64_t i) const {
    const Range images = part(g_.batch, ceil_div(g_.batch, images_), i / parts());
    const Range hidden = part(g_.out[axis_], parts(), i % parts());
    const int64_t in = g_.in[axis_], out = g_.out[axis_], stride = g_.stride[axis_], pad = g_.pad_before[axis_];
    if (parts() == 1) return {images, hidden, {0, in}, {0, in}, hidden};
    const auto first_of = [&](int64_t row) { return std::clamp<int64_t>(row * stride - pad, 0, in); };
    const Range source{first_of(hidden.begin), std::min(in, (hidden.end - 1) * stride - pad + extent())};
    const Range target{first_of(hidden.begin), hidden.end == out ? in : first_of(hidden.end)};
    if (target.begin >= target.end) return {images, hidden, source, target, hidden};
    const Range reach{std::max<int64_t>(0, target.begin + pad - extent() + 1) / stride,
                      std::min(out, (target.end - 1 + pad) / stride + 1)};
    return {images, hidden, source, target, reach};
  }

 private:
  int64_t extent() const { return (g_.kernel[axis_] - 1) * g_.dilation[axis_] + 1; }
  int64_t parts() const { return ceil_div(g_.out[axis_], rows_); }

  ConvGeometry<int64_t> g_;
  int64_t images_, rows_;
  int axis_;
};

// The part of a convolution between these rows of its input and of its output.
inline ConvGeometry<int64_t> part_of(ConvGeometry<int64_t> g, Range images, int axis, Range in, Range out) {
  g.batch = size(images);
  g.pad_before[axis] += in.begin - out.begin * g.stride[axis];
  g.in[axis] = size(in);
  g.out[axis] = size(out);
  const int64_t reached = (g.out[axis] - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis] + 1;
  g.pad_after[axis] = std::max<int64_t>(0, reached - g.pad_before[axis] - g.in[axis]);
  return g;
}

}  // namespace torch_ext::cpu
