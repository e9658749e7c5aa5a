#include "runner.h"

#include <algorithm>
#include <vector>

#include "cuda/kernels/simt_rounding.h"
#include "example.cuh"

// Tests of kernels as they are meant to be: the same text for the emulator and for a GPU.
namespace torch_ext::test {
namespace {

using simt::host::narrow;
using simt::host::widen;

template <class T>
class Examples : public CudaTest {};
using Types = ::testing::Types<float, double, BFloat16, Half>;
TYPED_TEST_SUITE(Examples, Types);

TYPED_TEST(Examples, Neighbours) {
  using T = TypeParam;
  for (int columns : {1, 63, 64, 65, 200}) {
    const int rows = 3, count = rows * columns;
    Runner gpu;
    std::vector<T> x(count);
    for (int i = 0; i < count; ++i) x[i] = narrow<T>(i * 7 % 17 - 8);  // whole numbers, whose sums are exact
    const NeighbourParams<T> p{gpu.input("x", x), gpu.output<T>("y", count), rows, columns};
    gpu.run(neighbour_size(p), neighbour_kernel<T>, p);

    const std::vector<T> y = gpu.read(p.y);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < columns; ++i) {
        Acc<T> sum = 0;
        for (int j = std::max(i - 1, 0); j <= std::min(i + 1, columns - 1); ++j) sum += widen(x[r * columns + j]);
        ASSERT_EQ(widen(y[r * columns + i]), sum) << "of row " << r << ", column " << i << " of " << columns;
      }
  }
}

TYPED_TEST(Examples, TrafficOfNeighbours) {
  using T = TypeParam;
  const int rows = 4, columns = 1024, count = rows * columns;
  Runner& gpu = this->gpu;
  const NeighbourParams<T> p{gpu.input("x", std::vector<T>(count)), gpu.template output<T>("y", count), rows, columns};
  gpu.run(neighbour_size(p), neighbour_kernel<T>, p);
  gpu.expect_loads(p.x, 1.2, 2.0);  // the columns beside the 64 of a block lie in two sectors
  gpu.expect_stores(p.y, 1.0, 1.0);
}

TYPED_TEST(Examples, Scale) {
  using T = TypeParam;
  Runner& gpu = this->gpu;
  std::vector<T> x(1600);
  for (size_t i = 0; i < x.size(); ++i) x[i] = narrow<T>(i % 100);
  const ScaleParams<T> p{gpu.input("x", x), gpu.template output<T>("y", x.size()), static_cast<int>(x.size())};
  gpu.run(scale_size(p), scale_kernel<T>, p);
  const std::vector<T> y = gpu.read(p.y);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(widen(y[i]), 2 * widen(x[i]) + 1) << i;
  gpu.expect_loads(p.x, 1.0, 1.0);
  gpu.expect_stores(p.y, 1.0, 1.0);
}

TEST_F(CudaTest, LargeTensors) {
  const int64_t count = (int64_t{1} << 31) + 1000;
  const Half* x = gpu.reserve<Half>("x", count);
  const CopyParams<Half> p{x, gpu.reserve<Half>("y", count), count};
  gpu.write(x + count - 1, {Half{42}});
  const simt::LaunchSize size = copy_size(p);
  gpu.run(size, copy_kernel<int64_t, Half>, p, {true, {{size.grid.x - 1, 0, 0}}});
  EXPECT_EQ(gpu.read(p.y + count - 1)[0].bits, 42);
}

}  // namespace
}  // namespace torch_ext::test
