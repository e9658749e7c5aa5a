#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

// A thread's scratch memory, kept between calls: first touch of fresh pages costs more than most convolutions.
namespace torch_ext::cpu {

class Scratch {
 public:
  // At least `bytes`, aligned to 64, contents undefined.
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      data_.reset();
      size_ = 0;
      const size_t rounded = (bytes + 63) / 64 * 64;
      data_.reset(std::aligned_alloc(64, rounded));
      if (!data_) throw std::bad_alloc();
      size_ = rounded;
    }
    return data_.get();
  }

  // For the items that a thread works on.
  static Scratch& of_this_thread() {
    static thread_local Scratch scratch;
    return scratch;
  }

  // For the call that a thread makes, whose items may run on the same thread: what they share, the largest so far.
  static Scratch& of_this_call() {
    static thread_local Scratch scratch;
    return scratch;
  }

 private:
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

}  // namespace torch_ext::cpu
