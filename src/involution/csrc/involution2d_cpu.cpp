// Involution on the CPU: forward and both gradients.
//
// Everything is computed from small packed buffers in the accumulation type (float, or double for double):
// the rows that a strip of output needs, with their zero border, 16 channels side by side. Packing takes any
// strides and any dtype, so one compute path serves both memory formats, slices, half precision and every
// geometry; the inner loops have no bounds checks, and padding is a real zero that is multiplied (as in the
// definition: an infinite kernel value over the padding gives NaN).

// A library for other machines than this one is compiled for every x86-64, which would leave it a fraction of the speed.
// It asks for AVX2 instead, and registers nothing on a processor without (at the end of this file).
#if defined(CPU_KERNEL) && defined(__x86_64__)
#define NEEDS_AVX2
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

#include "geometry.h"
#include "library.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#if !defined(__GNUC__)
#error "involution needs vector extensions: compile with GCC or Clang"
#endif
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

namespace involution {
namespace {

// 16 channels: the paper's group, one AVX-512 register of floats, two of AVX2.
constexpr int64_t kLanes = 16;
// A tile of 7 output pixels keeps its accumulators in registers; 56, 28, 14 and 7 divide by it.
constexpr int kTile = 7;
// Taps of one kernel row are handled 8 at a time in the kernel gradient: 7 of them fill one AVX2 register.
constexpr int64_t kTapLanes = 8;
// The fused form makes the kernels of up to 128 output pixels at a time, [tap][pixel] with a constant stride that is no
// power of two, which would map the taps of a pixel to the same few cache sets. 49 taps are 28 KB, and stay in the
// first-level cache. Its features are [slice][hidden][32 pixels], so that a slice streams through that cache as well.
constexpr int64_t kBlock = 128, kTapStride = kBlock + kLanes, kSlice = 2 * kLanes;
// A strip's packed rows should stay in the second-level cache beside the kernels that stream through it.
constexpr int64_t kStripBytes = 128 * 1024;

template <typename acc_t>
using opmath_t = std::conditional_t<std::is_same_v<acc_t, double>, double, float>;

template <typename acc_t, int64_t lanes>
struct Vector {
  typedef acc_t type __attribute__((vector_size(lanes * sizeof(acc_t))));
};
template <typename acc_t>
using Channels = typename Vector<acc_t, kLanes>::type;
template <typename acc_t>
using Taps = typename Vector<acc_t, kTapLanes>::type;

template <typename scalar_t>
scalar_t* data(const at::Tensor& t) {
  if constexpr (std::is_const_v<scalar_t>) {
    return t.const_data_ptr<std::remove_const_t<scalar_t>>();
  } else {
    return t.mutable_data_ptr<scalar_t>();
  }
}

template <typename V, typename acc_t>
inline V load(const acc_t* p) {
  V value;
  std::memcpy(&value, p, sizeof(V));  // an unaligned load
  return value;
}
template <typename V, typename acc_t>
inline void store(acc_t* p, const V& value) {
  std::memcpy(p, &value, sizeof(V));
}

template <typename acc_t>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<acc_t*>(::operator new(std::max<int64_t>(size, 1) * sizeof(acc_t), kAlign))) {}
  ~Buffer() {
    ::operator delete(data_, kAlign);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  acc_t* get() {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  acc_t* data_;
};

// Up to 16 channels of one group.
struct Chunk {
  int64_t group, first, count;
};

inline int64_t chunks_per_group(const Geometry& g) {
  return (g.group_channels() + kLanes - 1) / kLanes;
}

inline Chunk chunk_at(const Geometry& g, int64_t index) {
  const int64_t per_group = chunks_per_group(g), group = index / per_group, offset = index % per_group * kLanes;
  return {group, group * g.group_channels() + offset, std::min(kLanes, g.group_channels() - offset)};
}

// How a dimension of `rows` output rows is cut into strips. Rows between dilated taps are not packed: with a vertical
// dilation a strip has one output row, and its packed rows are the kernel_h rows which that one meets.
struct Strips {
  int64_t rows, count;

  Strips(const Geometry& g, int64_t out_rows, int64_t bytes_per_input_row, int64_t multiple) {
    const int64_t fitting = (kStripBytes / std::max<int64_t>(bytes_per_input_row, 1) - g.kernel_h) / g.stride_h + 1;
    const int64_t most = g.dilation_h > 1 ? 1 : std::clamp<int64_t>(fitting, 1, std::max<int64_t>(out_rows, 1));
    count = (out_rows + most - 1) / most;
    rows = count > 0 ? (out_rows + count - 1) / count : 1;
    rows = (rows + multiple - 1) / multiple * multiple;
    count = (out_rows + rows - 1) / rows;
  }
  int64_t packed_rows(const Geometry& g) const {
    return (rows - 1) * g.stride_h + g.kernel_h;
  }
};

// Packed columns: what the windows of all output columns span.
inline int64_t packed_columns(const Geometry& g) {
  return (g.out_w - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
}

// One image row of up to 16 channels into [columns][16], `left` columns of zeros before it. No source: all zeros.
template <typename scalar_t, typename acc_t>
void pack_row(acc_t* to, const scalar_t* from, int64_t stride_c, int64_t stride_w, int64_t width, int64_t left, int64_t columns,
              int64_t channels) {
  const int64_t begin = from ? std::min(left, columns) : columns;
  const int64_t end = from ? std::min(left + width, columns) : columns;
  std::fill(to, to + begin * kLanes, acc_t(0));
  std::fill(to + end * kLanes, to + columns * kLanes, acc_t(0));
  if (channels == kLanes && stride_c == 1) {
    for (int64_t x = begin; x < end; ++x) {
      const scalar_t* pixel = from + (x - left) * stride_w;
      for (int64_t c = 0; c < kLanes; ++c) {
        to[x * kLanes + c] = static_cast<acc_t>(pixel[c]);
      }
    }
    return;
  }
  if (channels < kLanes) {
    std::fill(to + begin * kLanes, to + end * kLanes, acc_t(0));
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = begin; x < end; ++x) {
      to[x * kLanes + c] = static_cast<acc_t>(from[c * stride_c + (x - left) * stride_w]);
    }
  }
}

// The reverse: `width` columns of [16] to an image row.
template <typename scalar_t, typename acc_t>
void unpack_row(scalar_t* to, int64_t stride_c, int64_t stride_w, const acc_t* from, int64_t width, int64_t channels) {
  if (channels == kLanes && stride_c == 1) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < kLanes; ++c) {
        to[x * stride_w + c] = static_cast<scalar_t>(from[x * kLanes + c]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = 0; x < width; ++x) {
      to[c * stride_c + x * stride_w] = static_cast<scalar_t>(from[x * kLanes + c]);
    }
  }
}

// A 4-d tensor as the inner loops see it: a pointer and the way to one row of a chunk of channels.
template <typename scalar_t>
struct Image {
  scalar_t* data;
  int64_t stride_b, stride_c, stride_h, stride_w, height, width;

  explicit Image(const at::Tensor& t)
      : data(involution::data<scalar_t>(t)),
        stride_b(t.stride(0)), stride_c(t.stride(1)), stride_h(t.stride(2)), stride_w(t.stride(3)),
        height(t.size(2)), width(t.size(3)) {}

  scalar_t* row(int64_t b, int64_t c, int64_t y) const {
    return y >= 0 && y < height ? data + b * stride_b + c * stride_c + y * stride_h : nullptr;
  }
};

// The kernels of neighbouring output pixels as the inner loop finds them: a pixel's taps side by side ...
template <typename acc_t>
struct TapsByPixel {
  const acc_t* data;
  int64_t pixel_stride;

  acc_t operator()(int64_t pixel, int64_t tap) const {
    return data[pixel * pixel_stride + tap];
  }
};
// ... or, as the fused form makes them, a tap's pixels.
template <typename acc_t>
struct PixelsByTap {
  const acc_t* data;

  acc_t operator()(int64_t pixel, int64_t tap) const {
    return data[tap * kTapStride + pixel];
  }
};

// The kernels of neighbouring output pixels as [pixel][tap] in the accumulation type: in place where they lie so
// already (the taps of a channels-last float kernel), copied into a buffer of a tile's size where not.
template <typename scalar_t, typename acc_t>
struct KernelReader {
  const scalar_t* data;
  int64_t stride_b, stride_g, stride_u, stride_v, stride_h, stride_w, kernel_h, kernel_w;
  bool in_place;
  Buffer<acc_t> copy;

  explicit KernelReader(const at::Tensor& t)
      : data(involution::data<const scalar_t>(t)),
        stride_b(t.stride(0)), stride_g(t.stride(1)), stride_u(t.stride(2)), stride_v(t.stride(3)), stride_h(t.stride(4)),
        stride_w(t.stride(5)), kernel_h(t.size(2)), kernel_w(t.size(3)),
        in_place(std::is_same_v<scalar_t, acc_t> && (stride_v == 1 || kernel_w == 1) && (stride_u == kernel_w || kernel_h == 1)),
        copy(in_place ? 0 : 2 * kTile * kernel_h * kernel_w) {}

  TapsByPixel<acc_t> tile(int64_t b, int64_t group, int64_t i, int64_t j, int64_t pixels) {
    const scalar_t* first = data + b * stride_b + group * stride_g + i * stride_h + j * stride_w;
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place) {
        return {first, stride_w};
      }
    }
    acc_t* to = copy.get();
    const int64_t taps = kernel_h * kernel_w;
    if (stride_v == 1 && stride_u == kernel_w) {
      for (int64_t t = 0; t < pixels; ++t) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          to[t * taps + tap] = static_cast<acc_t>(first[t * stride_w + tap]);
        }
      }
      return {to, taps};
    }
    for (int64_t u = 0; u < kernel_h; ++u) {
      for (int64_t v = 0; v < kernel_w; ++v) {
        for (int64_t t = 0; t < pixels; ++t) {
          to[t * taps + u * kernel_w + v] = static_cast<acc_t>(first[t * stride_w + u * stride_u + v * stride_v]);
        }
      }
    }
    return {to, taps};
  }
};

// Calls f(K, S) with the square kernel size and the stride as compile-time constants where there is a specialised
// inner loop, f(0, 0) where the general one runs.
template <typename F>
void with_static_window(const Geometry& g, const F& f) {
  const bool square = g.kernel_h == g.kernel_w && g.stride_h == g.stride_w && g.dilation_w == 1;
  using std::integral_constant;
  if (square && g.kernel_w == 7 && g.stride_w == 1) {
    f(integral_constant<int, 7>{}, integral_constant<int, 1>{});
  } else if (square && g.kernel_w == 7 && g.stride_w == 2) {
    f(integral_constant<int, 7>{}, integral_constant<int, 2>{});
  } else if (square && g.kernel_w == 3 && g.stride_w == 1) {
    f(integral_constant<int, 3>{}, integral_constant<int, 1>{});
  } else if (square && g.kernel_w == 3 && g.stride_w == 2) {
    f(integral_constant<int, 3>{}, integral_constant<int, 2>{});
  } else {
    f(integral_constant<int, 0>{}, integral_constant<int, 0>{});
  }
}

// Calls f(tile width, first pixel) over a row of `width` pixels, in tiles of 14, then 7, 4, 2 and 1.
template <typename F>
inline void for_tiles(int64_t width, const F& f) {
  using std::integral_constant;
  int64_t j = 0;
  for (; j + 2 * kTile <= width; j += 2 * kTile) {
    f(integral_constant<int, 2 * kTile>{}, j);
  }
  if (j + kTile <= width) {
    f(integral_constant<int, kTile>{}, j);
    j += kTile;
  }
  if (j + 4 <= width) {
    f(integral_constant<int, 4>{}, j);
    j += 4;
  }
  if (j + 2 <= width) {
    f(integral_constant<int, 2>{}, j);
    j += 2;
  }
  if (j < width) {
    f(integral_constant<int, 1>{}, j);
  }
}

// What follows the sum: scale and shift of up to 16 channels, and ReLU. NaN stays NaN.
template <typename acc_t>
struct Epilogue {
  Channels<acc_t> scale, shift;
  bool affine, relu;

  Channels<acc_t> operator()(Channels<acc_t> value) const {
    if (affine) {
      value = value * scale + shift;
    }
    if (relu) {
      value = value < Channels<acc_t>{} ? Channels<acc_t>{} : value;
    }
    return value;
  }
};

// T output pixels: x points at the packed column of the first one's first tap.
template <int K, int S, int T, typename acc_t, typename TapsOfTile>
__attribute__((noinline)) void forward_tile(const Geometry& g, const acc_t* x, int64_t row_step, TapsOfTile taps,
                                            const Epilogue<acc_t>& epilogue, acc_t* out, int64_t out_step) {
  using V = Channels<acc_t>;
  V acc[T] = {};
  if constexpr (K > 0) {
    for (int u = 0; u < K; ++u, x += row_step) {
      // Each column is loaded once and meets every pixel whose window holds it.
      UNROLL for (int q = 0; q < (T - 1) * S + K; ++q) {
        const V column = load<V>(x + q * kLanes);
        UNROLL for (int t = 0; t < T; ++t) {
          if (q - t * S >= 0 && q - t * S < K) {
            acc[t] += column * taps(t, u * K + q - t * S);
          }
        }
      }
    }
  } else {
    for (int64_t u = 0, tap = 0; u < g.kernel_h; ++u, x += row_step) {
      for (int64_t v = 0; v < g.kernel_w; ++v, ++tap) {
        UNROLL for (int t = 0; t < T; ++t) {
          acc[t] += load<V>(x + (t * g.stride_w + v * g.dilation_w) * kLanes) * taps(t, tap);
        }
      }
    }
  }
  UNROLL for (int t = 0; t < T; ++t) {
    store(out + t * out_step, epilogue(acc[t]));
  }
}

// One step of a transposition of 16 x 16 values: exchanges the off-diagonal quarters of blocks of 2 * width.
template <int width, typename acc_t, int... lane>
inline void exchange(Channels<acc_t>* rows, std::integer_sequence<int, lane...>) {
  UNROLL for (int r = 0; r < kLanes; ++r) {
    if ((r & width) == 0) {
      const Channels<acc_t> a = rows[r], b = rows[r | width];
#ifdef __clang__
      rows[r] = __builtin_shufflevector(a, b, (lane & width ? kLanes + (lane ^ width) : lane)...);
      rows[r | width] = __builtin_shufflevector(a, b, (lane & width ? kLanes + lane : lane ^ width)...);
#else
      using Lane = typename Vector<std::conditional_t<sizeof(acc_t) == 8, int64_t, int32_t>, kLanes>::type;
      rows[r] = __builtin_shuffle(a, b, Lane{(lane & width ? kLanes + (lane ^ width) : lane)...});
      rows[r | width] = __builtin_shuffle(a, b, Lane{(lane & width ? kLanes + lane : lane ^ width)...});
#endif
    }
  }
}

// Up to 16 pixels of up to 16 channels to [channel][to_step].
template <typename scalar_t, typename acc_t>
void transpose(acc_t* to, int64_t to_step, const scalar_t* from, int64_t stride_c, int64_t stride_w, int64_t pixels, int64_t channels) {
  if (pixels < kLanes || channels < kLanes || stride_c != 1) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < pixels; ++t) {
        to[c * to_step + t] = static_cast<acc_t>(from[c * stride_c + t * stride_w]);
      }
    }
    return;
  }
  Channels<acc_t> rows[kLanes];
  UNROLL for (int t = 0; t < kLanes; ++t) {
    for (int c = 0; c < kLanes; ++c) {
      rows[t][c] = static_cast<acc_t>(from[t * stride_w + c]);
    }
  }
  constexpr std::make_integer_sequence<int, kLanes> lanes;
  exchange<8, acc_t>(rows, lanes);
  exchange<4, acc_t>(rows, lanes);
  exchange<2, acc_t>(rows, lanes);
  exchange<1, acc_t>(rows, lanes);
  UNROLL for (int c = 0; c < kLanes; ++c) {
    store(to + c * to_step, rows[c]);
  }
}

// The 1x1 convolution for M taps of N * 16 pixels: features [hidden][kSlice], result [tap][kTapStride].
template <int M, int N, typename acc_t>
__attribute__((noinline)) void generate_tile(const acc_t* weight, const acc_t* bias, const acc_t* features, int64_t hidden, acc_t* out) {
  using V = Channels<acc_t>;
  V acc[M][N];
  UNROLL for (int m = 0; m < M; ++m) {
    UNROLL for (int n = 0; n < N; ++n) {
      acc[m][n] = V{} + bias[m];
    }
  }
  for (int64_t r = 0; r < hidden; ++r) {
    UNROLL for (int n = 0; n < N; ++n) {
      const V feature = load<V>(features + r * kSlice + n * kLanes);
      UNROLL for (int m = 0; m < M; ++m) {
        acc[m][n] += feature * weight[m * hidden + r];
      }
    }
  }
  UNROLL for (int m = 0; m < M; ++m) {
    UNROLL for (int n = 0; n < N; ++n) {
      store(out + m * kTapStride + n * kLanes, acc[m][n]);
    }
  }
}

// All taps of one group for a block of pixels. 7 taps at a time divide the paper's 49; two vectors of pixels share the
// broadcast weight and fill the pipeline.
template <typename acc_t>
void generate(const acc_t* weight, const acc_t* bias, const acc_t* features, int64_t hidden, int64_t taps, int64_t pixels, acc_t* out) {
  for (int64_t p = 0; p < pixels; p += kSlice, features += kSlice * hidden) {
    const bool two = pixels - p > kLanes;
    int64_t tap = 0;
    for (; tap + 7 <= taps; tap += 7) {
      const auto tile = two ? generate_tile<7, 2, acc_t> : generate_tile<7, 1, acc_t>;
      tile(weight + tap * hidden, bias + tap, features, hidden, out + tap * kTapStride + p);
    }
    for (; tap < taps; ++tap) {
      const auto tile = two ? generate_tile<1, 2, acc_t> : generate_tile<1, 1, acc_t>;
      tile(weight + tap * hidden, bias + tap, features, hidden, out + tap * kTapStride + p);
    }
  }
}

// Scale, shift and ReLU of all channels; null where there is no scale.
template <typename acc_t>
struct Epilogues {
  const acc_t *scale = nullptr, *shift = nullptr;
  bool relu = false;

  Epilogue<acc_t> of(const Chunk& chunk) const {
    Epilogue<acc_t> result{{}, {}, scale != nullptr, relu};
    for (int64_t c = 0; scale != nullptr && c < chunk.count; ++c) {
      result.scale[c] = scale[chunk.first + c];
      result.shift[c] = shift[chunk.first + c];
    }
    return result;
  }
};

// The 1x1 convolution that makes the kernels.
template <typename acc_t>
struct Generator {
  const acc_t *weight, *bias;
  int64_t hidden;
};

// The blocks of pixels whose kernels the fused form makes at a time: whole rows where they fit, parts of a row else.
struct Blocks {
  int64_t rows, columns, per_row;

  explicit Blocks(const Geometry& g)
      : rows(g.dilation_h > 1 ? 1 : std::max<int64_t>(kBlock / g.out_w, 1)), columns(std::min(g.out_w, kBlock)), per_row((g.out_w + columns - 1) / columns) {}
  int64_t count(int64_t out_rows) const {
    return (out_rows + rows - 1) / rows * per_row;
  }
};

// The packed rows of a strip of output for one chunk of channels.
template <typename scalar_t, typename acc_t>
void pack_strip(const Geometry& g, const Image<const scalar_t>& x, acc_t* packed, int64_t columns, int64_t b, const Chunk& chunk,
                int64_t first, int64_t last) {
  const int64_t rows = (last - first - 1) * g.stride_h + g.kernel_h;
  for (int64_t q = 0; q < rows; ++q) {
    pack_row(packed + q * columns * kLanes, x.row(b, chunk.first, first * g.stride_h - g.padding_h + q * g.dilation_h),
             x.stride_c, x.stride_w, g.width, g.padding_w, columns, chunk.count);
  }
}

// Where the tiles of an output row are written: in place where its memory is 16 channels side by side, else into a
// buffer that `finish` unpacks.
template <typename scalar_t, typename acc_t>
struct RowWriter {
  const Image<scalar_t> image;
  Buffer<acc_t> buffer;

  RowWriter(const at::Tensor& t) : image(t), buffer(t.size(3) * kLanes) {}

  bool in_place(const Chunk& chunk) const {
    return std::is_same_v<scalar_t, acc_t> && image.stride_c == 1 && chunk.count == kLanes;
  }
  std::pair<acc_t*, int64_t> start(int64_t b, const Chunk& chunk, int64_t i) {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (in_place(chunk)) {
        return {image.row(b, chunk.first, i), image.stride_w};
      }
    }
    return {buffer.get(), kLanes};
  }
  void finish(int64_t b, const Chunk& chunk, int64_t i, int64_t begin, int64_t end) {
    if (!in_place(chunk)) {
      unpack_row(image.row(b, chunk.first, i) + begin * image.stride_w, image.stride_c, image.stride_w, buffer.get() + begin * kLanes,
                 end - begin, chunk.count);
    }
  }
};

template <typename scalar_t>
void forward_kernel(const Geometry& g, const at::Tensor& input, const at::Tensor& kernel,
                    const Epilogues<opmath_t<scalar_t>>& epilogues, const at::Tensor& output) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> x(input);
  const int64_t columns = packed_columns(g), row_step = columns * kLanes, chunks = g.groups * chunks_per_group(g);
  const Strips strips(g, g.out_h, row_step * sizeof(acc_t), 1);
  with_static_window(g, [&](auto K, auto S) {
    at::parallel_for(0, g.batch * strips.count * chunks, 1, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(strips.packed_rows(g) * row_step);
      KernelReader<scalar_t, acc_t> kernels(kernel);
      RowWriter<scalar_t, acc_t> writer(output);
      for (int64_t task = begin; task < end; ++task) {
        const Chunk chunk = chunk_at(g, task % chunks);
        const int64_t b = task / chunks / strips.count, first = task / chunks % strips.count * strips.rows;
        const int64_t last = std::min(first + strips.rows, g.out_h);
        const Epilogue<acc_t> epilogue = epilogues.of(chunk);
        pack_strip(g, x, packed.get(), columns, b, chunk, first, last);
        for (int64_t i = first; i < last; ++i) {
          const acc_t* window = packed.get() + (i - first) * g.stride_h * row_step;
          const auto [out, out_step] = writer.start(b, chunk, i);
          for_tiles(g.out_w, [&, out = out, out_step = out_step](auto T, int64_t j) {
            forward_tile<decltype(K)::value, decltype(S)::value, decltype(T)::value>(
                g, window + j * g.stride_w * kLanes, row_step, kernels.tile(b, chunk.group, i, j, T), epilogue,
                out + j * out_step, out_step);
          });
          writer.finish(b, chunk, i, 0, g.out_w);
        }
      }
    });
  });
}

// The features of a strip as [block][slice][hidden][kSlice]: read once, for all groups.
template <typename scalar_t, typename acc_t>
void pack_features(const Geometry& g, const Blocks& blocks, const Image<const scalar_t>& features, acc_t* packed, int64_t hidden,
                   int64_t b, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const scalar_t* row = features.row(b, 0, i);
    for (int64_t j = 0, pixels; j < g.out_w; j += pixels) {
      const int64_t block = (i - first) / blocks.rows * blocks.per_row + j / blocks.columns;
      const int64_t pixel = (i - first) % blocks.rows * g.out_w + j % blocks.columns;
      // Up to 16 pixels of one slice.
      pixels = std::min({kLanes, kSlice - pixel % kSlice, blocks.columns - j % blocks.columns, g.out_w - j});
      acc_t* to = packed + (block * kBlock + pixel / kSlice * kSlice) * hidden + pixel % kSlice;
      for (int64_t r = 0; r < hidden; r += kLanes) {
        transpose(to + r * kSlice, kSlice, row + j * features.stride_w + r * features.stride_c, features.stride_c, features.stride_w,
                  pixels, std::min(kLanes, hidden - r));
      }
    }
  }
}

template <typename scalar_t>
void fused_kernel(const Geometry& g, const at::Tensor& input, const at::Tensor& features_,
                  const Generator<opmath_t<scalar_t>>& generator, const Epilogues<opmath_t<scalar_t>>& epilogues,
                  const at::Tensor& output) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> x(input), features(features_);
  const int64_t columns = packed_columns(g), row_step = columns * kLanes, chunks = chunks_per_group(g), taps = g.taps();
  const Blocks blocks(g);
  const Strips strips(g, g.out_h, row_step * sizeof(acc_t) * chunks, blocks.rows);
  const int64_t strip_size = strips.packed_rows(g) * row_step;
  // Groups are divided among tasks where images and strips alone do not keep the threads busy.
  int64_t parts = 1;
  while (parts < g.groups && g.batch * strips.count * parts < 2 * at::get_num_threads()) {
    parts *= 2;
  }
  parts = std::min(parts, g.groups);
  with_static_window(g, [&](auto K, auto S) {
    at::parallel_for(0, g.batch * strips.count * parts, 1, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(chunks * strip_size), hidden(blocks.count(strips.rows) * generator.hidden * kBlock), kernels(taps * kTapStride);
      RowWriter<scalar_t, acc_t> writer(output);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / parts / strips.count, first = task / parts % strips.count * strips.rows;
        const int64_t last = std::min(first + strips.rows, g.out_h);
        pack_features(g, blocks, features, hidden.get(), generator.hidden, b, first, last);
        for (int64_t group = task % parts * g.groups / parts; group < (task % parts + 1) * g.groups / parts; ++group) {
          for (int64_t c = 0; c < chunks; ++c) {
            pack_strip(g, x, packed.get() + c * strip_size, columns, b, chunk_at(g, group * chunks + c), first, last);
          }
          for (int64_t block = 0; block < blocks.count(last - first); ++block) {
            const int64_t i_begin = first + block / blocks.per_row * blocks.rows, i_end = std::min(i_begin + blocks.rows, last);
            const int64_t j_begin = block % blocks.per_row * blocks.columns, width = std::min(blocks.columns, g.out_w - j_begin);
            generate(generator.weight + group * taps * generator.hidden, generator.bias + group * taps,
                     hidden.get() + block * generator.hidden * kBlock, generator.hidden, taps, (i_end - i_begin) * width, kernels.get());
            for (int64_t c = 0; c < chunks; ++c) {
              const Chunk chunk = chunk_at(g, group * chunks + c);
              const Epilogue<acc_t> epilogue = epilogues.of(chunk);
              for (int64_t i = i_begin; i < i_end; ++i) {
                const acc_t* window = packed.get() + c * strip_size + (i - first) * g.stride_h * row_step;
                const acc_t* row = kernels.get() + (i - i_begin) * width;
                const auto [out, out_step] = writer.start(b, chunk, i);
                for_tiles(width, [&, out = out, out_step = out_step](auto T, int64_t j) {
                  forward_tile<decltype(K)::value, decltype(S)::value, decltype(T)::value>(
                      g, window + (j_begin + j) * g.stride_w * kLanes, row_step, PixelsByTap<acc_t>{row + j}, epilogue,
                      out + (j_begin + j) * out_step, out_step);
                });
                writer.finish(b, chunk, i, j_begin, j_begin + width);
              }
            }
          }
        }
      }
    });
  });
}

// Scatters T output gradients through one kernel row into the packed input row that it met.
template <int K, int S, int T, typename acc_t>
__attribute__((noinline)) void input_grad_tile(const Geometry& g, const acc_t* grad, const acc_t* taps, int64_t pixel_stride, acc_t* row) {
  using V = Channels<acc_t>;
  if constexpr (K > 0) {
    constexpr int columns = (T - 1) * S + K;
    V acc[columns];
    UNROLL for (int q = 0; q < columns; ++q) {
      acc[q] = load<V>(row + q * kLanes);
    }
    UNROLL for (int t = 0; t < T; ++t) {
      const V value = load<V>(grad + t * kLanes);
      UNROLL for (int v = 0; v < K; ++v) {
        acc[t * S + v] += value * taps[t * pixel_stride + v];
      }
    }
    UNROLL for (int q = 0; q < columns; ++q) {
      store(row + q * kLanes, acc[q]);
    }
  } else {
    for (int t = 0; t < T; ++t) {
      const V value = load<V>(grad + t * kLanes);
      for (int64_t v = 0; v < g.kernel_w; ++v) {
        acc_t* to = row + (t * g.stride_w + v * g.dilation_w) * kLanes;
        store(to, load<V>(to) + value * taps[t * pixel_stride + v]);
      }
    }
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

template <typename scalar_t>
void input_grad_kernel(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& kernel,
                       const at::Tensor& grad_input) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> dy(grad_output);
  const Image<scalar_t> dx(grad_input);
  const int64_t columns = std::max(packed_columns(g), g.padding_w + g.width), row_step = columns * kLanes;
  const int64_t chunks = g.groups * chunks_per_group(g);
  // Strips of input rows: each task owns what it writes and meets every output row whose window reaches it.
  const int64_t strip_rows = std::clamp<int64_t>(kStripBytes / (row_step * int64_t(sizeof(acc_t))), 1, std::max<int64_t>(g.height, 1));
  const int64_t strips = (g.height + strip_rows - 1) / strip_rows;
  with_static_window(g, [&](auto K, auto S) {
    at::parallel_for(0, g.batch * strips * chunks, 1, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(strip_rows * row_step), grad(g.out_w * kLanes);
      KernelReader<scalar_t, acc_t> kernels(kernel);
      for (int64_t task = begin; task < end; ++task) {
        const Chunk chunk = chunk_at(g, task % chunks);
        const int64_t b = task / chunks / strips, first = task / chunks % strips * strip_rows;
        const int64_t last = std::min(first + strip_rows, g.height);
        std::fill(packed.get(), packed.get() + (last - first) * row_step, acc_t(0));
        const int64_t i_begin = std::max<int64_t>(ceil_div(first + g.padding_h - (g.kernel_h - 1) * g.dilation_h, g.stride_h), 0);
        const int64_t i_end = std::min((last - 1 + g.padding_h) / g.stride_h + 1, g.out_h);
        for (int64_t i = i_begin; i < i_end; ++i) {
          pack_row(grad.get(), dy.row(b, chunk.first, i), dy.stride_c, dy.stride_w, g.out_w, 0, g.out_w, chunk.count);
          for_tiles(g.out_w, [&](auto T, int64_t j) {
            const auto tile = kernels.tile(b, chunk.group, i, j, T);
            for (int64_t u = 0; u < g.kernel_h; ++u) {
              const int64_t y = i * g.stride_h + u * g.dilation_h - g.padding_h;
              if (y >= first && y < last) {
                input_grad_tile<decltype(K)::value, decltype(S)::value, decltype(T)::value>(g, grad.get() + j * kLanes, tile.data + u * g.kernel_w, tile.pixel_stride,
                                         packed.get() + (y - first) * row_step + j * g.stride_w * kLanes);
              }
            }
          });
        }
        for (int64_t y = first; y < last; ++y) {
          unpack_row(dx.row(b, chunk.first, y), dx.stride_c, dx.stride_w,
                     packed.get() + (y - first) * row_step + g.padding_w * kLanes, g.width, chunk.count);
        }
      }
    });
  });
}

// Planar packing for the kernel gradient: per channel a row in which the taps of a window lie side by side, whatever
// the dilation (columns are split by their phase), followed by slack so that whole vectors of taps can be loaded.
struct PlanarRow {
  int64_t columns, phase_length, length;

  explicit PlanarRow(const Geometry& g)
      : columns(packed_columns(g)), phase_length((columns + g.dilation_w - 1) / g.dilation_w + kTapLanes),
        length(phase_length * g.dilation_w) {}
  int64_t at(const Geometry& g, int64_t column) const {
    return column % g.dilation_w * phase_length + column / g.dilation_w;
  }
};

// One image row of all channels of a group to [channel][plane_step]. No source: all zeros.
template <typename scalar_t, typename acc_t>
void pack_planar_row(const Geometry& g, const PlanarRow& layout, acc_t* to, int64_t plane_step, const scalar_t* from, int64_t stride_c,
                     int64_t stride_w) {
  const int64_t channels = g.group_channels();
  for (int64_t c = 0; c < channels; ++c) {
    std::fill(to + c * plane_step, to + c * plane_step + layout.length, acc_t(0));
  }
  const int64_t end = from ? std::min(g.padding_w + g.width, layout.columns) : 0;
  if (g.dilation_w == 1) {
    for (int64_t x = g.padding_w; x < end; x += kLanes) {
      for (int64_t c = 0; c < channels; c += kLanes) {
        transpose(to + c * plane_step + x, plane_step, from + (x - g.padding_w) * stride_w + c * stride_c, stride_c, stride_w,
                  std::min(kLanes, end - x), std::min(kLanes, channels - c));
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = g.padding_w; x < end; ++x) {
      to[c * plane_step + layout.at(g, x)] = static_cast<acc_t>(from[c * stride_c + (x - g.padding_w) * stride_w]);
    }
  }
}

// The kernel gradient of one pixel, [tap]: a vector of taps per kernel row, summed over the group's channels.
template <int K, typename acc_t>
__attribute__((noinline)) void kernel_grad_pixel(const Geometry& g, const acc_t* x, int64_t row_step, int64_t plane_step, const acc_t* grad,
                              acc_t* out) {
  using V = Taps<acc_t>;
  const int64_t channels = g.group_channels();
  if constexpr (K > 0 && K <= kTapLanes) {
    V acc[K] = {};
    for (int64_t c = 0; c < channels; ++c, x += plane_step) {
      UNROLL for (int u = 0; u < K; ++u) {
        acc[u] += load<V>(x + u * row_step) * grad[c];
      }
    }
    // Whole vectors: the lanes beyond the K taps are overwritten by the next row, the last ones fall into slack.
    UNROLL for (int u = 0; u < K; ++u) {
      store(out + u * K, acc[u]);
    }
  } else {
    for (int64_t u = 0; u < g.kernel_h; ++u) {
      for (int64_t v = 0; v < g.kernel_w; v += kTapLanes) {
        V acc = {};
        for (int64_t c = 0; c < channels; ++c) {
          acc += load<V>(x + c * plane_step + u * row_step + v) * grad[c];
        }
        for (int64_t w = v; w < std::min(v + kTapLanes, g.kernel_w); ++w) {
          out[u * g.kernel_w + w] = acc[w - v];
        }
      }
    }
  }
}

template <typename scalar_t>
void kernel_grad_kernel(const Geometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                        const at::Tensor& grad_kernel) {
  using acc_t = opmath_t<scalar_t>;
  const Image<const scalar_t> dy(grad_output), x(input);
  scalar_t* dk = data<scalar_t>(grad_kernel);
  const at::IntArrayRef dk_stride = grad_kernel.strides();
  const int64_t channels = g.group_channels();
  const PlanarRow layout(g);
  const Strips strips(g, g.out_h, channels * layout.length * sizeof(acc_t), 1);
  const int64_t plane_step = strips.packed_rows(g) * layout.length;
  with_static_window(g, [&](auto K, auto) {
    at::parallel_for(0, g.batch * strips.count * g.groups, 1, [&](int64_t begin, int64_t end) {
      Buffer<acc_t> packed(channels * plane_step + kTapLanes), grad(g.out_w * channels), taps(g.taps() + kTapLanes);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task % g.groups, b = task / g.groups / strips.count;
        const int64_t first = task / g.groups % strips.count * strips.rows, last = std::min(first + strips.rows, g.out_h);
        const int64_t rows = (last - first - 1) * g.stride_h + g.kernel_h;
        for (int64_t q = 0; q < rows; ++q) {
          pack_planar_row(g, layout, packed.get() + q * layout.length, plane_step,
                          x.row(b, group * channels, first * g.stride_h - g.padding_h + q * g.dilation_h), x.stride_c, x.stride_w);
        }
        for (int64_t i = first; i < last; ++i) {
          const scalar_t* dy_row = dy.row(b, group * channels, i);
          for (int64_t j = 0; j < g.out_w; ++j) {
            for (int64_t c = 0; c < channels; ++c) {
              grad.get()[j * channels + c] = static_cast<acc_t>(dy_row[j * dy.stride_w + c * dy.stride_c]);
            }
          }
          const acc_t* window = packed.get() + (i - first) * g.stride_h * layout.length;
          scalar_t* dk_row = dk + b * dk_stride[0] + group * dk_stride[1] + i * dk_stride[4];
          for (int64_t j = 0; j < g.out_w; ++j) {
            kernel_grad_pixel<decltype(K)::value>(g, window + layout.at(g, j * g.stride_w), layout.length, plane_step,
                                 grad.get() + j * channels, taps.get());
            // Both layouts of `empty_kernel` have one stride from tap to tap.
            scalar_t* to = dk_row + j * dk_stride[5];
            if (dk_stride[3] == 1) {
              std::copy(taps.get(), taps.get() + g.taps(), to);
            } else {
              for (int64_t tap = 0; tap < g.taps(); ++tap) {
                to[tap * dk_stride[3]] = static_cast<scalar_t>(taps.get()[tap]);
              }
            }
          }
        }
      }
    });
  });
}

at::Tensor involution2d(const at::Tensor& input, const at::Tensor& kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                        at::IntArrayRef dilation) {
  const Geometry g = forward_geometry(input, kernel, stride, padding, dilation);
  const at::Tensor output = empty_image(input, g.batch, g.channels, g.out_h, g.out_w);
  if (output.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d",
                                    [&] { forward_kernel<scalar_t>(g, input, kernel, {}, output); });
  }
  return output;
}

at::Tensor involution2d_fused(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                              const std::optional<at::Tensor>& shift, bool relu, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Geometry g = fused_geometry(input, features, weight, bias, scale, shift, kernel_size, stride, padding, dilation);
  const at::Tensor output = empty_image(input, g.batch, g.channels, g.out_h, g.out_w);
  if (output.numel() == 0) {
    return output;
  }
  const auto acc = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto vector = [&](const std::optional<at::Tensor>& t) { return t ? t->to(acc).contiguous() : at::Tensor(); };
  const at::Tensor scale_ = vector(scale), shift_ = vector(shift);
  // Some processors multiply matrices of 16 bits many times faster than float vectors. From this many hidden channels on
  // that is worth more than what the kernel's way through memory costs (measured with AMX).
  const bool apart = input.scalar_type() == at::kBFloat16 && features.size(1) >= 64;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d_fused", [&] {
    using acc_t = opmath_t<scalar_t>;
    const auto values = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<acc_t>() : nullptr; };
    const Epilogues<acc_t> epilogues{values(scale_), values(shift_), relu};
    if (apart) {
      const at::Tensor kernel = at::conv2d(features, weight, bias).unflatten(1, {g.groups, g.kernel_h, g.kernel_w});
      forward_kernel<scalar_t>(g, input, kernel, epilogues, output);
    } else {
      const at::Tensor weight_ = weight.reshape({weight.size(0), weight.size(1)}).to(acc).contiguous();
      const at::Tensor bias_ = bias ? vector(bias) : at::zeros({weight.size(0)}, input.options().dtype(acc));
      fused_kernel<scalar_t>(g, input, features, {values(weight_), values(bias_), weight.size(1)}, epilogues, output);
    }
  });
  return output;
}

at::Tensor involution2d_input_grad(const at::Tensor& grad_output, const at::Tensor& kernel, at::IntArrayRef input_size,
                                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Geometry g = input_grad_geometry(grad_output, kernel, input_size, stride, padding, dilation);
  const at::Tensor grad_input = empty_image(grad_output, g.batch, g.channels, g.height, g.width);
  if (grad_output.numel() == 0) {
    return grad_input.zero_();
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, kernel.scalar_type(), "involution2d_input_grad",
                                  [&] { input_grad_kernel<scalar_t>(g, grad_output, kernel, grad_input); });
  return grad_input;
}

at::Tensor involution2d_kernel_grad(const at::Tensor& grad_output, const at::Tensor& input, int64_t groups,
                                    at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation) {
  const Geometry g = kernel_grad_geometry(grad_output, input, groups, kernel_size, stride, padding, dilation);
  const at::Tensor grad_kernel = empty_kernel(input, g);
  if (grad_output.numel() == 0) {
    return grad_kernel.zero_();
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "involution2d_kernel_grad",
                                  [&] { kernel_grad_kernel<scalar_t>(g, grad_output, input, grad_kernel); });
  return grad_kernel;
}

}  // namespace
}  // namespace involution

INVOLUTION_LIBRARY_IMPL(CPU, m) {
#ifdef NEEDS_AVX2
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
#endif
  m.impl("involution2d", &involution::involution2d);
  m.impl("involution2d_fused", &involution::involution2d_fused);
  m.impl("involution2d_input_grad", &involution::involution2d_input_grad);
  m.impl("involution2d_kernel_grad", &involution::involution2d_kernel_grad);
}
