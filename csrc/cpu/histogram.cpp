// Histograms of activations, exact for any ascending edges: the bin is guessed as if the edges were uniform, then held against the edges themselves.
#include <algorithm>
#include <limits>

#include "../tensor.h"
#include "threads.h"
#include "tile.h"

namespace pyuniversal::cpu {
namespace {

constexpr int64_t kRows = 256;  // tokens of a tile
constexpr int64_t kWidth = 16;  // neurons of a tile: 64 bytes of a row, and the counters of 16 neurons (33 KB at 257 bins) stay in L1

struct Edges {
    std::vector<float> bounds;  // -inf, the edges, +inf: bin b holds bounds[b] < x <= bounds[b + 1]
    float origin = 0, scale = 0;
    float last_bin = 0;

    explicit Edges(const Tensor& edges) {
        const int64_t count = edges.size(0);
        const float* values = edges.data<const float>();
        bounds.push_back(-std::numeric_limits<float>::infinity());
        bounds.insert(bounds.end(), values, values + count);
        bounds.push_back(std::numeric_limits<float>::infinity());
        last_bin = static_cast<float>(count);
        if (count < 2) return;
        const double spacing = (static_cast<double>(values[count - 1]) - values[0]) / static_cast<double>(count - 1);
        origin = values[0];
        scale = static_cast<float>(1 / spacing);  // Inf or NaN makes a bad guess, no more
    }

    // The number of edges below x, if they are uniform and x is no NaN. Not quite 1 is added, so that x on an edge is guessed right as well.
    int32_t guess(float x) const {
        float bin = (x - origin) * scale + 0.9999f;
        bin = bin < last_bin ? bin : last_bin;
        bin = bin > 0 ? bin : 0;
        return static_cast<int32_t>(bin);
    }

    // The same, always right. A NaN is beyond every edge, as for torch.bucketize and numpy.searchsorted.
    int64_t bin(float x, int32_t guessed) const {
        if (bounds[guessed] < x && x <= bounds[guessed + 1]) return guessed;
        const auto first = bounds.begin() + 1;
        return std::partition_point(first, bounds.end() - 1, [x](float edge) { return !(edge >= x); }) - first;
    }
};

void check_arguments(const Tensor& counts, const Tensor& x, const Tensor& edges, int threads) {
    check(counts, "histogram_: counts", "cpu", {"int64"}, {"neurons", "bins"}, Layout::contiguous);
    check_activations(x, "histogram_: x");
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
void histogram_(const Tensor& counts, const Tensor& x, const Tensor& edge_tensor, int threads) {
    check_arguments(counts, x, edge_tensor, threads);
    const int64_t tokens = x.size(0), neurons = x.size(1), bins = counts.size(1);
    const Edges edges(edge_tensor);

    split((neurons + kWidth - 1) / kWidth, threads, [&](int64_t first_block, int64_t last_block) {
        alignas(64) float tile[kRows * kWidth];
        alignas(64) int32_t guesses[kRows * kWidth];
        for (int64_t token = 0; token < tokens; token += kRows) {
            const int64_t rows = std::min(kRows, tokens - token);
            for (int64_t neuron = first_block * kWidth; neuron < std::min(neurons, last_block * kWidth); neuron += kWidth) {
                const int64_t width = std::min(kWidth, neurons - neuron);
                load_tile<kWidth>(tile, x, token, neuron, rows, width);
                for (int64_t i = 0; i < rows * kWidth; ++i) guesses[i] = edges.guess(tile[i]);
                int64_t* histograms = counts.data<int64_t>() + neuron * bins;
                for (int64_t row = 0; row < rows; ++row) {
                    for (int64_t i = 0; i < width; ++i) ++histograms[i * bins + edges.bin(tile[row * kWidth + i], guesses[row * kWidth + i])];
                }
            }
        }
    });
}

}  // namespace pyuniversal::cpu
