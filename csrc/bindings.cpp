// Every function of pyuniversal._C. What an argument must be is checked where it is used, by csrc/cpu/<op>.cpp.
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "dlpack.h"

namespace pyuniversal::cpu {
void dyadic_histogram_(const Tensor& counts, const Tensor& exponent, const Tensor& x, int threads);
void histogram_(const Tensor& counts, const Tensor& x, const Tensor& edges, int threads);
void logit_stats(const Tensor& sums, const Tensor& greater, const Tensor& logits, const Tensor& next_id, int threads);
void moments_(const Tensor& state, const Tensor& x, const std::vector<int64_t>& ends, int threads, const std::string& activation);
void pair_sums_(const Tensor& sums, const Tensor& x, const Tensor& y, const Tensor& centre_x, const Tensor& centre_y, const Tensor& partner, int threads);
void product_(const Tensor& total, const Tensor& x, const Tensor& y, const Tensor& x_scale, const Tensor& y_scale, int threads);
double peak(const std::string& kind, int threads, double seconds);
double read_bandwidth(const Tensor& x, int threads);
void quantize(const Tensor& data, const Tensor& rounding, const Tensor& x, const Tensor& centre, const Tensor& inverse, const Tensor& token_key,
              const Tensor& neuron_key, int threads);
void summarize_correlation(const Tensor& total, int64_t tokens, const Tensor& x, const Tensor& y, const Tensor& edges, const Tensor& x_best,
                           const Tensor& x_index, const Tensor& x_histogram, const Tensor& x_moments, const Tensor& y_best, const Tensor& y_index,
                           const Tensor& y_histogram, const Tensor& y_moments, int threads);
void token_sums_(const Tensor& sums, const Tensor& counts, const Tensor& x, const Tensor& ids, int threads);
}  // namespace pyuniversal::cpu

namespace pyuniversal::cuda {
void product_(const Tensor& total, const Tensor& x, const Tensor& y, const Tensor& x_scale, const Tensor& y_scale, uintptr_t stream);
std::string problem();
}  // namespace pyuniversal::cuda

PYBIND11_MODULE(_C, module) {
    using namespace pybind11::literals;
    using namespace pyuniversal;
    using without_gil = pybind11::call_guard<pybind11::gil_scoped_release>;

    module.doc() =
        "Compiled ops: dyadic_histogram_, histogram_, logit_stats, moments_, pair_sums_, product_, quantize, summarize_correlation, token_sums_. Contracts: "
        "pyuniversal/ops/<op>.py. Tensors are borrowed through DLPack. cuda_<op> is for tensors on a GPU, queued on a stream, where has_cuda says so.";
#ifdef PYUNIVERSAL_HAS_CUDA
    module.attr("has_cuda") = true;
    module.def("cuda_problem", &cuda::problem, "why no CUDA kernel can run here, in words; empty if it can");
    module.def("cuda_product_", &cuda::product_, "total"_a, "x"_a, "y"_a, "x_scale"_a, "y_scale"_a, "stream"_a, without_gil(), "total += scaled x y^T");
#else
    module.attr("has_cuda") = false;
#endif
    module.def("instruction_set", &cpu::instruction_set, "the one that ops on the CPU use: the best, or what PYUNIVERSAL_ISA names");
    module.def("instruction_sets", &cpu::instruction_sets, "all that this CPU has, the best last");
    module.def("peak", &cpu::peak, "kind"_a, "threads"_a, "seconds"_a, without_gil(), "operations a second over registers: int8 or float32");
    module.def("read_bandwidth", &cpu::read_bandwidth, "x"_a, "threads"_a, without_gil(), "bytes a second, reading x once");
    module.def("dyadic_histogram_", &cpu::dyadic_histogram_, "counts"_a, "exponent"_a, "x"_a, "threads"_a, without_gil(),
               "counts[n, bins / 2 + floor(x[t, n] / 2^exponent[n])] += 1, widened first so that all fit");
    module.def("histogram_", &cpu::histogram_, "counts"_a, "x"_a, "edges"_a, "threads"_a, without_gil(), "counts[n, #{edges < x[t, n]}] += 1");
    module.def("logit_stats", &cpu::logit_stats, "sums"_a, "greater"_a, "logits"_a, "next_id"_a, "threads"_a, without_gil(),
               "of each row: largest, true logit, sum of e^(x - largest) without the largest, sum of (largest - x) e^(x - largest); how many are greater");
    module.def("moments_", &cpu::moments_, "state"_a, "x"_a, "ends"_a, "threads"_a, "activation"_a = "", without_gil(),
               "merge the moments of x[:end] for each end");
    module.def("pair_sums_", &cpu::pair_sums_, "sums"_a, "x"_a, "y"_a, "centre_x"_a, "centre_y"_a, "partner"_a, "threads"_a, without_gil(),
               "sums[n, c] += sum of (x[t, n] - centre_x[n]) (y[t, p] - centre_y[p]), p = partner[n, c]");
    module.def("product_", &cpu::product_, "total"_a, "x"_a, "y"_a, "x_scale"_a, "y_scale"_a, "threads"_a, without_gil(), "total += scaled x y^T");
    module.def("quantize", &cpu::quantize, "data"_a, "rounding"_a, "x"_a, "centre"_a, "inverse"_a, "token_key"_a, "neuron_key"_a, "threads"_a, without_gil(),
               "q[t, n] = floor((x[t, n] - centre[n]) * inverse[n] + dither), rounding[n] = sum of f (1 - f)");
    module.def("summarize_correlation", &cpu::summarize_correlation, "total"_a, "tokens"_a, "x"_a, "y"_a, "edges"_a, "x_best"_a, "x_index"_a, "x_histogram"_a,
               "x_moments"_a, "y_best"_a, "y_index"_a, "y_histogram"_a, "y_moments"_a, "threads"_a, without_gil(),
               "what is kept of r = (total - tokens shift_x shift_y) / (scale_x scale_y)");
    module.def("token_sums_", &cpu::token_sums_, "sums"_a, "counts"_a, "x"_a, "ids"_a, "threads"_a, without_gil(),
               "sums[ids[t], n] += x[t, n], counts[ids[t]] += 1");
}
