#pragma once

// The portable vector: plain loops that a compiler may or may not vectorise. See simd.h.

namespace torch_ext::cpu::scalar {

template <class A>
struct Vec {
  static constexpr int kSize = static_cast<int>(kLanes<A>);
  A lane[kSize];

  static Vec broadcast(A x) {
    Vec v;
    for (int i = 0; i < kSize; ++i) v.lane[i] = x;
    return v;
  }
  static Vec zero() { return broadcast(0); }
  static Vec load(const A* p) {
    Vec v;
    for (int i = 0; i < kSize; ++i) v.lane[i] = p[i];
    return v;
  }
  void store(A* p) const {
    for (int i = 0; i < kSize; ++i) p[i] = lane[i];
  }
  friend Vec operator+(Vec a, const Vec& b) {
    for (int i = 0; i < kSize; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  friend Vec operator-(Vec a, const Vec& b) {
    for (int i = 0; i < kSize; ++i) a.lane[i] -= b.lane[i];
    return a;
  }
};

template <class A>
Vec<A> fma(const Vec<A>& a, const Vec<A>& b, Vec<A> c) {
  for (int i = 0; i < Vec<A>::kSize; ++i) c.lane[i] += a.lane[i] * b.lane[i];
  return c;
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
Vec<A> permute(const Vec<A>& x, const int32_t* index) {
  constexpr int kWords = sizeof(A) / 4;
  Vec<A> y;
  for (int i = 0; i < Vec<A>::kSize; ++i) y.lane[i] = x.lane[index[kWords * i] / kWords];
  return y;
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
