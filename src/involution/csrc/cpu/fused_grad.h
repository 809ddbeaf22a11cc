// The gradients of the fused forward pass on the CPU: of the input, and of the 1x1 convolution that generates the
// kernels.
//
// The kernel and its gradient are many times larger than the images. Both exist block by block only, in the L1 cache:
// the kernel is generated again, and its gradient is multiplied by weights and features at once.
#pragma once

#include "fused.h"
#include "input_grad.h"
#include "kernel_grad.h"

namespace involution {
namespace {

// Takes the kernel gradient of a block from `KernelGradStrip`, as [tap][kTapStride]. Rows shorter than a vector are
// written in order, so that each overwrites the lanes after the one before.
template <typename acc_t>
struct BlockTaps {
  static constexpr int64_t kStep = kTapStride;
  acc_t* taps;
  const Block* block;
  acc_t* to = nullptr;

  void start(int64_t, int64_t, int64_t i, int64_t j, int64_t) {
    to = taps + (i - block->i_begin) * block->width + j - block->j_begin;
  }
  acc_t* next(int64_t count) {
    to += count * kTapStride;
    return to - count * kTapStride;
  }
  void flush() {}
};

// Adds to M taps of the weight gradient, [tap][step], the products of the kernel gradient, [tap][kTapStride], and N
// vectors of the features, [pixel][step].
template <int M, int N, typename acc_t>
INVOLUTION_NOINLINE void weight_grad_tile(const acc_t* grad, const acc_t* features, int64_t step, int64_t pixels,
                                          acc_t* out) {
  using V = Channels<acc_t>;
  V acc[M][N];
  INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      acc[m][n] = load<V>(out + m * step + n * kLanes);
    }
  }
  for (int64_t p = 0; p < pixels; ++p) {
    V values[N];
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      values[n] = load<V>(features + p * step + n * kLanes);
    }
    INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
      INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
        add_product<acc_t>(acc[m][n], values[n], grad[m * kTapStride + p]);
      }
    }
  }
  INVOLUTION_UNROLL for (int m = 0; m < M; ++m) {
    INVOLUTION_UNROLL for (int n = 0; n < N; ++n) {
      store(out + m * step + n * kLanes, acc[m][n]);
    }
  }
}

// The gradients of the 1x1 convolution, from the kernel gradient of one block.
template <typename acc_t>
struct GenerationGrad {
  int64_t hidden, step, taps;  // `step`: the hidden channels, rounded up to whole vectors
  const acc_t* weight;         // [group][hidden][tap]

  // Adds to the gradient of the features, [slice][hidden][kSlice].
  void add_features(int64_t group, const acc_t* grad, int64_t pixels, acc_t* out) const {
    const acc_t* const w = weight + group * hidden * taps;
    for (int64_t r = 0; r < hidden; r += kMostRows) {
      with_static_count<kMostRows>(min(hidden - r, kMostRows), [&](auto M) {
        for (int64_t p = 0; p < pixels; p += kSlice) {
          with_static_count<kSliceVectors>(ceil_div(pixels - p, kLanes), [&](auto N) {
            multiply_pixels<decltype(M)::value, decltype(N)::value, kTapStride, kSlice, acc_t>(
                w + r * taps, nullptr, grad + p, taps, out + p * hidden + r * kSlice);
          });
        }
      });
    }
  }

  // Adds to the gradient of the weight of one group, [tap][step], from the features [pixel][step].
  void add_weight(const acc_t* grad, const acc_t* features, int64_t pixels, acc_t* out) const {
    const int64_t tiles = ceil_div(taps, kMostRows);
    for (int64_t n = 0; n < tiles; ++n) {
      const int64_t tap = taps * n / tiles;
      with_static_count<kMostRows>(taps * (n + 1) / tiles - tap, [&](auto M) {
        for (int64_t r = 0; r < step; r += kSlice) {
          with_static_count<kSliceVectors>((step - r) / kLanes, [&](auto N) {
            weight_grad_tile<decltype(M)::value, decltype(N)::value>(grad + tap * kTapStride, features + r, step,
                                                                     pixels, out + tap * step + r);
          });
        }
      });
    }
  }

  // Adds to the gradient of the bias of one group.
  void add_bias(const acc_t* grad, int64_t pixels, acc_t* out) const {
    for (int64_t tap = 0; tap < taps; ++tap, grad += kTapStride) {
      Channels<acc_t> sums{};
      int64_t p = 0;
      for (; p + kLanes <= pixels; p += kLanes) {
        sums += load<Channels<acc_t>>(grad + p);
      }
      for (int n = 0; n < kLanes; ++n) {
        out[tap] += sums[n];
      }
      for (; p < pixels; ++p) {
        out[tap] += grad[p];
      }
    }
  }
};

// Packs the features of an image as [pixel][step], with zeros after the hidden channels.
template <typename scalar_t, typename acc_t>
void pack_feature_pixels(const Geometry& g, const Image<const scalar_t>& features, int64_t b, int64_t hidden,
                         int64_t step, acc_t* packed) {
  for (int64_t i = 0; i < g.out_h; ++i) {
    const scalar_t* from = features.row(b, 0, i);
    for (int64_t j = 0; j < g.out_w; ++j, from += features.stride_w, packed += step) {
      copy(packed, 1, from, features.stride_c, hidden);
      zero(packed + hidden, step - hidden);
    }
  }
}

// Computes all gradients of one image and some groups.
template <typename scalar_t>
class FusedGradImage {
 public:
  using acc_t = opmath_t<scalar_t>;

  FusedGradImage(const Geometry& g, const Tensor& grad_output, const Tensor& input, const Tensor& features,
                 const Tensor& grad_input, const Generator<scalar_t, acc_t>& generate,
                 const GenerationGrad<acc_t>& generation)
      : g_(g),
        dy_(grad_output),
        features_(features),
        dx_(grad_input),
        generate_(generate),
        generation_(generation),
        blocks_(g),
        layout_(g, g.group_channels(), g.stride_w),
        strips_(g, layout_.row_step * sizeof(acc_t), blocks_.rows),
        chunks_(chunks_per_group(g)),
        columns_(max(packed_columns(g), g.padding_w + g.width)),
        largest_(chunk_at(g, 0).size()),
        hidden_(blocks_.count(g.out_h) * generate.hidden * kBlock),
        pixels_(g.out_h * g.out_w * generation.step),
        taps_(g.taps() * kTapStride),
        grad_taps_(g.taps() * kTapStride),
        grad_rows_(chunks_ * blocks_.rows * g.out_w * largest_),
        packed_(chunks_ * g.height * columns_ * largest_),
        kernel_grad_(g, layout_, strips_.packed_rows(g), grad_output, input, {grad_taps_.get(), &block_},
                     {grad_taps_.get(), &block_}) {
    zero(grad_taps_.get(), g.taps() * kTapStride);  // Whole vectors are read.
  }

  // Adds to the gradients of the features, [block][slice][hidden][kSlice], of the weight, [group][tap][step], and of
  // the bias, [group][tap].
  template <int S>
  void compute(int64_t b, int64_t first_group, int64_t last_group, acc_t* features, acc_t* weight, acc_t* bias) {
    pack_features(g_, blocks_, features_, hidden_.get(), generate_.hidden, b, 0, g_.out_h);
    pack_feature_pixels(g_, features_, b, generate_.hidden, generation_.step, pixels_.get());
    for (int64_t group = first_group; group < last_group; ++group) {
      zero(packed_.get(), chunks_ * g_.height * columns_ * largest_);
      for (int64_t first = 0; first < g_.out_h; first += strips_.rows) {
        const int64_t last = min(first + strips_.rows, g_.out_h);
        kernel_grad_.start(b, group, first, last);
        for (int64_t n = 0; n < blocks_.count(last - first); ++n) {
          block_ = blocks_.at(g_, n, first, last);
          const int64_t index = first / blocks_.rows * blocks_.per_row + n, pixels = block_.pixels();
          generate_(group, hidden_.get() + index * generate_.hidden * kBlock, pixels, taps_.get());
          add_input_grad<S>(b, group);
          kernel_grad_.compute(block_);
          generation_.add_features(group, grad_taps_.get(), pixels, features + index * generate_.hidden * kBlock);
          generation_.add_weight(grad_taps_.get(),
                                 pixels_.get() + (block_.i_begin * g_.out_w + block_.j_begin) * generation_.step,
                                 pixels, weight + group * g_.taps() * generation_.step);
          generation_.add_bias(grad_taps_.get(), pixels, bias + group * g_.taps());
        }
      }
      write_input_grad(b, group);
    }
  }

 private:
  // Scatters the output gradients of the block.
  template <int S>
  void add_input_grad(int64_t b, int64_t group) {
    GeneratedKernels<acc_t> kernels{taps_.get(), block_.width};
    for (int64_t c = 0; c < chunks_; ++c) {
      const Chunk chunk = chunk_at(g_, group * chunks_ + c);
      acc_t* const rows = grad_rows_.get() + c * blocks_.rows * g_.out_w * largest_;
      if (block_.j_begin == 0) {
        pack_rows(dy_, rows, {g_.out_w, 0}, b, chunk, block_.i_begin, 1, block_.i_end - block_.i_begin);
      }
      const GradStrip<acc_t> strip{packed_.get() + c * g_.height * columns_ * largest_, columns_ * chunk.size(), 0,
                                   g_.height};
      for (int64_t i = block_.i_begin; i < block_.i_end; ++i) {
        with_static_count<kChunkVectors>(chunk.vectors(), [&](auto N) {
          input_grad_row<S, decltype(N)::value>(g_, block_, i, rows + (i - block_.i_begin) * g_.out_w * chunk.size(),
                                                kernels, strip);
        });
      }
    }
  }

  void write_input_grad(int64_t b, int64_t group) {
    for (int64_t c = 0; c < chunks_; ++c) {
      const Chunk chunk = chunk_at(g_, group * chunks_ + c);
      const acc_t* const from = packed_.get() + c * g_.height * columns_ * largest_ + g_.padding_w * chunk.size();
      for (int64_t y = 0; y < g_.height; ++y) {
        unpack_pixels(dx_.row(b, chunk.first, y), dx_.stride_c, dx_.stride_w, from + y * columns_ * chunk.size(),
                      g_.width, chunk);
      }
    }
  }

  const Geometry& g_;
  const Image<const scalar_t> dy_, features_;
  const Image<scalar_t> dx_;
  const Generator<scalar_t, acc_t>& generate_;
  const GenerationGrad<acc_t>& generation_;
  const Blocks blocks_;
  const PhaseRows layout_;
  const Strips strips_;
  const int64_t chunks_, columns_, largest_;
  // Features by block and by pixel; the kernel and its gradient, of a block; output gradients of its rows; and the
  // gradient of the input, of all rows of a group, [chunk][row][column][channel].
  Buffer<acc_t> hidden_, pixels_, taps_, grad_taps_, grad_rows_, packed_;
  Block block_{};
  KernelGradStrip<scalar_t, BlockTaps<acc_t>> kernel_grad_;
};

// Writes the sum of `parts` gradients of the features of one image, [part][block][slice][hidden][kSlice].
template <typename scalar_t, typename acc_t>
void write_features_grad(const Geometry& g, const Image<scalar_t>& to, int64_t b, int64_t hidden, acc_t* from,
                         int64_t parts) {
  const Blocks blocks(g);
  const int64_t size = blocks.count(g.out_h) * hidden * kBlock;
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t n = 0; n < size; n += kLanes) {
      store(from + n, load<Channels<acc_t>>(from + n) + load<Channels<acc_t>>(from + part * size + n));
    }
  }
  for (int64_t n = 0; n < blocks.count(g.out_h); ++n) {
    const Block block = blocks.at(g, n, 0, g.out_h);
    for (int64_t p = 0; p < block.pixels(); ++p) {
      copy(to.row(b, 0, block.i_begin + p / block.width) + (block.j_begin + p % block.width) * to.stride_w,
           to.stride_c, from + (n * kBlock + p / kSlice * kSlice) * hidden + p % kSlice, kSlice, hidden);
    }
  }
}

template <typename scalar_t>
void fused_grad_kernel(const Geometry& g, const Tensor& grad_output, const Tensor& input, const Generation& generation,
                       const FusedGradients& gradients, const Parallel& parallel) {
  using acc_t = opmath_t<scalar_t>;
  const Generator<scalar_t, acc_t> generate(g, generation);
  const int64_t hidden = generate.hidden, step = ceil_div(hidden, kLanes) * kLanes, taps = g.taps();
  Buffer<acc_t> weight(g.groups * taps * hidden);  // [group][hidden][tap]
  for (int64_t n = 0; n < g.groups * hidden; ++n) {
    copy(weight.get() + n * taps, 1, generate.weight.get() + n / hidden * hidden * taps + n % hidden, hidden, taps);
  }
  const GenerationGrad<acc_t> generation_grad{hidden, step, taps, weight.get()};
  // The groups are divided among tasks if there are too few images for all threads. Each task has its own gradient of
  // the features. Each thread has its own gradients of weight and bias, which are the sums over some tasks.
  int64_t parts = 1;
  while (parts < g.groups && g.batch * parts < parallel.threads) {
    parts = min(2 * parts, g.groups);
  }
  const int64_t tasks = g.batch * parts, workers = min(parallel.threads, tasks);
  const int64_t features_size = Blocks(g).count(g.out_h) * hidden * kBlock, weights = g.groups * taps * step;
  Buffer<acc_t> features_grad(tasks * features_size), weight_grad(workers * weights),
      bias_grad(workers * g.groups * taps);
  with_static_stride<acc_t, 2>(g, [&](auto S) {
    parallel_for(parallel, workers, [&](int64_t begin, int64_t end) {
      FusedGradImage<scalar_t> image(g, grad_output, input, generation.features, gradients.input, generate,
                                     generation_grad);
      for (int64_t worker = begin; worker < end; ++worker) {
        acc_t* const weight_sums = weight_grad.get() + worker * weights;
        acc_t* const bias_sums = bias_grad.get() + worker * g.groups * taps;
        zero(weight_sums, weights);
        zero(bias_sums, g.groups * taps);
        for (int64_t task = tasks * worker / workers; task < tasks * (worker + 1) / workers; ++task) {
          acc_t* const features_sums = features_grad.get() + task * features_size;
          zero(features_sums, features_size);
          const int64_t part = task % parts;
          image.template compute<decltype(S)::value>(task / parts, part * g.groups / parts,
                                                     (part + 1) * g.groups / parts, features_sums, weight_sums,
                                                     bias_sums);
        }
      }
    });
  });
  const Image<scalar_t> to(gradients.features);
  parallel_for(parallel, g.batch, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      write_features_grad(g, to, b, hidden, features_grad.get() + b * parts * features_size, parts);
    }
  });
  for (int64_t worker = 1; worker < workers; ++worker) {
    for (int64_t n = 0; n < weights; n += kLanes) {
      acc_t* const sum = weight_grad.get() + n;
      store(sum, load<Channels<acc_t>>(sum) + load<Channels<acc_t>>(sum + worker * weights));
    }
    for (int64_t n = 0; n < g.groups * taps; ++n) {
      bias_grad.get()[n] += bias_grad.get()[worker * g.groups * taps + n];
    }
  }
  for (int64_t n = 0; n < g.groups * taps; ++n) {
    copy(static_cast<scalar_t*>(gradients.weight.data) + n * hidden, 1, weight_grad.get() + n * step, 1, hidden);
  }
  copy(static_cast<scalar_t*>(gradients.bias.data), 1, bias_grad.get(), 1, g.groups * taps);
}

}  // namespace
}  // namespace involution
