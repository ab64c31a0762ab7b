// Kernels with bugs, one each, for the tests that the harness finds them. `right` runs the same without the bug.
#pragma once

#include <string>
#include <vector>

namespace planted {

std::vector<float> overrun(bool right);           // writes one value behind an array
std::vector<float> shared_overrun(bool right);    // reads one value behind an array in shared memory
std::vector<float> misaligned(bool right);        // loads 16 bytes from an address that 16 does not divide
std::vector<float> divergent_barrier(bool right); // half the threads skip __syncthreads
std::vector<float> missing_barrier(bool right);   // reads what another thread writes, without __syncthreads between
std::vector<float> missing_wait(bool right);      // reads what an asynchronous copy brings, without waiting for it

// See fragments.cu.
std::vector<float> product(const std::string& dtype, const std::vector<float>& a, const std::vector<float>& b);
std::vector<float> loaded_tile(const std::vector<float>& tile, bool transposed);

}  // namespace planted
