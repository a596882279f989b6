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

// 2^k and 2^-k, where 2^k is at least the smallest normal float. From 2^128 on, which no float reaches, every x lies in one of the two bins about 0:
// zeros for both say so.
PYUNIVERSAL_INLINE float power(int32_t k) { return k < 128 ? bits_to_float(static_cast<uint32_t>(k + 127) << 23) : 0.0f; }
PYUNIVERSAL_INLINE float inverse_power(int32_t k) { return k < 127 ? bits_to_float(static_cast<uint32_t>(127 - k) << 23) : k == 127 ? 0x1p-127f : 0.0f; }

// What the bins of exponent k hold: -reach <= x < reach; Inf where they hold every finite float.
PYUNIVERSAL_INLINE float reach(int64_t bins, int32_t k) { return k < 128 ? static_cast<float>(bins / 2) * power(k) : __builtin_inff(); }

struct Lanes {
    alignas(64) float step[kWidth], inverse[kWidth];
    alignas(64) int32_t reach[kWidth];  // the bits: of numbers above zero, floats and their bits have one order
    alignas(64) int32_t zero[kWidth];   // the counter of the bin that begins at 0
};

PYUNIVERSAL_INLINE void set(Lanes& lanes, int64_t i, int32_t exponent, int64_t bins) {
    lanes.step[i] = power(exponent);
    lanes.inverse[i] = inverse_power(exponent);
    lanes.reach[i] = static_cast<int32_t>(float_to_bits(reach(bins, exponent)));
    lanes.zero[i] = static_cast<int32_t>(i * bins + bins / 2);
}

PYUNIVERSAL_INLINE bool finite(float x) { return (float_to_bits(x) & 0x7fffffffu) < 0x7f800000u; }

// Join the bins of one neuron pairwise until the finite values of column `i` fit.
void widen(const DyadicWork& work, int64_t neuron, const float* tile, int64_t rows, int64_t i) {
    float low = 0, high = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const float x = tile[row * kWidth + i];
        if (!finite(x)) continue;
        low = x < low ? x : low;
        high = x > high ? x : high;
    }
    int32_t k = work.exponent[neuron];
    while (!(high < reach(work.bins, k) && low >= -reach(work.bins, k))) ++k;
    const int32_t by = k - work.exponent[neuron] < 32 ? k - work.exponent[neuron] : 32;
    if (by == 0) return;
    work.exponent[neuron] = k;
    int64_t *above = work.counts + neuron * work.bins + work.bins / 2, *below = above - 1;  // bins i and -1 - i go to i / 2 and -1 - i / 2
    for (int64_t bin = 0; bin < work.bins / 2; ++bin) {
        const int64_t a = above[bin], b = below[-bin];
        above[bin] = below[-bin] = 0;
        above[bin >> by] += a;
        below[-(bin >> by)] += b;
    }
}

// The counter of each value. The quotient x 2^-k, truncated, times 2^k is exact, and above x just where floor is one less: also where the quotient itself
// underflows to zero.
PYUNIVERSAL_INLINE void find_dyadic_bins(const Lanes& lanes, const float* tile, int64_t rows, int32_t* index) {
    for (int64_t i = 0; i < rows * kWidth; i += kFloats) {
        const int64_t lane = i % kWidth;
        const Floats x = load<Floats>(tile + i);
        const Ints truncated = __builtin_convertvector(x * load<Floats>(lanes.inverse + lane), Ints);
        const Ints less = x < __builtin_convertvector(truncated, Floats) * load<Floats>(lanes.step + lane);  // -1 where it holds
        store(index + i, load<Ints>(lanes.zero + lane) + truncated + less);
    }
}

// Which columns hold a value that is not within -reach < x < reach. In the others all fit and are finite.
PYUNIVERSAL_INLINE void find_beyond(const Lanes& lanes, const float* tile, int64_t rows, int32_t* beyond) {
    for (int64_t lane = 0; lane < kWidth; lane += kFloats) {
        Ints largest = {};
        for (int64_t row = 0; row < rows; ++row) {
            const Ints magnitude = load<Ints>(tile + row * kWidth + lane) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        store(beyond + lane, largest >= load<Ints>(lanes.reach + lane));
    }
}

void count_dyadic(const DyadicWork& work, Lanes& lanes, const float* tile, int64_t neuron, int64_t rows, int64_t width) {
    alignas(64) int32_t index[kRows * kWidth], beyond[kWidth];
    int64_t* counts = work.counts + neuron * work.bins;
    find_beyond(lanes, tile, rows, beyond);
    int32_t special = 0;
    for (int64_t i = 0; i < width; ++i) {
        if (beyond[i] == 0) continue;
        widen(work, neuron + i, tile, rows, i);
        set(lanes, i, work.exponent[neuron + i], work.bins);
        special = 1;
    }
    find_dyadic_bins(lanes, tile, rows, index);
    if (special == 0) return count(counts, index, rows, width);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < width; ++i) {
            if (finite(tile[row * kWidth + i])) ++counts[index[row * kWidth + i]];
        }
    }
}

}  // namespace

void dyadic_histogram(const DyadicWork& work, int64_t first_block, int64_t last_block) {
    alignas(64) float tile[kRows * kWidth];
    const int64_t tokens = work.x.tokens, neurons = work.x.neurons, last = last_block * kWidth < neurons ? last_block * kWidth : neurons;
    for (int64_t block = 0; block < tokens; block += kBlock) {
        const int64_t end = tokens - block < kBlock ? tokens : block + kBlock;
        for (int64_t neuron = first_block * kWidth; neuron < last; neuron += kWidth) {
            const int64_t width = last - neuron < kWidth ? last - neuron : kWidth;
            Lanes lanes = {};
            for (int64_t i = 0; i < width; ++i) set(lanes, i, work.exponent[neuron + i], work.bins);
            for (int64_t token = block; token < end; token += kRows) {
                const int64_t rows = end - token < kRows ? end - token : kRows;
                load_counted(tile, work.x, token, neuron, rows, width);
                count_dyadic(work, lanes, tile, neuron, rows, width);
            }
        }
    }
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
