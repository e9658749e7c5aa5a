#pragma once

// The portable vector, of GCC's and Clang's vector types: without instructions of that width the compiler takes
// narrower ones. See simd.h.

namespace torch_ext::cpu::scalar {

template <class A>
struct Vec {
  static constexpr int kSize = static_cast<int>(kLanes<A>);
  typedef A Lanes __attribute__((vector_size(sizeof(A) * kSize)));
  Lanes lane;

  static Vec broadcast(A x) { return {x - Lanes{}}; }
  static Vec zero() { return {Lanes{}}; }
  static Vec load(const A* p) {
    Vec v;
    __builtin_memcpy(&v.lane, p, sizeof(v.lane));
    return v;
  }
  void store(A* p) const { __builtin_memcpy(p, &lane, sizeof(lane)); }
  friend Vec operator+(const Vec& a, const Vec& b) { return {a.lane + b.lane}; }
  friend Vec operator-(const Vec& a, const Vec& b) { return {a.lane - b.lane}; }
};

template <class A>
Vec<A> fma(const Vec<A>& a, const Vec<A>& b, const Vec<A>& c) {
  return {c.lane + a.lane * b.lane};
}

template <class A>
const Vec<A>& opaque(const Vec<A>& x) {
  return x;
}

template <class T>
Vec<Acc<T>> load_partial(const T* p, int64_t n) {
  Vec<Acc<T>> v = Vec<Acc<T>>::zero();
  for (int64_t i = 0; i < n; ++i) v.lane[i] = widen(p[i]);
  return v;
}

template <class A>
Vec<A> load_masked(const A* p, const Mask<A>* mask) {
  Vec<A> v;
  for (int i = 0; i < Vec<A>::kSize; ++i) v.lane[i] = mask[i] ? p[i] : 0;
  return v;
}

template <class T>
void store_partial(T* p, const Vec<Acc<T>>& v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) narrow(v.lane[i], p + i);
}

template <class T>
Vec<Acc<T>> load_wide(const T* p) {
  return load_partial(p, kLanes<Acc<T>>);
}

template <class T>
void store_rounded(T* p, const Vec<Acc<T>>& v) {
  store_partial(p, v, kLanes<Acc<T>>);
}

template <class A>
struct Permutation {
  explicit Permutation(const int32_t* index) : index(index) {}

  const int32_t* index;
};
template <class A>
Vec<A> permute(const Vec<A>& x, Permutation<A> p) {
  constexpr int kWords = sizeof(A) / 4;
  Vec<A> y;
  for (int i = 0; i < Vec<A>::kSize; ++i) y.lane[i] = x.lane[p.index[kWords * i] / kWords];
  return y;
}

template <class A>
Vec<A> even_lanes(const Vec<A>& a, const Vec<A>& b) {
  constexpr int kHalf = Vec<A>::kSize / 2;
  Vec<A> y;
  for (int i = 0; i < Vec<A>::kSize; ++i) y.lane[i] = i < kHalf ? a.lane[2 * i] : b.lane[2 * (i - kHalf)];
  return y;
}

template <class A>
void zip(const Vec<A>& a, const Vec<A>& b, Vec<A> (&pair)[2]) {
  constexpr int kHalf = Vec<A>::kSize / 2;
  for (int i = 0; i < 2 * kHalf; ++i) {
    pair[i / kHalf].lane[2 * i % (2 * kHalf)] = a.lane[i];
    pair[i / kHalf].lane[(2 * i + 1) % (2 * kHalf)] = b.lane[i];
  }
}

template <class A>
void transpose(Vec<A> (&rows)[kLanes<A>]) {
  for (int i = 0; i < kLanes<A>; ++i)
    for (int j = 0; j < i; ++j) {
      const A x = rows[i].lane[j];
      rows[i].lane[j] = rows[j].lane[i];
      rows[j].lane[i] = x;
    }
}

}  // namespace torch_ext::cpu::scalar
