// Histograms of activations, exact for any ascending edges: the bin is guessed as if the edges were uniform, then held against the edges themselves.
#include "isa.h"
#include "tile.h"

namespace pyuniversal::cpu {

struct HistogramWork {
    Activations x;
    int64_t* counts;      // [neurons, bins]
    const float* bounds;  // [bins + 1]: -inf, the edges, +inf: bin b holds bounds[b] < x <= bounds[b + 1]
    int64_t bins;
    float origin, scale;  // of edges that are uniform; where they are not, the guess is bad, no more
};

constexpr int64_t kHistogramWidth = 16;  // neurons of a tile: 64 bytes of a row, and the counters of 16 neurons (33 KB at 257 bins) stay in L1

PYUNIVERSAL_KERNEL(histogram, HistogramWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kRows = 256;  // tokens of a tile
constexpr int64_t kWidth = kHistogramWidth;

// The number of edges below x, if they are uniform and x is no NaN. Not quite 1 is added, so that x on an edge is guessed right as well.
PYUNIVERSAL_INLINE int32_t guess(const HistogramWork& work, float x) {
    const float last = static_cast<float>(work.bins - 1);
    float bin = (x - work.origin) * work.scale + 0.9999f;
    bin = bin < last ? bin : last;
    bin = bin > 0 ? bin : 0;
    return static_cast<int32_t>(bin);
}

// The same, always right. A NaN is beyond every edge, as for torch.bucketize and numpy.searchsorted.
PYUNIVERSAL_INLINE int64_t bin_of(const HistogramWork& work, float x, int32_t guessed) {
    if (work.bounds[guessed] < x && x <= work.bounds[guessed + 1]) return guessed;
    int64_t low = 0, high = work.bins - 1;  // edges at places [0, high) are what to search: the first that is not below x
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (work.bounds[middle + 1] >= x) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

}  // namespace

void histogram(const HistogramWork& work, int64_t first_block, int64_t last_block) {
    alignas(64) float tile[kRows * kWidth];
    alignas(64) int32_t guesses[kRows * kWidth];
    const int64_t neurons = work.x.neurons, last = last_block * kWidth < neurons ? last_block * kWidth : neurons;
    for (int64_t token = 0; token < work.x.tokens; token += kRows) {
        const int64_t rows = work.x.tokens - token < kRows ? work.x.tokens - token : kRows;
        for (int64_t neuron = first_block * kWidth; neuron < last; neuron += kWidth) {
            const int64_t width = last - neuron < kWidth ? last - neuron : kWidth;
            load_tile<kWidth>(tile, work.x, token, neuron, rows, width);
            for (int64_t i = 0; i < rows * kWidth; ++i) guesses[i] = guess(work, tile[i]);
            int64_t* counts = work.counts + neuron * work.bins;
            for (int64_t row = 0; row < rows; ++row) {
                for (int64_t i = 0; i < width; ++i) ++counts[i * work.bins + bin_of(work, tile[row * kWidth + i], guesses[row * kWidth + i])];
            }
        }
    }
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include <limits>

#include "threads.h"

namespace pyuniversal::cpu {
namespace {

void check_arguments(const Tensor& counts, const Tensor& x, const Tensor& edges, int threads) {
    check(counts, "histogram_: counts", "cpu", {"int64"}, {"neurons", "bins"}, Layout::contiguous);
    check(edges, "histogram_: edges", "cpu", {"float32"}, {"edges"}, Layout::contiguous);
    check_equal(x.size(1), "histogram_: the columns of x", counts.size(0), "the neurons of counts");
    check_equal(edges.size(0) + 1, "histogram_: the number of edges + 1", counts.size(1), "the bins of counts");
    check_threads(threads, "histogram_");
    const float* values = edges.data<const float>();
    for (int64_t i = 0; i < edges.size(0); ++i) {
        if (values[i] >= values[i > 0 ? i - 1 : 0]) continue;  // false for NaN
        throw std::invalid_argument("histogram_: edges must ascend, got " + std::to_string(values[i]) + " at " + std::to_string(i));
    }
}

}  // namespace

// counts [neurons, bins] int64, x [tokens, neurons], edges [bins - 1] float32.
void histogram_(const Tensor& counts, const Tensor& x, const Tensor& edges, int threads) {
    const Activations view = activations(x, "histogram_: x");
    check_arguments(counts, x, edges, threads);
    const int64_t n = edges.size(0);
    const float* values = edges.data<const float>();
    std::vector<float> bounds(values, values + n);
    bounds.insert(bounds.begin(), -std::numeric_limits<float>::infinity());
    bounds.push_back(std::numeric_limits<float>::infinity());
    const double spacing = n < 2 ? 1 : (static_cast<double>(values[n - 1]) - values[0]) / static_cast<double>(n - 1);
    const HistogramWork work{view, counts.data<int64_t>(), bounds.data(), n + 1, n ? values[0] : 0, static_cast<float>(1 / spacing)};
    auto kernel = PYUNIVERSAL_PICK(histogram);
    split((view.neurons + kHistogramWidth - 1) / kHistogramWidth, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
