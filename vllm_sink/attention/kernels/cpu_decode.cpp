// One query of each stream over its sinks and its window, read where they lie in the paged cache.
//
// torch's fused kernel wants keys and values side by side: gathering them costs as much as the
// attention itself. Here one pass goes over the slots: sinks first, turned on the way by the
// stream's angle (R(e) k instead of R(-e) q), then the window; sixteen keys at a time, of all heads,
// since pages of memory are dearer to find than to read. The softmax is the one that goes along
// (Milakov and Gimelshein, arXiv 1805.02867): what was summed is scaled down when a larger score
// comes. Scores and sums are float32.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

// Sixteen floats: a register where the processor has such, else several.
constexpr int64_t LANES = 16;
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
constexpr float NEVER = -std::numeric_limits<float>::infinity();

INLINE Floats& at(float* from, int64_t vector) { return reinterpret_cast<Floats*>(from)[vector]; }

// `count` channels as float32 in `room`.
INLINE void widen(const float* from, float* room, int64_t count) {
#pragma omp simd
  for (int64_t d = 0; d < count; ++d) room[d] = from[d];
}

INLINE void widen(const at::BFloat16* from, float* room, int64_t count) {
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
  uint32_t* out = reinterpret_cast<uint32_t*>(room);
#pragma omp simd
  for (int64_t d = 0; d < count; ++d) out[d] = static_cast<uint32_t>(bits[d]) << 16;
}

#if defined(__clang__)
#define EVEN(a, b) \
  __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) \
  __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#else
constexpr Ints EVENS = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
#define EVEN(a, b) __builtin_shuffle(a, b, EVENS)
#define ODD(a, b) __builtin_shuffle(a, b, EVENS + 1)
#endif

// Lane i of the result is the sum of the lanes of sums[i]: neighbours are added, four times.
INLINE Floats summed(Floats (&sums)[LANES]) {
#pragma GCC unroll 4
  for (int64_t left = LANES / 2; left; left /= 2)
#pragma GCC unroll 8
    for (int64_t i = 0; i < left; ++i)
      sums[i] = EVEN(sums[2 * i], sums[2 * i + 1]) + ODD(sums[2 * i], sums[2 * i + 1]);
  return sums[0];
}

INLINE float greatest(Floats x) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    const Floats even = EVEN(x, x), odd = ODD(x, x);
    x = even > odd ? even : odd;
  }
  return x[0];
}

// exp(x) for x <= 0, to 2e-7; zero below what a float can hold.
INLINE Floats exp_negative(Floats x) {
  const Floats t = x * 1.44269504088896341f;
  const Ints whole = __builtin_convertvector((x < -87.0f ? Floats{} : t) - 0.5f, Ints);
  const Floats f = (t - __builtin_convertvector(whole, Floats)) * 0.693147180559945309f;
  Floats p = f * (1.0f / 5040.0f) + 1.0f / 720.0f;
  p = p * f + 1.0f / 120.0f;
  p = p * f + 1.0f / 24.0f;
  p = p * f + 1.0f / 6.0f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return x < -87.0f ? Floats{} : p * (Floats)((whole + 127) << 23);
}

// Rows of the cache are far apart where a block ends, and the processor cannot guess the next one.
constexpr int64_t AHEAD = 8;

template <typename T>
INLINE void fetch(const T* from, int64_t count) {
  const char* p = reinterpret_cast<const char*>(from);
  for (int64_t line = 0; line < count * static_cast<int64_t>(sizeof(T)); line += 64)
    __builtin_prefetch(p + line);
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

// What a thread works with: queries and sums of all heads, each row filled with zeros to whole
// vectors; a block of keys or values; each head's share of its keys, its sum and its greatest score.
struct Room {
  int64_t wide;
  std::vector<Floats> memory;
  std::vector<float> most;
  float *query, *out, *block, *share, *sum;

  explicit Room(const Shape& shape)
      : wide((shape.size + LANES - 1) / LANES * LANES),
        memory((2 * shape.heads + LANES) * wide / LANES + 2 * shape.heads),
        most(shape.heads) {
    query = reinterpret_cast<float*>(memory.data());
    out = query + shape.heads * wide;
    block = out + shape.heads * wide;
    share = block + LANES * wide;
    sum = share + shape.heads * LANES;
  }
};

// Scores of a block of keys by one head, and what becomes of its sums.
INLINE void score(const Shape& shape, Room& room, int64_t head, int64_t wide, Floats hidden) {
  const int64_t vectors = wide / LANES;
  float* q = room.query + head * wide;
  Floats sums[LANES];
#pragma GCC unroll 16
  for (int64_t i = 0; i < LANES; ++i) {
    float* key = room.block + i * wide;
    sums[i] = at(q, 0) * at(key, 0);
    for (int64_t v = 1; v < vectors; ++v) sums[i] += at(q, v) * at(key, v);
  }
  const Floats scores = summed(sums) * shape.scale + hidden;
  const float here = greatest(scores);
  Floats& sum = at(room.sum, head);
  if (here > room.most[head]) {
    // exp(-inf) where this is the first that is seen: nothing was summed yet.
    const float less = std::exp(room.most[head] - here);
    room.most[head] = here;
    sum *= less;
    for (int64_t v = 0; v < vectors; ++v) at(room.out + head * wide, v) *= less;
  }
  const Floats share = room.most[head] == NEVER ? Floats{} : exp_negative(scores - room.most[head]);
  at(room.share, head) = share;
  sum += share;
}

// A block of values, by one head's shares.
template <int64_t SIZE>
INLINE void gain(Room& room, int64_t head, int64_t wide) {
  const float* share = room.share + head * LANES;
  float* out = room.out + head * wide;
  if constexpr (SIZE > 0) {
    // Two sums of each channel: one would wait for itself.
    constexpr int64_t VECTORS = (SIZE + LANES - 1) / LANES;
    Floats sums[2 * VECTORS] = {};
    for (int64_t i = 0; i < LANES; i += 2)
#pragma GCC unroll 16
      for (int64_t v = 0; v < 2 * VECTORS; ++v)
        sums[v] += share[i + v / VECTORS] * at(room.block + i * wide, v);
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; ++v) at(out, v) += sums[v] + sums[v + VECTORS];
  } else {
    for (int64_t i = 0; i < LANES; ++i)
      for (int64_t v = 0; v < wide / LANES; ++v)
        at(out, v) += share[i] * at(room.block + i * wide, v);
  }
}

// KV heads [first_head, last_head) of one stream; SIZE channels, or 0 where the compiler is not
// told how many.
template <typename T, int64_t SIZE>
void attend(const Shape& shape, const T* query, const T* cache, const int64_t* slots,
            const bool* visible, const float* cos, const float* sin, T* output, int64_t first_head,
            int64_t last_head, Room& room) {
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t size = SIZE ? SIZE : shape.size;
  const int64_t wide = SIZE ? (SIZE + LANES - 1) / LANES * LANES : room.wide;
  const int64_t begin = first_head * group, end = last_head * group;
  for (int64_t h = begin; h < end; ++h) {
    widen(query + h * size, room.query + h * wide, size);
    std::fill(room.out + h * wide, room.out + (h + 1) * wide, 0.0f);
    at(room.sum, h) = Floats{};
    room.most[h] = NEVER;
  }
  const int64_t row = shape.kv_heads * 2 * size;
  for (int64_t first = 0; first < shape.keys; first += LANES) {
    const int64_t count = std::min(LANES, shape.keys - first);
    // Mostly all sixteen are seen, and nothing is asked key by key.
    bool sees[LANES] = {};
    std::copy(visible + first, visible + first + count, sees);
    const bool all = std::all_of(sees, sees + LANES, [](bool seen) { return seen; });
    Floats hidden = {};
    if (!all)
      for (int64_t i = 0; i < LANES; ++i) hidden[i] = sees[i] ? 0.0f : NEVER;
    for (int64_t head = first_head; head < last_head; ++head) {
      // Nothing of what is hidden: a slot that was never written may hold anything.
      const T* base = cache + head * 2 * size;
      auto take = [&](int64_t i, int64_t offset) {
        float* to = room.block + i * wide;
        if (all || sees[i])
          widen(base + slots[first + i] * row + offset, to, size);
        else
          std::fill(to, to + wide, 0.0f);
      };
      for (int64_t i = 0; i < LANES; ++i) {
        if (first + i + AHEAD < shape.keys) fetch(base + slots[first + i + AHEAD] * row, 2 * size);
        take(i, 0);
        if (first + i < shape.sinks && shape.pairs)
          turn(room.block + i * wide, cos, sin, shape.pairs, shape.neox);
      }
      for (int64_t h = head * group; h < (head + 1) * group; ++h)
        score(shape, room, h, wide, hidden);
      for (int64_t i = 0; i < LANES; ++i) take(i, size);
      for (int64_t h = head * group; h < (head + 1) * group; ++h) gain<SIZE>(room, h, wide);
    }
  }
  for (int64_t h = begin; h < end; ++h) {
    float sum = 0.0f;
    for (int64_t i = 0; i < LANES; ++i) sum += room.sum[h * LANES + i];
    const float whole = 1.0f / sum;
    for (int64_t d = 0; d < size; ++d)
      output[h * size + d] = static_cast<T>(room.out[h * wide + d] * whole);
  }
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
  // Few streams are cut into their heads, so that every thread has some.
  const int64_t parts = slots.size(0) >= at::get_num_threads() ? 1 : shape.kv_heads;
  const int64_t heads = shape.kv_heads / parts;
  auto all = [&](auto zero, auto channels) {
    using T = decltype(zero);
    constexpr int64_t SIZE = decltype(channels)::value;
    const T* q = query.const_data_ptr<T>();
    const T* kv = cache.const_data_ptr<T>();
    T* out = output.mutable_data_ptr<T>();
    at::parallel_for(0, slots.size(0) * parts, 1, [&](int64_t a, int64_t b) {
      Room room(shape);
      for (int64_t i = a; i < b; ++i) {
        const int64_t n = i / parts, first = i % parts * heads;
        attend<T, SIZE>(shape, q + at_row[n] * query.stride(0), kv, slot + n * shape.keys,
                        sees + n * shape.keys, c + n * shape.pairs, s + n * shape.pairs,
                        out + at_row[n] * output.stride(0), first, first + heads, room);
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

// Keys and values [tokens, kv_heads, size] of a step into the cache [slots, kv_heads, 2 * size], at
// slots int64 [<= tokens]; nothing where a slot is negative.
void store(const at::Tensor& key, const at::Tensor& value, at::Tensor cache,
           const at::Tensor& slots) {
  TORCH_CHECK(key.stride(2) == 1 && value.stride(2) == 1, "key, value: channels apart");
  TORCH_CHECK(cache.is_contiguous() && slots.is_contiguous());
  TORCH_CHECK(key.scalar_type() == cache.scalar_type(), "key: the cache is of another type");
  TORCH_CHECK(value.scalar_type() == cache.scalar_type(), "value: the cache is of another type");
  const int64_t heads = cache.size(1), channel = cache.element_size();
  const int64_t bytes = cache.size(2) / 2 * channel;
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  const char* k = static_cast<const char*>(key.const_data_ptr());
  const char* v = static_cast<const char*>(value.const_data_ptr());
  char* to = static_cast<char*>(cache.mutable_data_ptr());
  for (int64_t t = 0; t < slots.size(0); ++t) {
    if (slot[t] < 0) continue;
    for (int64_t h = 0; h < heads; ++h) {
      char* row = to + (slot[t] * heads + h) * 2 * bytes;
      std::memcpy(row, k + (t * key.stride(0) + h * key.stride(1)) * channel, bytes);
      std::memcpy(row + bytes, v + (t * value.stride(0) + h * value.stride(1)) * channel, bytes);
    }
  }
}

}  // namespace

TORCH_LIBRARY(vllm_sink, library) {
  library.def(
      "cpu_decode(Tensor query, Tensor rows, Tensor cache, Tensor slots, Tensor visible, "
      "int sinks, Tensor cos, Tensor sin, bool neox, float scale, Tensor(a!) output) -> ()");
  library.def("cpu_store(Tensor key, Tensor value, Tensor(a!) cache, Tensor slots) -> ()");
}

TORCH_LIBRARY_IMPL(vllm_sink, CPU, library) {
  library.impl("cpu_decode", &decode);
  library.impl("cpu_store", &store);
}
