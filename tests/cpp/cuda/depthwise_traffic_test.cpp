#include "depthwise_case.h"

// What the kernels read and write of the main tensors, and tensors over 2^31 numbers.
namespace torch_ext::test {
namespace {

// Per multiprocessor two images, as of a batch of 264 on a GPU of 132.
ConvCase usual_case(int64_t kernel, Layout layout) {
  ConvCase c = square_case(64, 56, kernel, kernel / 2);
  c.input_layout = c.output_layout = layout;
  c.multiprocessors = 1;
  return c;
}

constexpr double kSectors = 1.3;  // over the fewest that a request's bytes fill
constexpr double kBytes = 1.15;   // over the tensor's

class DepthwiseTraffic : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (simt::kAddressSanitizer || simt::kThreadSanitizer) GTEST_SKIP() << "counted without sanitizers";
  }

  template <class T>
  void expect_little(const ConvCase& c, double sectors = kSectors, double bytes = kBytes) {
    SCOPED_TRACE(c.text() + ", bytes of a number: " + std::to_string(sizeof(T)));
    ConvProblem<T> p(c);
    run_forward(&p);
    p.gpu.expect_loads(p.device_input.buffer, sectors, bytes);
    p.gpu.expect_stores(p.output.buffer, sectors, bytes);
    run_grad_input(&p);
    p.gpu.expect_loads(p.device_grad_output.buffer, sectors, bytes);
    p.gpu.expect_stores(p.grad_input.buffer, sectors, bytes);
    int step = 0;
    run_grad_weight(&p, [&](const simt::LaunchSize& size, auto* kernel, const auto& params) {
      p.gpu.run(size, kernel, params);
      if (step++ > 0) return;
      p.gpu.expect_loads(p.device_grad_output.buffer, sectors, 2);
      p.gpu.expect_loads(p.device_input.buffer, sectors, 2);
    });
  }
};

TEST_F(DepthwiseTraffic, Contiguous) {
  for (int64_t kernel : {3, 5, 7}) {
    ConvCase c = usual_case(kernel, Layout::kContiguous);
    c.in_channels = c.out_channels = c.groups = 16;
    expect_little<float>(c);
    expect_little<Half>(c);
  }
}

TEST_F(DepthwiseTraffic, ChannelsLast) {
  for (int64_t kernel : {3, 5, 7}) {
    expect_little<float>(usual_case(kernel, Layout::kChannelsLast));
    expect_little<Half>(usual_case(kernel, Layout::kChannelsLast));
  }
}

TEST_F(DepthwiseTraffic, Strided) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    ConvCase c = usual_case(3, layout);
    c.stride = {2, 2};
    if (layout == Layout::kContiguous) c.in_channels = c.out_channels = c.groups = 16;
    expect_little<float>(c);
    expect_little<Half>(c);
  }
}

// Rows of an odd number of columns begin anywhere in a sector, and those of 7 or 14 fill one in part.
TEST_F(DepthwiseTraffic, OtherSizes) {
  for (int64_t size : {7, 14, 28, 57})
    for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      ConvCase c = usual_case(3, layout);
      c.in = {size, size};
      const bool odd = layout == Layout::kContiguous && size % 2 == 1;
      expect_little<float>(c);
      expect_little<Half>(c, odd ? 1.6 : kSectors);
    }
}

TEST_F(DepthwiseTraffic, OneAndThreeAxes) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    ConvCase line = usual_case(3, layout), volume = line;
    line.in = {1000}, line.kernel = {3}, line.stride = line.dilation = {1}, line.padding = {1, 1};
    volume.in = {12, 14, 16}, volume.kernel = {3, 3, 3}, volume.stride = volume.dilation = {1, 1, 1};
    volume.padding = {1, 1, 1, 1, 1, 1};
    expect_little<float>(line);
    expect_little<Half>(line);
    expect_little<float>(volume, kSectors, 1.3);  // with what lies around blocks along three axes
    expect_little<Half>(volume, kSectors, 1.3);
  }
}

// The last block of a tensor of over 2^31 numbers.
template <class T>
void check_large(Layout layout) {
  SCOPED_TRACE(static_cast<int>(layout));
  Geometry g = square_case(8, 64, 3, 1).geometry();
  g.batch = (int64_t{1} << 16) + 3;
  const ConvSizes sizes(g);
  Runner gpu;
  const Strides strides(sizes.input, layout);
  T* input = gpu.reserve<T>("input", strides.length);
  T* output = gpu.reserve<T>("output", strides.length);
  std::vector<T> weight(8 * 9, T{});
  for (int i = 0; i < 8; ++i) weight[i * 9 + 4] = simt::host::narrow<T>(2);
  const View<const T> weights = Strides(sizes.weight, Layout::kContiguous).view(gpu.input("weight", weight));
  gpu.write(input + strides.length - 1, {simt::host::narrow<T>(21)});
  const T *const last = output + strides.length - 1, *const no_bias = nullptr;
  const auto launch = [&](const simt::LaunchSize& size, auto* kernel, const auto& params) {
    gpu.run(size, kernel, params, {true, {{size.grid.x - 1, 0, 0}}});
  };
  cuda::depthwise_forward<T>(g, strides.view<const T>(input), weights, no_bias, strides.view(output), 4, launch);
  EXPECT_EQ(simt::host::widen(gpu.read(last)[0]), 42);
  gpu.write(last, {T{}});
  cuda::depthwise_grad_input<T>(g, strides.view<const T>(input), weights, strides.view(output), 4, launch);
  EXPECT_EQ(simt::host::widen(gpu.read(last)[0]), 42);

  const cuda::DepthwiseGradWeight<T> plan(g, strides.view<const T>(output), strides.view<const T>(input), 1 << 17);
  const size_t count = plan.workspace_bytes() / sizeof(Acc<T>);
  auto* workspace = gpu.reserve<Acc<T>>("workspace", count);
  T* grad_weight = gpu.output<T>("grad_weight", weight.size());
  bool first = true;
  plan.run(workspace, Strides(sizes.weight, Layout::kContiguous).view(grad_weight),
           [&](const simt::LaunchSize& size, auto* kernel, const auto& params) {
             if (first) launch(size, kernel, params);
             first = false;
           });
  EXPECT_EQ(gpu.read(workspace + count - 5)[0], 42 * 21);  // of the last channel and the middle tap
}

TEST_F(DepthwiseCuda, LargeTensors) {
  check_large<Half>(Layout::kContiguous);
  check_large<Half>(Layout::kChannelsLast);
}

}  // namespace
}  // namespace torch_ext::test
