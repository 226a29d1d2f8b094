// One query of each stream over its sinks and its window, read where they lie in the paged cache.
//
// torch's fused kernel wants keys and values side by side: gathering them costs as much as the
// attention itself. Here one pass goes over the slots: sinks first, turned on the way by the
// stream's angle (R(e) k instead of R(-e) q), then the window. Scores, softmax and sums are float32.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

// exp(x) for x <= 0, to 2e-7: the compiler makes vectors of it, which it does not of std::exp.
inline float exp_negative(float x) {
  const float t = std::max(x, -87.0f) * 1.44269504088896341f;
  const float whole = std::nearbyint(t);
  const float f = (t - whole) * 0.693147180559945309f;
  float p = 1.0f / 5040.0f;
  p = p * f + 1.0f / 720.0f;
  p = p * f + 1.0f / 120.0f;
  p = p * f + 1.0f / 24.0f;
  p = p * f + 1.0f / 6.0f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  union {
    int32_t i;
    float f;
  } scale;
  scale.i = (static_cast<int32_t>(whole) + 127) << 23;
  return p * scale.f;
}

// Channels as float32: where they are, or widened into `room`.
inline const float* widened(const float* from, float*, int64_t) { return from; }

inline __attribute__((always_inline)) const float* widened(const at::BFloat16* from, float* room, int64_t count) {
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
  uint32_t* out = reinterpret_cast<uint32_t*>(room);
#pragma omp simd
  for (int64_t d = 0; d < count; ++d) out[d] = static_cast<uint32_t>(bits[d]) << 16;
  return room;
}

// Slots are far apart, and the processor cannot guess the next one.
constexpr int64_t AHEAD = 6;

template <typename T>
inline void fetch(const T* from, int64_t count) {
  const char* p = reinterpret_cast<const char*>(from);
  for (int64_t line = 0; line < count * static_cast<int64_t>(sizeof(T)); line += 64)
    __builtin_prefetch(p + line);
}

inline __attribute__((always_inline)) float dot(const float* a, const float* b, int64_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < count; ++d) sum += a[d] * b[d];
  return sum;
}

inline __attribute__((always_inline)) void add(float* to, const float* from, float weight, int64_t count) {
#pragma omp simd
  for (int64_t d = 0; d < count; ++d) to[d] += weight * from[d];
}

// Turns the first 2 * pairs channels of a key.
void turn(float* key, const float* cos, const float* sin, int64_t pairs, bool neox) {
  for (int64_t i = 0; i < pairs; ++i) {
    float& a = neox ? key[i] : key[2 * i];
    float& b = neox ? key[i + pairs] : key[2 * i + 1];
    const float turned = a * cos[i] - b * sin[i];
    b = b * cos[i] + a * sin[i];
    a = turned;
  }
}

struct Shape {
  int64_t heads, kv_heads, size, sinks, keys, pairs;
  bool neox;
  float scale;
};

// One KV head of one stream; SIZE channels, or 0 where the compiler is not told how many.
template <typename T, int64_t SIZE>
void one(const Shape& shape, const T* query, const T* cache, const int64_t* slots,
         const bool* visible, const float* cos, const float* sin, T* output, int64_t head,
         std::vector<float>& room) {
  const int64_t group = shape.heads / shape.kv_heads, keys = shape.keys;
  const int64_t size = SIZE ? SIZE : shape.size;
  room.resize(group * (keys + 2 * size) + size);
  float* scores = room.data();
  float* q = scores + group * keys;
  float* out = q + group * size;
  float* kv = out + group * size;
  const float* asked = widened(query + head * group * size, q, group * size);
  std::fill(out, out + group * size, 0.0f);

  const int64_t row = shape.kv_heads * 2 * size;
  const T* base = cache + head * 2 * size;
  for (int64_t k = 0; k < keys; ++k) {
    if (k + AHEAD < keys) fetch(base + slots[k + AHEAD] * row, size);
    if (!visible[k]) {
      for (int64_t g = 0; g < group; ++g)
        scores[g * keys + k] = -std::numeric_limits<float>::infinity();
      continue;
    }
    const float* key = widened(base + slots[k] * row, kv, size);
    if (k < shape.sinks && shape.pairs) {
      std::copy(key, key + size, kv);
      turn(kv, cos, sin, shape.pairs, shape.neox);
      key = kv;
    }
    for (int64_t g = 0; g < group; ++g)
      scores[g * keys + k] = shape.scale * dot(asked + g * size, key, size);
  }
  for (int64_t g = 0; g < group; ++g) {
    float* s = scores + g * keys;
    float most = s[0];
    for (int64_t k = 1; k < keys; ++k) most = std::max(most, s[k]);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < keys; ++k) {
      const float e = s[k] == -std::numeric_limits<float>::infinity() ? 0.0f
                                                                      : exp_negative(s[k] - most);
      s[k] = e;
      sum += e;
    }
    const float share = 1.0f / sum;
    for (int64_t k = 0; k < keys; ++k) s[k] *= share;
  }
  for (int64_t k = 0; k < keys; ++k) {
    if (k + AHEAD < keys) fetch(base + slots[k + AHEAD] * row + size, size);
    if (!visible[k]) continue;
    const float* value = widened(base + slots[k] * row + size, kv, size);
    for (int64_t g = 0; g < group; ++g) add(out + g * size, value, scores[g * keys + k], size);
  }
  for (int64_t d = 0; d < group * size; ++d)
    output[head * group * size + d] = static_cast<T>(out[d]);
}

// query, output [tokens, heads, size]; rows int64 [n], the streams' tokens; cache
// [slots, kv_heads, 2 * size]; slots int64 and visible bool [n, keys], sinks first; cos and sin
// float32 [n, pairs], no pairs where keys are not turned.
void decode(const at::Tensor& query, const at::Tensor& rows, const at::Tensor& cache,
            const at::Tensor& slots, const at::Tensor& visible, int64_t sinks,
            const at::Tensor& cos, const at::Tensor& sin, bool neox, double scale,
            at::Tensor output) {
  TORCH_CHECK(query.stride(2) == 1 && query.stride(1) == query.size(2), "query: heads apart");
  TORCH_CHECK(output.stride(2) == 1 && output.stride(1) == output.size(2), "output: heads apart");
  TORCH_CHECK(cache.is_contiguous() && slots.is_contiguous() && visible.is_contiguous());
  TORCH_CHECK(cos.is_contiguous() && sin.is_contiguous() && rows.is_contiguous());
  const Shape shape{query.size(1), cache.size(1), query.size(2), sinks,
                    slots.size(1), cos.size(1),   neox,          static_cast<float>(scale)};
  const int64_t* at_row = rows.const_data_ptr<int64_t>();
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  const bool* sees = visible.const_data_ptr<bool>();
  const float* c = cos.const_data_ptr<float>();
  const float* s = sin.const_data_ptr<float>();
  auto all = [&](auto zero, auto channels) {
    using T = decltype(zero);
    constexpr int64_t SIZE = decltype(channels)::value;
    const T* q = query.const_data_ptr<T>();
    const T* kv = cache.const_data_ptr<T>();
    T* out = output.mutable_data_ptr<T>();
    at::parallel_for(0, slots.size(0) * shape.kv_heads, 1, [&](int64_t a, int64_t b) {
      std::vector<float> room;
      for (int64_t i = a; i < b; ++i) {
        const int64_t n = i / shape.kv_heads;
        one<T, SIZE>(shape, q + at_row[n] * query.stride(0), kv, slot + n * shape.keys,
               sees + n * shape.keys, c + n * shape.pairs, s + n * shape.pairs,
               out + at_row[n] * output.stride(0), i % shape.kv_heads, room);
      }
    });
  };
  auto of_type = [&](auto zero) {
    if (shape.size == 64)
      all(zero, std::integral_constant<int64_t, 64>());
    else if (shape.size == 128)
      all(zero, std::integral_constant<int64_t, 128>());
    else
      all(zero, std::integral_constant<int64_t, 0>());
  };
  if (query.scalar_type() == at::kBFloat16) {
    of_type(at::BFloat16());
  } else {
    TORCH_CHECK(query.scalar_type() == at::kFloat, "query: bfloat16 or float32");
    of_type(0.0f);
  }
}

}  // namespace

TORCH_LIBRARY(vllm_sink, library) {
  library.def(
      "cpu_decode(Tensor query, Tensor rows, Tensor cache, Tensor slots, Tensor visible, "
      "int sinks, Tensor cos, Tensor sin, bool neox, float scale, Tensor(a!) output) -> ()");
}

TORCH_LIBRARY_IMPL(vllm_sink, CPU, library) { library.impl("cpu_decode", &decode); }
