// The ops of pggan_fast/ops/bias_act.py.
#include "../shared/bias_act.h"

#include <cmath>
#include <initializer_list>
#include <tuple>

#include "bias_act_kernels.cuh"

namespace pggan_fast {
namespace {

// How many tiles are worked on at a time: as many as the GPU's blocks take. Where every one of them reads a bias or
// leaves sums for each channel, no more than one for 64 bytes of a channel (128 in fp64), so that this adds less than
// 5% to what is read and written.
template <class T, class... Parameters>
int64_t tiles_at_a_time(const char* name, void (*kernel)(Parameters...), const Tiling& t, const Shape& s, bool norm,
                        bool per_channel) {
  const int64_t bytes = s.n * s.p * sizeof(T), most = per_channel ? bytes / (16 * sizeof(Acc<T>)) : t.tiles;
  const int64_t tiles = std::min(t.tiles, std::max<int64_t>(most, 1)), blocks_of_tile = blocks_for(t, 1, norm);
  return divide_up(blocks_at_once(name, kernel, tiles * blocks_of_tile), blocks_of_tile);
}

template <class A>
Coefficients<A> coefficients(const Epilogue& e) {
  return {A(e.scale), A(e.gain), A(e.slope), A(e.eps)};
}

// f(T, V, channels_last, norm), each a value whose type says it, for tensors that begin at these places.
template <class F>
void with_kernel(Dtype dtype, const Shape& s, bool norm, std::initializer_list<const void*> places, F f) {
  const bool aligned = std::all_of(places.begin(), places.end(), is_aligned);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    with_bool(s.layout == Layout::channels_last, [&](auto channels_last) {
      with_vector<T>(aligned && (channels_last ? s.c : s.p) % (16 / sizeof(T)) == 0, [&](auto vector) {
        with_bool(norm, [&](auto has_norm) { f(type, vector, channels_last, has_norm); });
      });
    });
  });
}

// f(std::bool_constant): whether a thread takes vectors of several columns. Without pixel norm channels_last ones always.
template <class T, int V, bool channels_last, bool norm, class F>
void with_narrow(const Shape& s, F f) {
  if constexpr (V == 1 || !channels_last) f(std::false_type{});
  else if constexpr (!norm) f(std::true_type{});
  else with_bool(is_narrow<T, V>(s, norm), f);
}

bool is_empty(const Shape& s) { return s.n * s.c * s.p == 0; }

Tensor run_forward(const Tensor& x, const Tensor& y, const std::optional<Tensor>& bias, Layout layout,
                   const Epilogue& e) {
  Tensor r = empty_factors(x, e.pixel_norm);
  const auto shift = per_channel(bias, x);
  const Shape shape = shape_of(x, layout);
  if (is_empty(shape)) return r;
  with_kernel(dtype_of(x), shape, e.pixel_norm, {x.const_data_ptr(), y.const_data_ptr()},
              [&](auto type, auto vector, auto channels_last, auto norm) {
                using T = decltype(type);
                with_narrow<T, vector, channels_last, norm>(shape, [&](auto narrow) {
                  const Tiling t = tiling_of<T, vector, channels_last, 1, narrow>(shape, norm);
                  const auto kernel = bias_act_forward_kernel<T, vector, channels_last, norm, narrow>;
                  const int64_t tiles = tiles_at_a_time<T>("bias_act", kernel, t, shape, norm, shift.has_value());
                  launch("bias_act", kernel, blocks_for(t, tiles, norm), pointer<T>(x), pointer<Acc<T>>(shift),
                         output<T>(y), output<Acc<T>>(r), coefficients<Acc<T>>(e), t);
                });
              });
  return r;
}

std::tuple<Tensor, Tensor> bias_act(Tensor x, std::optional<Tensor> bias, double scale, std::string act, double slope,
                                    double gain, bool pixel_norm, double eps) {
  const OnDeviceOf guard(x);
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, eps);
  check_device("bias_act", "bias", bias, x);
  Tensor fresh = fresh_like(x);
  const Layout layout = working_layout(fresh);
  Output y(fresh, layout);
  Tensor r = run_forward(with_layout(x, layout), y.buffer, bias, layout, e);
  return {y.finish(), r};
}

Tensor bias_act_inplace(Tensor x, std::optional<Tensor> bias, double scale, std::string act, double slope, double gain,
                        bool pixel_norm, double eps) {
  const OnDeviceOf guard(x);
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, eps);
  check_device("bias_act_", "bias", bias, x);
  const Layout layout = working_layout(x);
  Tensor work = with_layout(x, layout);
  Tensor r = run_forward(work, work, bias, layout, e);
  if (work.get() != x.get()) torch::stable::copy_(x, work);
  return r;
}

// Whether backward reads values of y: those of an affine map do not count.
bool reads_output(const Epilogue& e) { return e.pixel_norm || e.slope != 1; }

std::tuple<Tensor, Tensor> bias_act_backward(Tensor dy, std::optional<Tensor> dr, Tensor y, std::optional<Tensor> r,
                                             double scale, std::string act, double slope, double gain, bool pixel_norm,
                                             bool needs_db) {
  const OnDeviceOf guard(y);
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, 0);
  check_device("bias_act_backward", "dy", dy, y);
  check_device("bias_act_backward", "dr", dr, y);
  check_device("bias_act_backward", "r", r, y);
  const Layout layout = working_layout(y);
  Output dx(fresh_like(y), layout);
  const Tensor dy_dense = like("dy", dy, y, layout), y_dense = with_layout(y, layout);
  const auto dr_dense = per_pixel("dr", dr, y);
  const auto r_dense = factors(r, y, pixel_norm);
  Tensor db = empty_vector(needs_db ? y.size(1) : 0, accumulation_type(y));
  const Shape shape = shape_of(y, layout);
  if (is_empty(shape)) return {dx.finish(), torch::stable::zero_(db)};
  const auto run = [&](const Epilogue& e, bool with_sums) {
    with_kernel(
        dtype_of(y), shape, pixel_norm,
        {dy_dense.const_data_ptr(), y_dense.const_data_ptr(), dx.buffer.const_data_ptr()},
        [&](auto type, auto vector, auto channels_last, auto norm) {
          using T = decltype(type);
          using A = Acc<T>;
          with_narrow<T, vector, channels_last, norm>(shape, [&](auto narrow) {
            const Tiling t = tiling_of<T, vector, channels_last, 2, narrow>(shape, norm);
            // With a bias, every block (group of chunks) leaves one row of sums.
            const auto kernel = bias_act_backward_kernel<T, vector, channels_last, norm, narrow>;
            const int64_t rows = tiles_at_a_time<T>("bias_act_backward", kernel, t, shape, norm, with_sums);
            std::optional<Tensor> sums;
            if (with_sums) sums = empty_vector(rows * t.c, accumulation_type(y));
            launch("bias_act_backward", kernel, blocks_for(t, rows, norm), pointer<T>(dy_dense), pointer<A>(dr_dense),
                   reads_output(e) ? pointer<T>(y_dense) : nullptr, pointer<A>(r_dense), output<T>(dx.buffer),
                   sums ? output<A>(*sums) : nullptr, coefficients<A>(e), t);
            if (sums)
              launch("bias_act_backward", sum_rows_kernel<A>, divide_up(t.c, 32), pointer<A>(*sums), rows, t.c,
                     output<A>(db));
          });
        });
  };
  // A scale of 0, for which the kernel leaves no sums, takes a launch of its own after that of the sums.
  Epilogue unscaled = e;
  unscaled.scale = 1;
  if (scale == 0 && needs_db) run(unscaled, true);
  run(e, needs_db && scale != 0);
  return {dx.finish(), db};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bias_act_double_backward(
    std::optional<Tensor> g, std::optional<Tensor> g_bias, Tensor dy, std::optional<Tensor> dr, Tensor y,
    std::optional<Tensor> r, double scale, std::string act, double slope, double gain, bool pixel_norm) {
  const OnDeviceOf guard(y);
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, 0);
  check_device("bias_act_double_backward", "g", g, y);
  check_device("bias_act_double_backward", "g_bias", g_bias, y);
  check_device("bias_act_double_backward", "dy", dy, y);
  check_device("bias_act_double_backward", "dr", dr, y);
  check_device("bias_act_double_backward", "r", r, y);
  const Layout layout = working_layout(y);
  Output d_dy(fresh_like(y), layout);
  std::optional<Output> d_y;
  if (pixel_norm) d_y.emplace(fresh_like(y), layout);
  Tensor d_r = empty_factors(y, pixel_norm), d_dr = empty_factors(y, pixel_norm);
  const Tensor dy_dense = like("dy", dy, y, layout), y_dense = with_layout(y, layout);
  const auto r_dense = factors(r, y, pixel_norm);
  const auto g_dense = like("g", g, y, layout), dr_dense = per_pixel("dr", dr, y);
  const auto g_bias_dense = per_channel(g_bias, y);
  const Shape shape = shape_of(y, layout);
  const Tensor& d_y_buffer = d_y ? d_y->buffer : d_dy.buffer;
  if (!is_empty(shape))
    with_kernel(dtype_of(y), shape, pixel_norm,
                {g_dense ? g_dense->const_data_ptr() : nullptr, dy_dense.const_data_ptr(), y_dense.const_data_ptr(),
                 d_dy.buffer.const_data_ptr(), d_y_buffer.const_data_ptr()},
                [&](auto type, auto vector, auto channels_last, auto norm) {
                  using T = decltype(type);
                  using A = Acc<T>;
                  const Tiling t = tiling_of<T, vector, channels_last, 3>(shape, norm);
                  const DoubleBackward<T> work{pointer<T>(g_dense),
                                               pointer<A>(g_bias_dense),
                                               pointer<T>(dy_dense),
                                               pointer<A>(dr_dense),
                                               reads_output(e) ? pointer<T>(y_dense) : nullptr,
                                               pointer<A>(r_dense),
                                               output<T>(d_dy.buffer),
                                               output<T>(d_y_buffer),
                                               output<A>(d_r),
                                               output<A>(d_dr)};
                  const auto kernel = bias_act_double_backward_kernel<T, vector, channels_last, norm>;
                  const int64_t tiles = tiles_at_a_time<T>("bias_act_double_backward", kernel, t, shape, norm,
                                                           g_bias_dense.has_value());
                  launch("bias_act_double_backward", kernel, blocks_for(t, tiles, norm), work, coefficients<A>(e), t);
                });
  Tensor d_y_finished = d_y ? d_y->finish() : empty_factors(y, false);
  return {d_dy.finish(), d_y_finished, d_r, d_dr};
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("bias_act", TORCH_BOX(&bias_act));
  library.impl("bias_act_", TORCH_BOX(&bias_act_inplace));
  library.impl("bias_act_backward", TORCH_BOX(&bias_act_backward));
  library.impl("bias_act_double_backward", TORCH_BOX(&bias_act_double_backward));
}

}  // namespace pggan_fast
