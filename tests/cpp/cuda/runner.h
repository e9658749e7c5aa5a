#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "cuda/kernels/simt.h"

#if defined(__CUDACC__)
#include "device.h"
#else
#include "emulated_device.h"
#endif

// Runs kernels in a test, with one text for both: on the emulator in every order, whose results must agree, or on the
// GPU if nvcc compiles the test.
//
//   TEST_F(CudaTest, Scales) {
//     const float* x = gpu.input("x", values);
//     float* y = gpu.output<float>("y", values.size());
//     const ScaleParams p{x, y, 2};
//     gpu.run(scale_size(p), scale_kernel<float>, p);
//     EXPECT_EQ(gpu.read(y), expected);
//     gpu.expect_loads(x, 1.1, 1.0);
//   }
namespace torch_ext::test {

struct RunOptions {
  bool same_in_every_order = true;          // to the bit; sums of atomics are not
  std::vector<simt::Dim> only_blocks = {};  // on the emulator; all, if empty
};

class Runner {
 public:
  template <class T>
  const T* input(const std::string& name, const std::vector<T>& values) {
    return in_out(name, values);
  }

  // Filled with bytes of 0xff, which are NaN, so that what the kernel leaves out is seen.
  template <class T>
  T* output(const std::string& name, size_t count) {
    const std::vector<unsigned char> bytes(count * sizeof(T), 0xff);
    return static_cast<T*>(add(name, bytes.size(), bytes.data()));
  }

  template <class T>
  T* in_out(const std::string& name, const std::vector<T>& values) {
    return static_cast<T*>(add(name, values.size() * sizeof(T), values.data()));
  }

  // For tensors that are too large for the memory: on the emulator only the pages are there that are touched. Orders
  // are not compared.
  template <class T>
  T* reserve(const std::string& name, size_t count) {
    return static_cast<T*>(add(name, count * sizeof(T), nullptr));
  }

  // From any place in a buffer: so many numbers, or all that follow.
  template <class T>
  std::vector<T> read(const T* from, size_t count = 0) const {
    const Buffer& buffer = find(from);
    const size_t offset = reinterpret_cast<const char*>(from) - buffer.data.get();
    std::vector<T> values(count > 0 ? count : (buffer.bytes - offset) / sizeof(T));
    device::copy(values.data(), from, values.size() * sizeof(T));
    return values;
  }

  template <class T>
  void write(const T* to, const std::vector<T>& values) {
    device::copy(const_cast<T*>(to), values.data(), values.size() * sizeof(T));
  }

  template <class Params>
  void run(const simt::LaunchSize& size, void (*kernel)(Params), const std::type_identity_t<Params>& params,
           const RunOptions& options = {}) {
    const Contents before = contents();
    log_.clear();
    device::launch(size, kernel, params, 0, options.only_blocks, &log_);
    const Contents after = contents();
    for (int order = 1; order < device::kOrders; ++order) {
      for (size_t i = 0; i < buffers_.size(); ++i)
        device::copy(buffers_[i].data.get(), before[i].data(), before[i].size());
      device::launch(size, kernel, params, order, options.only_blocks, nullptr);
      if (options.same_in_every_order) expect_same(after, contents(), device::kOrderNames[order]);
    }
  }

  // Of the last run: at most so many sectors per request, in multiples of the fewest that are possible, and so many
  // bytes moved, in multiples of the buffer's size. Nothing is counted on a GPU.
  void expect_loads(const void* buffer, double sectors, double bytes) const {
    const Buffer& b = find(buffer);
    log_.expect_loads(b.name, sectors, bytes * static_cast<double>(b.bytes));
  }
  void expect_stores(const void* buffer, double sectors, double bytes) const {
    const Buffer& b = find(buffer);
    log_.expect_stores(b.name, sectors, bytes * static_cast<double>(b.bytes));
  }

 private:
  using Contents = std::vector<std::vector<char>>;
  struct Buffer {
    std::string name;
    size_t bytes;
    std::shared_ptr<char> data;
    bool reserved;
  };

  void* add(const std::string& name, size_t bytes, const void* values) {
    const bool reserved = values == nullptr && bytes > 0;
    buffers_.push_back({name, bytes, reserved ? device::reserve(bytes) : device::allocate(bytes), reserved});
    char* data = buffers_.back().data.get();
    if (!reserved) device::copy(data, values, bytes);
    log_.name(data, bytes, name);
    return data;
  }

  const Buffer& find(const void* p) const {
    for (const Buffer& b : buffers_)
      if (p == b.data.get() || (p > b.data.get() && p < b.data.get() + b.bytes)) return b;
    throw std::invalid_argument("no buffer of this runner");
  }

  Contents contents() const {
    Contents all;
    for (const Buffer& b : buffers_) {
      all.emplace_back(b.reserved ? 0 : b.bytes);
      device::copy(all.back().data(), b.data.get(), all.back().size());
    }
    return all;
  }

  void expect_same(const Contents& forward, const Contents& other, const char* order) const {
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const auto at = std::mismatch(forward[i].begin(), forward[i].end(), other[i].begin()).first;
      if (at != forward[i].end())
        ADD_FAILURE() << buffers_[i].name << " depends on the order of the threads: forward and " << order
                      << " differ from byte " << at - forward[i].begin();
    }
  }

  std::vector<Buffer> buffers_;
  device::Log log_;
};

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!device::exists()) GTEST_SKIP() << "there is no GPU";
  }

  Runner gpu;
};

}  // namespace torch_ext::test
