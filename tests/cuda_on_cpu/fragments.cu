// One product on the emulated tensor cores, its registers filled and read by the tables of the PTX ISA ("Matrix
// Fragments for mma.m16n8k16" and "mma.m16n8k8"), and what ldmatrix makes of a tile: tests hold mma.cuh to both.
#include "../../csrc/cuda/mma.cuh"
#include "planted.h"

namespace planted {
namespace {

using namespace pggan_fast;

struct Tile;

// d [16, 8] = a [16, K] b [K, 8], row-major; K is 16 elements of two bytes, or 8 of four.
template <class T>
__global__ void multiply(const float* a, const float* b, float* d) {
  constexpr int K = kDepth<T>, kHalf = K / 2, kPer = 4 / sizeof(T);
  if (threadIdx.x >= 32) return;
  const int group = threadIdx.x / 4, in_group = threadIdx.x % 4;
  unsigned a_registers[4], b_registers[2];
  for (int i = 0; i < 4; ++i) {
    T values[kPer];
    for (int j = 0; j < kPer; ++j)
      values[j] = static_cast<T>(a[(group + i % 2 * 8) * K + in_group * kPer + j + i / 2 * kHalf]);
    memcpy(&a_registers[i], values, 4);
  }
  for (int i = 0; i < 2; ++i) {
    T values[kPer];
    for (int j = 0; j < kPer; ++j) values[j] = static_cast<T>(b[(in_group * kPer + j + i * kHalf) * 8 + group]);
    memcpy(&b_registers[i], values, 4);
  }
  float sums[4] = {};
  multiply_add<T>(sums, a_registers, b_registers[0], b_registers[1]);
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + in_group * 2 + i % 2] = sums[i];
}

// A tile [16, 16] of two bytes, as the operand a of a product, or transposed.
template <bool transposed>
__global__ void load_tile(const float* tile, float* out) {
  using T = torch::headeronly::BFloat16;
  T* shared = reinterpret_cast<T*>(shared_array<Tile, uint4, 32>());
  for (int i = threadIdx.x; i < 256; i += kThreads) shared[i] = static_cast<T>(tile[i]);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x, matrix = lane / 8;
  // Matrices 0 to 3: rows 0 to 7 and 8 to 15 of the left half, then of the right half; transposed, of the top half.
  const int row = lane % 8 + (transposed ? matrix / 2 : matrix % 2) * 8, half = transposed ? matrix % 2 : matrix / 2;
  unsigned registers[4];
  load_matrices<transposed>(registers, shared_address(shared + row * 16 + half * 8));
  for (int i = 0; i < 4; ++i) {
    T values[2];
    memcpy(values, &registers[i], 4);
    for (int j = 0; j < 2; ++j)
      out[(lane / 4 + i % 2 * 8) * 16 + lane % 4 * 2 + j + i / 2 * 8] = static_cast<float>(values[j]);
  }
}

// Copies 16 bytes and reads them, with or without waiting.
__global__ void copy(const float* from, float* to, bool wait) {
  float* shared = reinterpret_cast<float*>(shared_array<Tile, uint4, 32>());
  if (threadIdx.x) return;
  copy_async(shared_address(shared), from, true);
  if (wait) wait_for_copies();
  for (int i = 0; i < 4; ++i) to[i] = shared[i];
}

}  // namespace

std::vector<float> product(const std::string& dtype, const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> d(16 * 8);
  const auto kernel = dtype == "tf32"   ? multiply<float>
                      : dtype == "bf16" ? multiply<torch::headeronly::BFloat16>
                                        : multiply<torch::headeronly::Half>;
  launch("product", kernel, 1, a.data(), b.data(), d.data());
  return d;
}

std::vector<float> loaded_tile(const std::vector<float>& tile, bool transposed) {
  std::vector<float> out(256);
  launch("loaded_tile", transposed ? load_tile<true> : load_tile<false>, 1, tile.data(), out.data());
  return out;
}

std::vector<float> missing_wait(bool right) {
  alignas(16) const float from[4] = {1, 2, 3, 4};
  std::vector<float> to(4);
  launch("missing_wait", copy, 1, &from[0], to.data(), right);
  return to;
}

}  // namespace planted
