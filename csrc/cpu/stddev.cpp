#include <cmath>
#include <tuple>

#include "tensors.h"

namespace pggan_fast {
namespace {

// Everything but the tensors.
Stddev work_on(const Tensor& x, Layout layout, int64_t group, int64_t maps, double eps, bool strided,
               int64_t correction) {
  STD_TORCH_CHECK(x.dim() == 4, "minibatch_stddev: x must be [N, C, H, W]");
  STD_TORCH_CHECK(group > 0 && x.size(0) % group == 0 && maps > 0 && x.size(1) % maps == 0,
                  "minibatch_stddev: group is ", group, " and num_channels ", maps, ", which must divide the ",
                  x.size(0), " samples and ", x.size(1), " channels");
  const int64_t groups = x.size(0) / group, c = x.size(1), p = x.size(2) * x.size(3);
  Stddev work{};
  work.dtype = dtype_of(x);
  work.samples = layout == Layout::channels_last ? Samples{groups, group, maps, p, c, 1, strided}
                                                 : Samples{groups, group, maps, 1, c * p, p, strided};
  work.eps = eps;
  work.divisor = double(std::max<int64_t>(group - correction, 1));
  return work;
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
  return with_layout(with_dtype(dy, x.scalar_type()), layout);
}

int64_t work_items_of(const Samples& s) {
  const int64_t chunks = stddev_chunks(s), rows = stddev_rows(s);
  return s.groups * (chunks > 1 ? s.rows * s.maps * chunks : (s.rows + rows - 1) / rows);
}

int64_t values_of(const Samples& s) { return s.groups * s.group * s.rows * s.row_len; }

using Kernel = void (*)(const Stddev&, int64_t, int64_t);

void run(Kernel kernel, const Stddev& work) {
  const int64_t items = work_items_of(work.samples);
  parallel(items, values_of(work.samples) / items, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

void run_on_maps(Kernel kernel, const Stddev& work) {
  const Samples& s = work.samples;
  parallel(s.groups * s.group * s.maps, s.rows * s.map_len,
           [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

// Runs a kernel that sums per item; returns for each group and map the sum times `factor`. Items are added in order,
// so that the result does not depend on the threads.
std::vector<double> run_and_sum(Kernel kernel, Stddev work, double factor) {
  const Samples& s = work.samples;
  const int64_t items = work_items_of(s), per_group = items / s.groups;
  std::vector<double> sums(items * s.maps, 0.0), totals(s.groups * s.maps, 0.0);
  work.sums = sums.data();
  run(kernel, work);
  for (int64_t item = 0; item < items; ++item)
    for (int64_t map = 0; map < s.maps; ++map)
      totals[item / per_group * s.maps + map] += factor * sums[item * s.maps + map];
  return totals;
}

// Values of one map of one group.
double elements_of(const Samples& s) { return double(s.rows) * double(s.row_len / s.maps); }

// For each group and map: the sum of dy's map over the group and all pixels, T of the formulas, over D E.
std::vector<double> map_gradients(Stddev work) {
  const Samples& s = work.samples;
  std::vector<double> totals(s.groups * s.maps, 0.0), sums(totals.size() * s.group);
  work.sums = sums.data();
  run_on_maps(kernels().stddev_read_maps, work);
  for (int64_t sample = 0; sample < s.groups * s.group; ++sample)
    for (int64_t map = 0; map < s.maps; ++map)
      totals[(s.strided ? sample % s.groups : sample / s.group) * s.maps + map] +=
          sums[sample * s.maps + map] / (work.divisor * elements_of(s));
  return totals;
}

Tensor minibatch_stddev(Tensor x, int64_t group, int64_t maps, double eps, bool strided, int64_t correction) {
  const Layout layout = working_layout(x);
  Stddev work = work_on(x, layout, group, maps, eps, strided, correction);
  Tensor y = empty_with_maps(x, maps, layout);
  if (x.numel() == 0) return torch::stable::zero_(y);
  const Tensor x_dense = with_layout(x, layout);
  work.x = data(x_dense);
  work.y = y.mutable_data_ptr();
  const std::vector<double> values = run_and_sum(kernels().stddev_forward, work, 1 / elements_of(work.samples));
  work.factors = values.data();
  run_on_maps(kernels().stddev_write_maps, work);
  return y;
}

Tensor minibatch_stddev_backward(Tensor dy, Tensor x, int64_t group, int64_t maps, double eps, bool strided,
                                 int64_t correction) {
  Output dx(fresh_like(x), working_layout(x));
  const Layout layout = working_layout(x);
  Stddev work = work_on(x, layout, group, maps, eps, strided, correction);
  const Tensor dy_dense = gradient_with_maps(dy, x, maps, layout);
  if (x.numel() == 0) return dx.finish();
  const Tensor x_dense = with_layout(x, layout);
  work.x = data(x_dense);
  work.dy = data(dy_dense);
  work.dx = dx.buffer.mutable_data_ptr();
  const std::vector<double> factors = map_gradients(work);
  work.factors = factors.data();
  run(kernels().stddev_backward, work);
  return dx.finish();
}

std::tuple<Tensor, Tensor> minibatch_stddev_double_backward(Tensor g, Tensor dy, Tensor x, int64_t group, int64_t maps,
                                                            double eps, bool strided, int64_t correction) {
  const Layout layout = working_layout(x);
  Output dx(fresh_like(x), layout), d_dy(torch::stable::empty_like(dy), layout);
  Stddev work = work_on(x, layout, group, maps, eps, strided, correction);
  const Tensor dy_dense = gradient_with_maps(dy, x, maps, layout);
  STD_TORCH_CHECK(g.sizes().equals(x.sizes()), "minibatch_stddev: g must have x's shape");
  if (x.numel() == 0) return {torch::stable::zero_(d_dy.tensor), dx.finish()};
  const Tensor x_dense = with_layout(x, layout), g_dense = with_layout(with_dtype(g, x.scalar_type()), layout);
  work.x = data(x_dense);
  work.g = data(g_dense);
  work.dy = data(dy_dense);
  work.dx = dx.buffer.mutable_data_ptr();
  work.y = d_dy.buffer.mutable_data_ptr();
  const std::vector<double> gradients = map_gradients(work);
  work.factors = gradients.data();
  const std::vector<double> values =
      run_and_sum(kernels().stddev_double_backward, work, 1 / (work.divisor * elements_of(work.samples)));
  work.factors = values.data();
  run_on_maps(kernels().stddev_write_maps, work);
  return {d_dy.finish(), dx.finish()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) {
  m.impl("minibatch_stddev", TORCH_BOX(&minibatch_stddev));
  m.impl("minibatch_stddev_backward", TORCH_BOX(&minibatch_stddev_backward));
  m.impl("minibatch_stddev_double_backward", TORCH_BOX(&minibatch_stddev_double_backward));
}

}  // namespace pggan_fast
