// The Python side of the harness: the order of threads, the bytes of each launch, the kernels with planted bugs.
// Loading the module registers the ops of csrc/cuda in torch's namespace pggan_fast_cuda_on_cpu.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "machine.h"
#include "planted.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda_on_cpu, m) {
  py::enum_<cuda_on_cpu::Order>(m, "Order")
      .value("ascending", cuda_on_cpu::Order::ascending)
      .value("descending", cuda_on_cpu::Order::descending)
      .value("shuffled", cuda_on_cpu::Order::shuffled);
  m.def("set_order", &cuda_on_cpu::set_order, py::arg("order"), py::arg("seed") = 0,
        "The order of a block's threads from now on. A shuffle is drawn anew for each block.");
  m.def("set_ends", &cuda_on_cpu::set_ends, py::arg("blocks"),
        "From now on only so many blocks run from either end of a grid; 0: all.");

  m.def("set_device", [](int index) { cuda_on_cpu::current_device = index; }, py::arg("index"),
        "Make another device than the tensors' the current one.");
  m.def("set_resident_blocks", [](int blocks) { return std::exchange(cuda_on_cpu::resident_blocks, blocks); },
        py::arg("blocks"), "The blocks that the multiprocessor holds from now on; returns how many it did.");

  py::class_<cuda_on_cpu::Launch>(m, "Launch")
      .def_readonly("name", &cuda_on_cpu::Launch::name)
      .def_readonly("threads", &cuda_on_cpu::Launch::threads)
      .def_readonly("loaded", &cuda_on_cpu::Launch::loaded, "bytes read from global memory")
      .def_readonly("stored", &cuda_on_cpu::Launch::stored, "bytes written to global memory");
  m.def("take_launches", [] { return std::exchange(cuda_on_cpu::launches, {}); },
        "The launches since the last call, in order.");

  const auto plant = [&](const char* name, std::vector<float> (*run)(bool)) {
    m.def(name, run, py::arg("right") = false);
  };
  plant("overrun", planted::overrun);
  plant("shared_overrun", planted::shared_overrun);
  plant("misaligned", planted::misaligned);
  plant("divergent_barrier", planted::divergent_barrier);
  plant("missing_barrier", planted::missing_barrier);
  plant("missing_wait", planted::missing_wait);
  m.def("product", planted::product, py::arg("dtype"), py::arg("a"), py::arg("b"));
  m.def("loaded_tile", planted::loaded_tile, py::arg("tile"), py::arg("transposed"));
}
