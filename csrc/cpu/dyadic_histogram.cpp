// Histograms in bins of width 2^exponent that are joined pairwise until the largest value fits, a range for each neuron: exact, in one read.
#include "counters.h"
#include "isa.h"

namespace pyuniversal::cpu {

struct DyadicWork {
    Activations x;
    int64_t* counts;    // [neurons, bins]
    int32_t* exponent;  // [neurons]
    int64_t bins;
};

PYUNIVERSAL_KERNEL(dyadic_histogram, DyadicWork)

namespace PYUNIVERSAL_ISA {
namespace {

// What there is to know of the bins of kWidth neurons.
struct Lanes {
    alignas(64) float step[kWidth], inverse[kWidth];  // 2^k and 2^-k
    alignas(64) int32_t reach[kWidth];                // the bits of 2^k bins / 2, which no |x| reaches: of floats above 0, bits and values have one order
    alignas(64) int32_t zero[kWidth];                 // the counter of the bin that begins at 0
};

// From 2^128 on, which no float reaches, every x lies in one of the two bins about 0; zeros for 2^k and 2^-k say so. 2^-127 is subnormal.
PYUNIVERSAL_INLINE void describe(Lanes& lanes, const int32_t* exponent, int64_t width, int64_t bins) {
    alignas(64) int32_t exponents[kWidth] = {};
    for (int64_t i = 0; i < width; ++i) exponents[i] = exponent[i] < 128 ? exponent[i] : 128;
    for (int64_t lane = 0; lane < kWidth; lane += kFloats) {
        const Ints k = load<Ints>(exponents + lane);
        const Ints inside = k < 128, step = inside & ((k + 127) << 23);
        store(lanes.step + lane, step);
        store(lanes.inverse + lane, ((k < 127) & ((127 - k) << 23)) | ((k == 127) & 0x00400000));
        const Ints reach = reinterpret_cast<Ints>(reinterpret_cast<Floats>(step) * static_cast<float>(bins / 2));
        store(lanes.reach + lane, (inside & reach) | (~inside & 0x7f800000));
    }
    for (int64_t i = 0; i < kWidth; ++i) lanes.zero[i] = static_cast<int32_t>(i * bins + bins / 2);
}

PYUNIVERSAL_INLINE bool finite(float x) { return (float_to_bits(x) & 0x7fffffffu) < 0x7f800000u; }

// Join the bins of one neuron pairwise until the finite values of a column fit: -2^k half <= x < 2^k half.
void join(int64_t* counts, int32_t* exponent, int64_t half, const float* column, int64_t rows) {
    float low = 0, high = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const float x = column[row * kTileWidth];
        if (!finite(x)) continue;
        low = x < low ? x : low;
        high = x > high ? x : high;
    }
    int32_t by = 0;
    double reach = static_cast<double>(half) * __builtin_ldexp(1.0, *exponent);
    for (; !(high < reach && low >= -reach); ++by) reach *= 2;
    if (by == 0) return;
    *exponent += by;
    by = by < 32 ? by : 32;
    int64_t *above = counts + half, *below = above - 1;  // bins i and -1 - i go to i / 2 and -1 - i / 2
    for (int64_t bin = 0; bin < half; ++bin) {
        const int64_t a = above[bin], b = below[-bin];
        above[bin] = below[-bin] = 0;
        above[bin >> by] += a;
        below[-(bin >> by)] += b;
    }
}

// Which columns hold a value that is not within -reach < x < reach. In the others all fit and are finite.
PYUNIVERSAL_INLINE void find_beyond(const Lanes& lanes, const float* tile, int64_t rows, int32_t* beyond) {
    for (int64_t lane = 0; lane < kWidth; lane += kFloats) {
        Ints largest = {};
        for (int64_t row = 0; row < rows; ++row) {
            const Ints magnitude = load<Ints>(tile + row * kTileWidth + lane) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        store(beyond + lane, largest >= load<Ints>(lanes.reach + lane));
    }
}

// The counter of each value. The quotient x 2^-k, truncated, times 2^k is exact, and above x just where floor is one less: also where the quotient itself
// underflows to zero.
PYUNIVERSAL_INLINE void find_bins(const Lanes& lanes, const float* tile, int64_t rows, int32_t* index) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t lane = 0; lane < kWidth; lane += kFloats) {
            const Floats x = load<Floats>(tile + row * kTileWidth + lane);
            const Ints truncated = __builtin_convertvector(x * load<Floats>(lanes.inverse + lane), Ints);
            const Ints less = x < __builtin_convertvector(truncated, Floats) * load<Floats>(lanes.step + lane);  // -1 where it holds
            store(index + row * kWidth + lane, load<Ints>(lanes.zero + lane) + truncated + less);
        }
    }
}

}  // namespace

void dyadic_histogram(const DyadicWork& work, int64_t first_block, int64_t last_block) {
    const int64_t neurons = work.x.neurons, end = last_block * kWidth < neurons ? last_block * kWidth : neurons;
    count_all(work.x, first_block * kWidth, end, work.counts, work.bins, [&](const float* tile, int64_t rows, int64_t neuron, int64_t width, int32_t* index) {
        int32_t* exponent = work.exponent + neuron;
        int64_t* counts = work.counts + neuron * work.bins;
        alignas(64) int32_t beyond[kWidth];
        Lanes lanes;
        describe(lanes, exponent, width, work.bins);
        find_beyond(lanes, tile, rows, beyond);
        bool any = false;
        for (int64_t i = 0; i < width; ++i) {
            if (beyond[i] == 0) continue;
            join(counts + i * work.bins, exponent + i, work.bins / 2, tile + i, rows);
            any = true;
        }
        if (any) describe(lanes, exponent, width, work.bins);
        find_bins(lanes, tile, rows, index);
        if (!any) return;
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t i = 0; i < width; ++i) {
                if (finite(tile[row * kTileWidth + i])) continue;
                index[row * kWidth + i] = lanes.zero[i];  // where it will be counted, so once less
                --counts[lanes.zero[i]];
            }
        }
    });
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "threads.h"

namespace pyuniversal::cpu {
namespace {

// LOWEST_EXPONENT, HIGHEST_EXPONENT and MOST_BINS of pyuniversal/ops/dyadic_histogram.py.
constexpr int32_t kLowest = -126, kHighest = 1023;
constexpr int64_t kMostBins = 65536;

void check_arguments(const Tensor& counts, const Tensor& exponent, const Tensor& x, int threads, const std::string& op) {
    check(counts, op + ": counts", "cpu", {"int64"}, {"neurons", "bins"}, Layout::contiguous);
    check(exponent, op + ": exponent", "cpu", {"int32"}, {"neurons"}, Layout::contiguous);
    check_equal(x.size(1), op + ": the columns of x", counts.size(0), "the neurons of counts");
    check_equal(exponent.size(0), op + ": the length of exponent", counts.size(0), "the neurons of counts");
    check_threads(threads, op);
    const int64_t bins = counts.size(1);
    if (bins < 4 || bins > kMostBins || bins % 2 != 0) throw std::invalid_argument(op + ": the bins must be even, 4 to 65,536, got " + std::to_string(bins));
    for (int64_t i = 0; i < exponent.size(0); ++i) {
        const int32_t k = exponent.data<const int32_t>()[i];
        if (k >= kLowest && k <= kHighest) continue;
        throw std::invalid_argument(op + ": exponents must be within -126 and 1023, got " + std::to_string(k) + " at " + std::to_string(i));
    }
}

}  // namespace

// counts [neurons, bins] int64, exponent [neurons] int32, x [tokens, neurons].
void dyadic_histogram_(const Tensor& counts, const Tensor& exponent, const Tensor& x, int threads) {
    const Activations view = activations(x, "dyadic_histogram_: x");
    check_arguments(counts, exponent, x, threads, "dyadic_histogram_");
    const DyadicWork work{view, counts.data<int64_t>(), exponent.data<int32_t>(), counts.size(1)};
    auto kernel = PYUNIVERSAL_PICK(dyadic_histogram);
    split((view.neurons + kCountersWidth - 1) / kCountersWidth, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
