// bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py.
#pragma once

#include "bias_act_channels_last.h"
#include "bias_act_contiguous.h"

namespace pggan_fast::LEVEL {

// The table's entries

inline void bias_act_forward(const BiasActForward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const auto* bias = padded<Acc<T>>(a.bias, a.shape.c, 0);
    for (int64_t item = begin; item < end; ++item) {
      if (bias_act_by_planes(a.shape, a.epilogue)) {
        forward_planes<T>(a, planes_of(a.shape, item), bias);
        continue;
      }
      const Block block = block_of(a.shape, item);
      if (a.shape.layout == Layout::contiguous) forward_contiguous<T>(a, block, bias);
      else forward_channels_last<T>(a, block, bias);
    }
  });
}

inline void bias_act_backward(const BiasActBackward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t item = begin; item < end; ++item) {
      if (bias_act_by_planes(a.shape, a.epilogue)) {
        backward_planes<T>(a, planes_of(a.shape, item));
        continue;
      }
      const Block block = block_of(a.shape, item);
      if (a.shape.layout == Layout::contiguous) backward_contiguous<T>(a, block);
      else backward_channels_last<T>(a, block);
    }
  });
}

inline void bias_act_double_backward(const BiasActDoubleBackward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const auto* g_bias = padded<Acc<T>>(a.g_bias, a.shape.c, 0);
    for (int64_t item = begin; item < end; ++item) {
      if (bias_act_by_planes(a.shape, a.epilogue)) {
        double_backward_planes<T>(a, planes_of(a.shape, item), g_bias);
        continue;
      }
      const Block block = block_of(a.shape, item);
      if (a.shape.layout == Layout::contiguous) double_backward_contiguous<T>(a, block, g_bias);
      else double_backward_channels_last<T>(a, block, g_bias);
    }
  });
}

}  // namespace pggan_fast::LEVEL
