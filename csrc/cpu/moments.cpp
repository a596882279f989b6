// Streaming moments of activations up to the fourth, with count, positives and extremes: one read of x, any number of nested token sets.
// A tile of tokens is reduced about its own mean, in double, and tiles are merged by the pairwise formulas of Pebay, Sandia report SAND2008-6212:
// sums of raw powers would lose everything that lies below the mean.
#include <cmath>
#include <limits>

#include "../tensor.h"
#include "threads.h"
#include "tile.h"

namespace pyuniversal::cpu {
namespace {

enum Field { COUNT, MEAN, M2, M3, M4, POSITIVE, MINIMUM, MAXIMUM, FIELDS };

constexpr int64_t kRows = 128;  // tokens of a tile. Part of the result: it fixes the order of the additions
constexpr int64_t kWidth = 64;  // neurons of a tile: 128 x 64 floats are 32 KiB, which stays in L1

using Lanes = double[kWidth];

// out[field] = the fields of `rows` tokens.
void reduce(const float* tile, int64_t rows, Lanes* out) {
    alignas(64) float low[kWidth], high[kWidth];
    alignas(64) int32_t positive[kWidth];
    alignas(64) Lanes sum;
    for (int64_t i = 0; i < kWidth; ++i) {
        low[i] = high[i] = tile[i];
        positive[i] = 0;
        sum[i] = 0;
    }
    for (int64_t row = 0; row < rows; ++row) {
        const float* x = tile + row * kWidth;
        for (int64_t i = 0; i < kWidth; ++i) {
            low[i] = x[i] < low[i] ? x[i] : low[i];
            high[i] = x[i] > high[i] ? x[i] : high[i];
            positive[i] += x[i] > 0;
        }
        for (int64_t i = 0; i < kWidth; ++i) sum[i] += static_cast<double>(x[i]);
    }
    for (int64_t i = 0; i < kWidth; ++i) {
        out[COUNT][i] = static_cast<double>(rows);
        out[MEAN][i] = sum[i] / static_cast<double>(rows);
        out[M2][i] = out[M3][i] = out[M4][i] = 0;
        out[POSITIVE][i] = positive[i];
        out[MINIMUM][i] = low[i];
        out[MAXIMUM][i] = high[i];
    }
    for (int64_t row = 0; row < rows; ++row) {
        const float* x = tile + row * kWidth;
        for (int64_t i = 0; i < kWidth; ++i) {
            const double d = static_cast<double>(x[i]) - out[MEAN][i], square = d * d;
            out[M2][i] += square;
            out[M3][i] += square * d;
            out[M4][i] += square * square;
        }
    }
    // The comparisons above drop NaN. A NaN shows in the sum; so do opposite infinities, hence the second look.
    for (int64_t i = 0; i < kWidth; ++i) {
        if (!std::isnan(sum[i])) continue;
        for (int64_t row = 0; row < rows; ++row) {
            const float x = tile[row * kWidth + i];
            if (std::isnan(x)) out[MINIMUM][i] = out[MAXIMUM][i] = x;
        }
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
        fields[MINIMUM * stride + i] = std::numeric_limits<double>::infinity();
        fields[MAXIMUM * stride + i] = -std::numeric_limits<double>::infinity();
    }
}

void check_arguments(const Tensor& state, const Tensor& x, const std::vector<int64_t>& ends, int threads) {
    check(state, "moments_: state", "cpu", {"float64"}, {"sets", "8", "neurons"}, Layout::contiguous);
    check_activations(x, "moments_: x");
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
    check_arguments(state, x, ends, threads);
    const int64_t neurons = x.size(1), sets = static_cast<int64_t>(ends.size());
    std::vector<double> segment(FIELDS * neurons);  // tokens [ends[s - 1], ends[s]), which belong to the sets s and later

    split((neurons + kWidth - 1) / kWidth, threads, [&](int64_t first_block, int64_t last_block) {
        alignas(64) float tile[kRows * kWidth];
        alignas(64) Lanes fields[FIELDS];
        const int64_t first = first_block * kWidth, last = std::min(neurons, last_block * kWidth);
        for (int64_t set = 0, begin = 0; set < sets; begin = ends[set++]) {
            if (begin == ends[set]) continue;
            clear(segment.data() + first, neurons, last - first);
            // Tokens outside, neurons inside: the pages of 128 rows are visited together.
            for (int64_t token = begin; token < ends[set]; token += kRows) {
                const int64_t rows = std::min(kRows, ends[set] - token);
                for (int64_t neuron = first; neuron < last; neuron += kWidth) {
                    const int64_t width = std::min(kWidth, last - neuron);
                    load_tile<kWidth>(tile, x, token, neuron, rows, width);
                    reduce(tile, rows, fields);
                    merge(segment.data() + neuron, neurons, fields[0], kWidth, width);
                }
            }
            for (int64_t later = set; later < sets; ++later) {
                merge(state.data<double>() + later * FIELDS * neurons + first, neurons, segment.data() + first, neurons, last - first);
            }
        }
    });
}

}  // namespace pyuniversal::cpu
