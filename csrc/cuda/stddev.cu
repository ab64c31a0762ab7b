// The ops of pggan_fast/ops/stddev.py.
#include <initializer_list>
#include <tuple>

#include "stddev_kernels.cuh"

namespace pggan_fast {
namespace {

Samples samples_of(const Tensor& x, Layout layout, int64_t group, int64_t maps, bool strided) {
  STD_TORCH_CHECK(x.dim() == 4, "minibatch_stddev: x must be [N, C, H, W]");
  STD_TORCH_CHECK(group > 0 && x.size(0) % group == 0 && maps > 0 && x.size(1) % maps == 0,
                  "minibatch_stddev: group is ", group, " and num_channels ", maps, ", which must divide the ",
                  x.size(0), " samples and ", x.size(1), " channels");
  const int64_t groups = x.size(0) / group, c = x.size(1), p = x.size(2) * x.size(3);
  if (layout == Layout::channels_last) return {groups, group, maps, p, c, 1, strided, 1};
  return {groups, group, maps, 1, c * p, p, strided, 1};
}

Tensor empty_with_maps(const Tensor& x, int64_t maps, Layout layout) {
  const int64_t sizes[] = {x.size(0), x.size(1) + maps, x.size(2), x.size(3)};
  return empty_with_layout(sizes, x.scalar_type(), layout);
}

// dy in x's layout and dtype.
Tensor gradient_with_maps(const Tensor& dy, const Tensor& x, int64_t maps, Layout layout) {
  STD_TORCH_CHECK(dy.dim() == 4 && dy.size(0) == x.size(0) && dy.size(1) == x.size(1) + maps &&
                      dy.size(2) == x.size(2) && dy.size(3) == x.size(3),
                  "minibatch_stddev: dy must be [N, C + num_channels, H, W]");
  check_device("minibatch_stddev", "dy", dy, x);
  return with_layout(with_dtype(dy, x.scalar_type()), layout);
}

Tensor empty_doubles(int64_t count) {
  const int64_t stride = 1;
  return empty_strided(&count, &stride, 1, ScalarType::Double);
}

// f(T, V, the samples with their number of blocks, the blocks of all), for tensors that begin at these places.
template <class F>
void with_kernel(const Tensor& x, Samples s, std::initializer_list<const void*> places, F f) {
  const bool aligned = std::all_of(places.begin(), places.end(), is_aligned);
  with_type(dtype_of(x), [&](auto type) {
    using T = decltype(type);
    constexpr int V = 16 / sizeof(T);
    // A vector must stay in one row and map, and begin where one may in tensors with maps, too.
    const bool fits = aligned && s.row_len / s.maps % V == 0 && s.wide_row() % V == 0;
    with_vector<T>(fits, [&](auto vector) {
      Samples shared = s;
      const int64_t blocks = divide_up(s.positions(), kThreads * int64_t(vector)), shares = s.groups * s.maps;
      // Enough to keep the largest GPU busy, and few sums.
      shared.blocks = std::min(blocks, divide_up(1024, shares));
      f(type, vector, shared, shares * shared.blocks);
    });
  });
}

double divisor_of(int64_t group, int64_t correction) { return double(std::max<int64_t>(group - correction, 1)); }

// T / (D E) for each group and map.
Tensor map_gradients(const Tensor& dy, const Samples& s, double divisor) {
  Tensor gradients = empty_doubles(s.groups * s.maps);
  with_type(dtype_of(dy), [&](auto type) {
    using T = decltype(type);
    launch("minibatch_stddev_backward", sum_maps_kernel<T>, s.groups * s.maps, pointer<T>(dy),
           output<double>(gradients), 1 / (divisor * double(s.positions())), s);
  });
  return gradients;
}

template <class T>
void write_maps(const Tensor& sums, const Tensor& y, double factor, const Samples& s) {
  launch("minibatch_stddev", write_maps_kernel<T>, s.groups * s.group * s.maps, pointer<double>(sums), output<T>(y),
         factor, s);
}

Tensor minibatch_stddev(Tensor x, int64_t group, int64_t maps, double eps, bool strided, int64_t correction) {
  const OnDeviceOf guard(x);
  const Layout layout = working_layout(x);
  const Samples samples = samples_of(x, layout, group, maps, strided);
  Tensor y = empty_with_maps(x, maps, layout);
  if (x.numel() == 0) return torch::stable::zero_(y);
  const Tensor x_dense = with_layout(x, layout);
  with_kernel(x, samples, {x_dense.const_data_ptr(), y.const_data_ptr()},
              [&](auto type, auto vector, const Samples& s, int64_t blocks) {
                using T = decltype(type);
                const Tensor sums = empty_doubles(blocks);
                launch("minibatch_stddev", stddev_forward_kernel<T, vector>, blocks, pointer<T>(x_dense), output<T>(y),
                       output<double>(sums), Acc<T>(divisor_of(group, correction)), Acc<T>(eps), s);
                write_maps<T>(sums, y, 1 / double(s.positions()), s);
              });
  return y;
}

Tensor minibatch_stddev_backward(Tensor dy, Tensor x, int64_t group, int64_t maps, double eps, bool strided,
                                 int64_t correction) {
  const OnDeviceOf guard(x);
  const Layout layout = working_layout(x);
  Output dx(fresh_like(x), layout);
  const Samples samples = samples_of(x, layout, group, maps, strided);
  const Tensor dy_dense = gradient_with_maps(dy, x, maps, layout);
  if (x.numel() == 0) return dx.finish();
  const Tensor x_dense = with_layout(x, layout);
  const double divisor = divisor_of(group, correction);
  const Tensor gradients = map_gradients(dy_dense, samples, divisor);
  with_kernel(x, samples, {x_dense.const_data_ptr(), dy_dense.const_data_ptr(), dx.buffer.const_data_ptr()},
              [&](auto type, auto vector, const Samples& s, int64_t blocks) {
                using T = decltype(type);
                launch("minibatch_stddev_backward", stddev_backward_kernel<T, vector>, blocks, pointer<T>(dy_dense),
                       pointer<T>(x_dense), pointer<double>(gradients), output<T>(dx.buffer), Acc<T>(divisor),
                       Acc<T>(eps), s);
              });
  return dx.finish();
}

std::tuple<Tensor, Tensor> minibatch_stddev_double_backward(Tensor g, Tensor dy, Tensor x, int64_t group, int64_t maps,
                                                            double eps, bool strided, int64_t correction) {
  const OnDeviceOf guard(x);
  const Layout layout = working_layout(x);
  Output dx(fresh_like(x), layout), d_dy(torch::stable::empty_like(dy), layout);
  const Samples samples = samples_of(x, layout, group, maps, strided);
  const Tensor dy_dense = gradient_with_maps(dy, x, maps, layout);
  check_device("minibatch_stddev_double_backward", "g", g, x);
  STD_TORCH_CHECK(g.sizes().equals(x.sizes()), "minibatch_stddev: g must have x's shape");
  if (x.numel() == 0) return {torch::stable::zero_(d_dy.tensor), dx.finish()};
  const Tensor x_dense = with_layout(x, layout), g_dense = with_layout(with_dtype(g, x.scalar_type()), layout);
  const double divisor = divisor_of(group, correction);
  const Tensor gradients = map_gradients(dy_dense, samples, divisor);
  with_kernel(
      x, samples,
      {x_dense.const_data_ptr(), g_dense.const_data_ptr(), d_dy.buffer.const_data_ptr(), dx.buffer.const_data_ptr()},
      [&](auto type, auto vector, const Samples& s, int64_t blocks) {
        using T = decltype(type);
        const Tensor sums = empty_doubles(blocks);
        launch("minibatch_stddev_double_backward", stddev_double_backward_kernel<T, vector>, blocks,
               pointer<T>(g_dense), pointer<T>(x_dense), pointer<double>(gradients), output<T>(d_dy.buffer),
               output<T>(dx.buffer), output<double>(sums), Acc<T>(divisor), Acc<T>(eps), s);
        write_maps<T>(sums, d_dy.buffer, 1 / (divisor * double(s.positions())), s);
      });
  return {d_dy.finish(), dx.finish()};
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("minibatch_stddev", TORCH_BOX(&minibatch_stddev));
  library.impl("minibatch_stddev_backward", TORCH_BOX(&minibatch_stddev_backward));
  library.impl("minibatch_stddev_double_backward", TORCH_BOX(&minibatch_stddev_double_backward));
}

}  // namespace pggan_fast
