// Every function of pyuniversal._C. What an argument must be is checked where it is used, by csrc/cpu/<op>.cpp.
#include <pybind11/stl.h>

#include "dlpack.h"

namespace pyuniversal::cpu {
void histogram_(const Tensor& counts, const Tensor& x, const Tensor& edges, int threads);
void moments_(const Tensor& state, const Tensor& x, const std::vector<int64_t>& ends, int threads);
void quantize(const Tensor& data, const Tensor& rounding, const Tensor& x, const Tensor& centre, const Tensor& inverse, const Tensor& token_key,
              const Tensor& neuron_key, int threads);
}  // namespace pyuniversal::cpu

PYBIND11_MODULE(_C, module) {
    using namespace pybind11::literals;
    using namespace pyuniversal;
    using without_gil = pybind11::call_guard<pybind11::gil_scoped_release>;

    module.doc() = "Compiled ops: histogram_, moments_, quantize. Contracts: pyuniversal/ops/<op>.py. Tensors are borrowed through DLPack.";
#ifdef PYUNIVERSAL_HAS_CUDA
    module.attr("has_cuda") = true;
#else
    module.attr("has_cuda") = false;
#endif
    module.def("histogram_", &cpu::histogram_, "counts"_a, "x"_a, "edges"_a, "threads"_a, without_gil(), "counts[n, #{edges < x[t, n]}] += 1");
    module.def("moments_", &cpu::moments_, "state"_a, "x"_a, "ends"_a, "threads"_a, without_gil(), "merge the moments of x[:end] for each end");
    module.def("quantize", &cpu::quantize, "data"_a, "rounding"_a, "x"_a, "centre"_a, "inverse"_a, "token_key"_a, "neuron_key"_a, "threads"_a, without_gil(),
               "data[n, t] = floor((x[t, n] - centre[n]) * inverse[n] + dither), rounding[n] = sum of f (1 - f)");
}
