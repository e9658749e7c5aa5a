#pragma once

#include <cstddef>

// What a sanitizer must be told about fibers, and nothing without it.
#if defined(__has_feature)
#define SANITIZER_FEATURE(name) __has_feature(name)
#else
#define SANITIZER_FEATURE(name) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || SANITIZER_FEATURE(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
namespace torch_ext::simt {
inline constexpr bool kAddressSanitizer = true;
}
#else
namespace torch_ext::simt {
inline constexpr bool kAddressSanitizer = false;
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
inline void __asan_unpoison_memory_region(void*, size_t) {}
}  // namespace torch_ext::simt
#endif

#if defined(__SANITIZE_THREAD__) || SANITIZER_FEATURE(thread_sanitizer)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
namespace torch_ext::simt {
inline constexpr bool kThreadSanitizer = true;
}
#else
namespace torch_ext::simt {
inline constexpr bool kThreadSanitizer = false;
inline constexpr unsigned __tsan_switch_to_fiber_no_sync = 1;
inline void AnnotateIgnoreReadsBegin(const char*, int) {}
inline void AnnotateIgnoreReadsEnd(const char*, int) {}
inline void AnnotateIgnoreWritesBegin(const char*, int) {}
inline void AnnotateIgnoreWritesEnd(const char*, int) {}
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_set_fiber_name(void*, const char*) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
}  // namespace torch_ext::simt
#endif

namespace torch_ext::simt {

// What the emulator itself reads and writes is none of ThreadSanitizer's business: in functions that are marked so, and
// in all that they call while an Unseen lives. It must end on the fiber on which it began: none is left within one.
#define UNSEEN_FUNCTION __attribute__((no_sanitize("thread")))

class Unseen {
 public:
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

}  // namespace torch_ext::simt
