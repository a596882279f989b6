// Histograms of activations, exact for any ascending edges. Where edges are uniform, as the border verifies, the bin is a product and a truncation, and only
// values close to an edge are held against the edge itself.
#include "counters.h"
#include "isa.h"

namespace pyuniversal::cpu {

struct HistogramWork {
    Activations x;
    int64_t* counts;     // [neurons, bins]
    const float* edges;  // [bins - 1]: bin b holds edges[b - 1] < x <= edges[b]
    int64_t bins;
    bool uniform;
    float origin, scale, doubt;  // of uniform edges: place(edge i) is i + 1 up to `doubt`
};

PYUNIVERSAL_KERNEL(histogram, HistogramWork)

namespace PYUNIVERSAL_ISA {
namespace {

// Where x stands among uniform edges: below i + 1 if it is below edge i. It never falls as x rises, since each rounding keeps order.
template <typename Value> PYUNIVERSAL_INLINE Value place(Value x, float origin, float scale) { return (x - origin) * scale + 1.0f; }

PYUNIVERSAL_INLINE bool any(Ints mask) {
    int32_t lanes[kFloats], found = 0;
    store(lanes, mask);
    for (int64_t i = 0; i < kFloats; ++i) found |= lanes[i];
    return found != 0;
}

// The counter of each value of a tile if edges are uniform; false where a value is so close to an edge that rounding may have moved it across.
PYUNIVERSAL_INLINE bool find_bins(const HistogramWork& work, const float* tile, const int32_t* first, int64_t rows, int32_t* index) {
    const float highest = static_cast<float>(work.bins) - 0.5f, sure = 0.5f - work.doubt;
    Ints doubtful = {};
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t lane = 0; lane < kWidth; lane += kFloats) {
            Floats y = place(load<Floats>(tile + row * kTileWidth + lane), work.origin, work.scale);
            y = y < highest ? y : highest - Floats{};  // a NaN too
            y = y > 0.5f ? y : 0.5f - Floats{};
            const Ints bin = __builtin_convertvector(y, Ints);
            const Floats from_middle = y - __builtin_convertvector(bin, Floats) - 0.5f;
            doubtful |= (from_middle > sure) | (from_middle < -sure);
            store(index + row * kWidth + lane, bin + load<Ints>(first + lane));
        }
    }
    return !any(doubtful);
}

// The same for sure: x is beside its nearest edge, on one side or the other. Twice as slow, and needed for one tile in fifteen with PAPER_EDGES.
PYUNIVERSAL_INLINE void look_bins_up(const HistogramWork& work, const float* tile, const int32_t* first, int64_t rows, int32_t* index) {
    const float last = static_cast<float>(work.bins - 2);
    for (int64_t row = 0; row < rows; ++row, tile += kTileWidth, index += kWidth) {
        for (int64_t lane = 0; lane < kWidth; lane += kFloats) {
            Floats y = place(load<Floats>(tile + lane), work.origin, work.scale) - 0.5f;
            y = y < last ? y : last - Floats{};
            store(index + lane, __builtin_convertvector(y > 0 ? y : Floats{}, Ints));
        }
        for (int64_t i = 0; i < kWidth; ++i) index[i] += first[i] + (tile[i] <= work.edges[index[i]] ? 0 : 1);
    }
}

// The bin for any edges, by bisection without branches: how many are below x. A NaN is beyond every edge, as for torch.bucketize and numpy.searchsorted.
PYUNIVERSAL_INLINE int32_t bisect(const float* edges, int64_t n, float x) {
    int64_t low = 0;  // the answer lies in [low, low + n]
    for (; n > 1; n -= n / 2) low += -static_cast<int64_t>(!(edges[low + n / 2 - 1] >= x)) & (n / 2);
    return static_cast<int32_t>(low) + (n == 1 && !(edges[low] >= x) ? 1 : 0);
}

}  // namespace

void histogram(const HistogramWork& work, int64_t first_block, int64_t last_block) {
    alignas(64) int32_t first[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) first[i] = static_cast<int32_t>(i * work.bins);
    const int64_t neurons = work.x.neurons, end = last_block * kWidth < neurons ? last_block * kWidth : neurons;
    count_all(work.x, first_block * kWidth, end, work.counts, work.bins, [&](const float* tile, int64_t rows, int64_t, int64_t, int32_t* index) {
        if (work.uniform) {
            if (!find_bins(work, tile, first, rows, index)) look_bins_up(work, tile, first, rows, index);
            return;
        }
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t i = 0; i < kWidth; ++i) index[row * kWidth + i] = first[i] + bisect(work.edges, work.bins - 1, tile[row * kTileWidth + i]);
        }
    });
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include <cmath>

#include "threads.h"

namespace pyuniversal::cpu {
namespace {

constexpr int64_t kMostBins = 1 << 26;  // so that int32 can tell the counters of kCountersWidth neurons apart

void check_arguments(const Tensor& counts, const Tensor& x, const Tensor& edges, int threads) {
    check(counts, "histogram_: counts", "cpu", {"int64"}, {"neurons", "bins"}, Layout::contiguous);
    check(edges, "histogram_: edges", "cpu", {"float32"}, {"edges"}, Layout::contiguous);
    check_equal(x.size(1), "histogram_: the columns of x", counts.size(0), "the neurons of counts");
    check_equal(edges.size(0) + 1, "histogram_: the number of edges + 1", counts.size(1), "the bins of counts");
    if (counts.size(1) > kMostBins) throw std::invalid_argument("histogram_: there can be at most 2^26 bins, got " + std::to_string(counts.size(1)));
    check_threads(threads, "histogram_");
    const float* values = edges.data<const float>();
    for (int64_t i = 0; i < edges.size(0); ++i) {
        if (values[i] >= values[i > 0 ? i - 1 : 0]) continue;  // false for NaN
        throw std::invalid_argument("histogram_: edges must ascend, got " + std::to_string(values[i]) + " at " + std::to_string(i));
    }
}

// How far place() is off on the edges, with some slack for the arithmetic of the kernel; 1 if by so much that it is no guide. As place() never falls, what
// holds on the edges holds between them.
float doubt(const float* edges, int64_t n, float origin, float scale) {
    if (n == 0 || n > (1 << 20)) return 1;  // float must tell i + 1 from its neighbours, and more
    float most = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float off = std::fabs(generic::place(edges[i], origin, scale) - static_cast<float>(i + 1));
        if (!(off < 0.125f)) return 1;  // a NaN too
        most = std::max(most, off);
    }
    return most + 1e-6f;
}

}  // namespace

// counts [neurons, bins] int64, x [tokens, neurons], edges [bins - 1] float32.
void histogram_(const Tensor& counts, const Tensor& x, const Tensor& edges, int threads) {
    const Activations view = activations(x, "histogram_: x");
    check_arguments(counts, x, edges, threads);
    const int64_t n = edges.size(0);
    const float* values = edges.data<const float>();
    const double spacing = n < 2 ? 1 : (static_cast<double>(values[n - 1]) - values[0]) / static_cast<double>(n - 1);
    const float origin = n ? values[0] : 0, scale = static_cast<float>(1 / spacing), off = doubt(values, n, origin, scale);
    const HistogramWork work{view, counts.data<int64_t>(), values, n + 1, off < 1, origin, scale, off};
    auto kernel = PYUNIVERSAL_PICK(histogram);
    split((view.neurons + kCountersWidth - 1) / kCountersWidth, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
