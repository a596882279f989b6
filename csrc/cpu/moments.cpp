// Streaming moments of activations up to the fourth, with count, positives and extremes: one read of x, any number of nested token sets.
// A tile of tokens is reduced about its own mean, in double, and tiles are merged by the pairwise formulas of Pebay, Sandia report SAND2008-6212:
// sums of raw powers would lose everything that lies below the mean.
#include "isa.h"
#include "tile.h"

namespace pyuniversal::cpu {

struct MomentsWork {
    Activations x;
    const int64_t* ends;  // [sets]
    int64_t sets;
    double* state;    // [sets, FIELDS, neurons]
    double* segment;  // [FIELDS, neurons]: tokens [ends[s - 1], ends[s]), which belong to the sets s and later
};

enum Field { COUNT, MEAN, M2, M3, M4, POSITIVE, MINIMUM, MAXIMUM, FIELDS };

constexpr int64_t kMomentsRows = 128;  // tokens of a tile. Part of the result: it fixes the order of the additions
constexpr int64_t kMomentsWidth = 64;  // neurons of a tile: 128 x 64 floats are 32 KiB, which stays in L1

PYUNIVERSAL_KERNEL(moments, MomentsWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kRows = kMomentsRows, kWidth = kMomentsWidth;
constexpr int kHalves = 2;  // a vector of floats is two of doubles

using Lanes = double[kWidth];

// Fields that comparisons give, and the mean, of kFloats neurons.
PYUNIVERSAL_INLINE void first_look(const float* tile, int64_t rows, Lanes* out, int64_t at) {
    Floats low = load<Floats>(tile + at), high = low;
    Ints positive = {};
    Doubles sum[kHalves] = {};
    for (int64_t row = 0; row < rows; ++row) {
        const float* from = tile + row * kWidth + at;
        const Floats x = load<Floats>(from);
        low = smaller(x, low);
        high = larger(x, high);
        positive -= x > 0;  // a comparison is -1 where it holds
        for (int half = 0; half < kHalves; ++half) sum[half] += load_doubles(from + half * kDoubles);
    }
    float lows[kFloats], highs[kFloats], any[kFloats];
    int32_t positives[kFloats];
    store(lows, low);
    store(highs, high);
    store(positives, positive);
    double sums[kFloats];
    for (int half = 0; half < kHalves; ++half) store(sums + half * kDoubles, sum[half]);
    for (int64_t i = 0; i < kFloats; ++i) {
        out[COUNT][at + i] = static_cast<double>(rows);
        out[MEAN][at + i] = sums[i] / static_cast<double>(rows);
        out[POSITIVE][at + i] = positives[i];
        out[MINIMUM][at + i] = lows[i];
        out[MAXIMUM][at + i] = highs[i];
        any[i] = 0;
        // The comparisons above drop NaN. A NaN shows in the sum; so do opposite infinities, hence the second look.
        if (sums[i] == sums[i]) continue;
        for (int64_t row = 0; row < rows; ++row) {
            const float x = tile[row * kWidth + at + i];
            if (x != x) any[i] = x;
        }
        if (any[i] != any[i]) out[MINIMUM][at + i] = out[MAXIMUM][at + i] = any[i];
    }
}

// Central sums of kFloats neurons about the means in `out`.
PYUNIVERSAL_INLINE void second_look(const float* tile, int64_t rows, Lanes* out, int64_t at) {
    Doubles mean[kHalves], sum2[kHalves] = {}, sum3[kHalves] = {}, sum4[kHalves] = {};
    for (int half = 0; half < kHalves; ++half) mean[half] = load<Doubles>(out[MEAN] + at + half * kDoubles);
    for (int64_t row = 0; row < rows; ++row) {
        for (int half = 0; half < kHalves; ++half) {
            const Doubles d = load_doubles(tile + row * kWidth + at + half * kDoubles) - mean[half], square = d * d;
            sum2[half] += square;
            sum3[half] += square * d;
            sum4[half] += square * square;
        }
    }
    for (int half = 0; half < kHalves; ++half) {
        store(out[M2] + at + half * kDoubles, sum2[half]);
        store(out[M3] + at + half * kDoubles, sum3[half]);
        store(out[M4] + at + half * kDoubles, sum4[half]);
    }
}

// a += b, field by field; field f of neuron i stands at [f * stride + i]. `b` is not empty, `a` may be.
void merge(double* a, int64_t a_stride, const double* b, int64_t b_stride, int64_t width) {
    for (int64_t i = 0; i < width; ++i) {
        auto at = [&](Field field) -> double& { return a[field * a_stride + i]; };
        auto bt = [&](Field field) { return b[field * b_stride + i]; };
        const double n = at(COUNT) + bt(COUNT), wa = at(COUNT) / n, wb = bt(COUNT) / n;
        const double delta = bt(MEAN) - at(MEAN), delta2 = delta * delta;
        const double between = delta2 * at(COUNT) * wb;  // M2 of the two means
        at(M4) += bt(M4) + between * delta2 * (wa * wa - wa * wb + wb * wb) + 6 * delta2 * (wa * wa * bt(M2) + wb * wb * at(M2)) +
                  4 * delta * (wa * bt(M3) - wb * at(M3));
        at(M3) += bt(M3) + between * delta * (wa - wb) + 3 * delta * (wa * bt(M2) - wb * at(M2));
        at(M2) += bt(M2) + between;
        at(MEAN) += delta * wb;
        at(COUNT) = n;
        at(POSITIVE) += bt(POSITIVE);
        // Both keep a NaN, whichever side it is on.
        const double low = bt(MINIMUM), high = bt(MAXIMUM);
        at(MINIMUM) = low < at(MINIMUM) || low != low ? low : at(MINIMUM);
        at(MAXIMUM) = high > at(MAXIMUM) || high != high ? high : at(MAXIMUM);
    }
}

void clear(double* fields, int64_t stride, int64_t width) {
    for (int64_t i = 0; i < width; ++i) {
        for (int field = COUNT; field <= POSITIVE; ++field) fields[field * stride + i] = 0;
        fields[MINIMUM * stride + i] = __builtin_inf();
        fields[MAXIMUM * stride + i] = -__builtin_inf();
    }
}

}  // namespace

void moments(const MomentsWork& work, int64_t first_block, int64_t last_block) {
    alignas(64) float tile[kRows * kWidth];
    alignas(64) Lanes fields[FIELDS];
    const int64_t neurons = work.x.neurons, first = first_block * kWidth, last = last_block * kWidth < neurons ? last_block * kWidth : neurons;
    for (int64_t set = 0, begin = 0; set < work.sets; begin = work.ends[set++]) {
        const int64_t end = work.ends[set];
        if (begin == end) continue;
        clear(work.segment + first, neurons, last - first);
        // Tokens outside, neurons inside: the pages of 128 rows are visited together.
        for (int64_t token = begin; token < end; token += kRows) {
            const int64_t rows = end - token < kRows ? end - token : kRows;
            for (int64_t neuron = first; neuron < last; neuron += kWidth) {
                const int64_t width = last - neuron < kWidth ? last - neuron : kWidth;
                load_tile<kWidth>(tile, work.x, token, neuron, rows, width);
                for (int64_t at = 0; at < width; at += kFloats) {
                    first_look(tile, rows, fields, at);
                    second_look(tile, rows, fields, at);
                }
                merge(work.segment + neuron, neurons, fields[0], kWidth, width);
            }
        }
        for (int64_t later = set; later < work.sets; ++later) {
            merge(work.state + later * FIELDS * neurons + first, neurons, work.segment + first, neurons, last - first);
        }
    }
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "threads.h"

namespace pyuniversal::cpu {
namespace {

void check_arguments(const Tensor& state, const Tensor& x, const std::vector<int64_t>& ends, int threads) {
    check(state, "moments_: state", "cpu", {"float64"}, {"sets", "8", "neurons"}, Layout::contiguous);
    check_equal(state.size(1), "moments_: the second dimension of state", FIELDS, "the number of fields");
    check_equal(x.size(1), "moments_: the columns of x", state.size(2), "the neurons of state");
    check_equal(static_cast<int64_t>(ends.size()), "moments_: the number of ends", state.size(0), "the sets of state");
    check_threads(threads, "moments_");
    int64_t last = 0;
    for (int64_t end : ends) {
        if (end < last || end > x.size(0)) {
            throw std::invalid_argument("moments_: ends must rise from 0 to at most the " + std::to_string(x.size(0)) + " tokens of x, got " + words(ends));
        }
        last = end;
    }
}

}  // namespace

// state [sets, 8, neurons] float64, x [tokens, neurons], set s holds the tokens [0, ends[s]).
void moments_(const Tensor& state, const Tensor& x, const std::vector<int64_t>& ends, int threads) {
    const Activations view = activations(x, "moments_: x");
    check_arguments(state, x, ends, threads);
    std::vector<double> segment(FIELDS * view.neurons);
    const MomentsWork work{view, ends.data(), static_cast<int64_t>(ends.size()), state.data<double>(), segment.data()};
    auto kernel = PYUNIVERSAL_PICK(moments);
    split((view.neurons + kMomentsWidth - 1) / kMomentsWidth, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
