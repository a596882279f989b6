// Streaming moments of activations up to the fourth, with count, positives and extremes: one read of x, any number of nested token sets.
// A tile of tokens is reduced about its own mean, in double, and tiles are merged by the pairwise formulas of Pebay, Sandia report SAND2008-6212:
// sums of raw powers would lose everything that lies below the mean.
#include "activation.h"
#include "isa.h"
#include "tile.h"

namespace pyuniversal::cpu {

struct MomentsWork {
    Activations x;
    const int64_t* ends;  // [sets]
    int64_t sets;
    double* state;          // [sets, FIELDS, neurons]
    double* segment;        // [FIELDS, neurons]: tokens [ends[s - 1], ends[s]), which belong to the sets s and later
    Activation activation;  // of x first
};

enum Field { COUNT, MEAN, M2, M3, M4, POSITIVE, MINIMUM, MAXIMUM, FIELDS };

constexpr int64_t kMomentsWidth = 64;  // neurons that one thread takes at a time

PYUNIVERSAL_KERNEL(moments, MomentsWork)

namespace PYUNIVERSAL_ISA {
namespace {

// A tile of 128 x 64 floats is 32 KiB, which stays in L1. Its rows are part of the result: they fix the order of the additions.
constexpr int64_t kRows = kTileRows, kWidth = kTileWidth;

using Lanes = double[kWidth];

// A tile of `rows` tokens, reduced. Its sums are about `centre`, a float near the mean: exact to subtract in double, and cheap to find.
struct Reduced {
    alignas(64) float centre[kWidth], low[kWidth], high[kWidth];
    alignas(64) int32_t positive[kWidth];
    alignas(64) double sum[kWidth], sum2[kWidth], sum3[kWidth], sum4[kWidth];
};

// Centre and what comparisons give, of Vectors * kFloats neurons from the lane `at` on.
template <int Vectors> PYUNIVERSAL_INLINE void first_look(const float* tile, int64_t rows, Reduced& out, int64_t at) {
    Floats low[Vectors], high[Vectors], sum[Vectors] = {};
    Ints positive[Vectors] = {};
    for (int v = 0; v < Vectors; ++v) low[v] = high[v] = load<Floats>(tile + at + v * kFloats);
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            const Floats x = load<Floats>(tile + row * kWidth + at + v * kFloats);
            low[v] = smaller(x, low[v]);
            high[v] = larger(x, high[v]);
            positive[v] -= x > 0;  // a comparison is -1 where it holds
            sum[v] += x;
        }
    }
    for (int v = 0; v < Vectors; ++v) {
        const int64_t lane = at + v * kFloats;
        store(out.centre + lane, sum[v] * (1.0f / static_cast<float>(rows)));
        store(out.low + lane, low[v]);
        store(out.high + lane, high[v]);
        store(out.positive + lane, positive[v]);
    }
}

// Sums of powers of x - centre, of Halves * kDoubles neurons from the lane `at` on. Four halves at once leave no sum waiting for the one before, where there
// are registers for them.
template <int Halves> PYUNIVERSAL_INLINE void second_look(const float* tile, int64_t rows, Reduced& out, int64_t at, const Ahead& ahead) {
    Doubles centre[Halves], sum[Halves] = {}, sum2[Halves] = {}, sum3[Halves] = {}, sum4[Halves] = {};
#pragma GCC unroll 4
    for (int half = 0; half < Halves; ++half) centre[half] = load_doubles(out.centre + at + half * kDoubles);
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 2
        for (int line = 0; line < Halves / 2; ++line) ahead.fetch(at / kFloats * kRows + row * (Halves / 2) + line);
#pragma GCC unroll 4
        for (int half = 0; half < Halves; ++half) {
            const Doubles d = load_doubles(tile + row * kWidth + at + half * kDoubles) - centre[half], square = d * d;
            sum[half] += d;
            sum2[half] += square;
            sum3[half] = multiply_add(square, d, sum3[half]);
            sum4[half] = multiply_add(square, square, sum4[half]);
        }
    }
#pragma GCC unroll 4
    for (int half = 0; half < Halves; ++half) {
        const int64_t lane = at + half * kDoubles;
        store(out.sum + lane, sum[half]);
        store(out.sum2 + lane, sum2[half]);
        store(out.sum3 + lane, sum3[half]);
        store(out.sum4 + lane, sum4[half]);
    }
}

// The float sum of finite values may overflow, and NaN is lost in comparisons: both leave a centre that is not finite.
void repair(const float* tile, int64_t rows, Reduced& out, int64_t lane) {
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const float x = tile[row * kWidth + lane];
        sum += static_cast<double>(x);
        if (x != x) out.low[lane] = out.high[lane] = x;
    }
    out.centre[lane] = static_cast<float>(sum / static_cast<double>(rows));
}

// The moments of a tile from its sums, field by field.
PYUNIVERSAL_INLINE void moments_of(const Reduced& from, int64_t rows, Lanes* out) {
    const double n = static_cast<double>(rows), inverse = 1 / n;
    for (int64_t i = 0; i < kWidth; ++i) {
        const double shift = from.sum[i] * inverse, shift2 = shift * shift, sum2 = from.sum2[i], sum3 = from.sum3[i];
        const bool constant = from.low[i] == from.high[i];  // exactly 0, which rounding might miss
        out[COUNT][i] = n;
        out[MEAN][i] = constant ? static_cast<double>(from.low[i]) : static_cast<double>(from.centre[i]) + shift;
        out[M2][i] = constant ? 0 : sum2 - n * shift2;
        out[M3][i] = constant ? 0 : sum3 - 3 * shift * sum2 + 2 * n * shift2 * shift;
        out[M4][i] = constant ? 0 : from.sum4[i] - 4 * shift * sum3 + 6 * shift2 * sum2 - 3 * n * shift2 * shift2;
        out[POSITIVE][i] = from.positive[i];
        out[MINIMUM][i] = static_cast<double>(from.low[i]);
        out[MAXIMUM][i] = static_cast<double>(from.high[i]);
    }
}

void reduce(const float* tile, int64_t rows, Lanes* fields, const Ahead& ahead) {
    Reduced reduced;
    constexpr int kAtOnce = kBytes == 64 ? 4 : 2;
    for (int64_t at = 0; at < kWidth; at += kAtOnce * kFloats) first_look<kAtOnce>(tile, rows, reduced, at);
    int bad = 0;
    for (int64_t i = 0; i < kWidth; ++i) bad += !(reduced.centre[i] - reduced.centre[i] == 0);
    for (int64_t i = 0; bad && i < kWidth; ++i) {
        if (!(reduced.centre[i] - reduced.centre[i] == 0)) repair(tile, rows, reduced, i);
    }
    constexpr int kHalves = kBytes == 64 ? 4 : 2;
    for (int64_t at = 0; at < kWidth; at += kHalves * kDoubles) second_look<kHalves>(tile, rows, reduced, at, ahead);
    moments_of(reduced, rows, fields);
}

// a += b, field by field; field f of neuron i stands at [f * stride + i]. `b` is not empty, `a` may be. Where all neurons have the same counts, they are
// divided once.
template <bool Uniform> PYUNIVERSAL_INLINE void merge(double* __restrict a, int64_t a_stride, const double* __restrict b, int64_t b_stride, int64_t width) {
    const double of_a = a[COUNT * a_stride], of_b = b[COUNT * b_stride];
    const double share_a = of_a / (of_a + of_b), share_b = of_b / (of_a + of_b);
    for (int64_t i = 0; i < width; ++i) {
        auto at = [&](Field field) -> double& { return a[field * a_stride + i]; };
        auto bt = [&](Field field) { return b[field * b_stride + i]; };
        const double na = Uniform ? of_a : at(COUNT), nb = Uniform ? of_b : bt(COUNT);
        const double wa = Uniform ? share_a : na / (na + nb), wb = Uniform ? share_b : nb / (na + nb);
        const double delta = bt(MEAN) - at(MEAN), delta2 = delta * delta;
        const double between = delta2 * na * wb;  // M2 of the two means
        at(M4) += bt(M4) + between * delta2 * (wa * wa - wa * wb + wb * wb) + 6 * delta2 * (wa * wa * bt(M2) + wb * wb * at(M2)) +
                  4 * delta * (wa * bt(M3) - wb * at(M3));
        at(M3) += bt(M3) + between * delta * (wa - wb) + 3 * delta * (wa * bt(M2) - wb * at(M2));
        at(M2) += bt(M2) + between;
        at(MEAN) += delta * wb;
        at(COUNT) = na + nb;
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
    alignas(64) Lanes fields[FIELDS];
    const int64_t neurons = work.x.neurons, first = first_block * kWidth, last = last_block * kWidth < neurons ? last_block * kWidth : neurons;
    if (first >= last) return;
    for (int64_t set = 0, begin = 0; set < work.sets; begin = work.ends[set++]) {
        const int64_t end = work.ends[set];
        if (begin == end) continue;
        clear(work.segment + first, neurons, last - first);
        for (Tiles tiles(work.x, first, last, begin, end); tiles.next();) {
            for (int64_t at = 0; at < tiles.width; at += kWidth) {
                activate_all(tiles.tile(at / kWidth), tiles.rows * kWidth, work.activation);
                reduce(tiles.tile(at / kWidth), tiles.rows, fields, tiles.ahead());
                tiles.load();
                merge<true>(work.segment + tiles.neuron + at, neurons, fields[0], kWidth, tiles.width - at < kWidth ? tiles.width - at : kWidth);
            }
        }
        for (int64_t later = set; later < work.sets; ++later) {
            merge<false>(work.state + later * FIELDS * neurons + first, neurons, work.segment + first, neurons, last - first);
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

// state [sets, 8, neurons] float64, x [tokens, neurons], set s holds the tokens [0, ends[s]). Of activation(x) where it is not "".
void moments_(const Tensor& state, const Tensor& x, const std::vector<int64_t>& ends, int threads, const std::string& activation) {
    const Activations view = activations(x, "moments_: x");
    check_arguments(state, x, ends, threads);
    std::vector<double> segment(FIELDS * view.neurons);
    const MomentsWork work{
        view, ends.data(), static_cast<int64_t>(ends.size()), state.data<double>(), segment.data(), activation_named(activation, "moments_")};
    auto kernel = PYUNIVERSAL_PICK(moments);
    split((view.neurons + kMomentsWidth - 1) / kMomentsWidth, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
