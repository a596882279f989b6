// Streaming moments of activations up to the fourth, with count, positives and extremes: one read of x, any number of nested token sets.
// A tile of tokens is reduced about a centre of its own, in double, and tiles are merged by the pairwise formulas of Pebay, Sandia report SAND2008-6212:
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

constexpr int64_t kMomentsWidth = 64;  // threads share the neurons by so many

PYUNIVERSAL_KERNEL(moments, MomentsWork)

namespace PYUNIVERSAL_ISA {
namespace {

// Tokens of a tile, and neurons that its sums stand for: they stay in L1. The rows are part of the result: they fix the order of the additions.
constexpr int64_t kRows = 128, kWidth = 512, kGroup = 8;

using Lanes = double[kWidth];

// Sums over the tokens of a tile, about a centre near them. The first group's mean is no further from the tile's than 1 / sqrt(kGroup) of the root of M2, so
// the sum of squares about it is at most 1 + kRows / kGroup times M2, whatever the data: a digit is lost, no more. As a float it is
// exact to subtract.
struct Sums {
    alignas(64) float centre[kWidth], low[kWidth], high[kWidth];
    alignas(64) int32_t positive[kWidth];
    alignas(64) double sum[kWidth], sum2[kWidth], sum3[kWidth], sum4[kWidth];
};

PYUNIVERSAL_INLINE Doubles half_at(const float* from, Floats, int half) { return load_doubles(from + half * kDoubles); }
template <typename T> PYUNIVERSAL_INLINE Doubles half_at(const T*, Floats x, int half) { return half_of(x, half); }

// A mean that does not overflow.
template <int64_t Rows, typename T> PYUNIVERSAL_INLINE Floats centre_of(const T* x, int64_t stride, int64_t rows) {
    const float share = 1.0f / static_cast<float>(rows);
    Floats mean = {};
#pragma GCC unroll 8
    for (int64_t row = 0; row < (Rows ? Rows : rows); ++row) mean += load_floats(x + row * stride) * share;
    return mean;
}

// Add up to kGroup tokens of a multiple of kFloats neurons; Rows is 0 where their number is not known beforehand. Meanwhile what is needed after them is
// fetched: memory is read along few rows at a time, in pieces of kWidth.
template <bool First, int64_t Rows, typename T> void add_group(const T* x, int64_t stride, int64_t rows, int64_t width, const T* next, Sums& sums) {
    for (int64_t at = 0; at < width; at += kFloats) {
        Floats centre, low, high;
        Ints positive = {};
        Doubles sum[2] = {}, sum2[2] = {}, sum3[2] = {}, sum4[2] = {};
        if (First) {
            centre = centre_of<Rows>(x + at, stride, rows);
            store(sums.centre + at, centre);
            low = high = load_floats(x + at);
        } else {
            centre = load<Floats>(sums.centre + at);
            low = load<Floats>(sums.low + at);
            high = load<Floats>(sums.high + at);
            positive = load<Ints>(sums.positive + at);
            for (int half = 0; half < 2; ++half) {
                const int64_t lane = at + half * kDoubles;
                sum[half] = load<Doubles>(sums.sum + lane);
                sum2[half] = load<Doubles>(sums.sum2 + lane);
                sum3[half] = load<Doubles>(sums.sum3 + lane);
                sum4[half] = load<Doubles>(sums.sum4 + lane);
            }
        }
        const Doubles centres[2] = {half_of(centre, 0), half_of(centre, 1)};
#pragma GCC unroll 8
        for (int64_t row = 0; row < (Rows ? Rows : rows); ++row) {
            const T* from = x + row * stride + at;
            if (at * sizeof(T) % 64 == 0) __builtin_prefetch(next + row * stride + at);
            const Floats value = load_floats(from);
            low = smaller(value, low);
            high = larger(value, high);
            positive = count_positive(value, positive);
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const Doubles d = half_at(from, value, half) - centres[half], square = d * d;
                sum[half] += d;
                sum2[half] = multiply_add(d, d, sum2[half]);
                sum3[half] = multiply_add(square, d, sum3[half]);
                sum4[half] = multiply_add(square, square, sum4[half]);
            }
        }
        store(sums.low + at, low);
        store(sums.high + at, high);
        store(sums.positive + at, positive);
        for (int half = 0; half < 2; ++half) {
            const int64_t lane = at + half * kDoubles;
            store(sums.sum + lane, sum[half]);
            store(sums.sum2 + lane, sum2[half]);
            store(sums.sum3 + lane, sum3[half]);
            store(sums.sum4 + lane, sum4[half]);
        }
    }
}

template <typename T> PYUNIVERSAL_INLINE void add_rows(const T* x, int64_t stride, int64_t rows, int64_t width, bool first, const T* next, Sums& sums) {
    if (rows == kGroup) {
        first ? add_group<true, kGroup>(x, stride, rows, width, next, sums) : add_group<false, kGroup>(x, stride, rows, width, next, sums);
    } else {
        first ? add_group<true, 0>(x, stride, rows, width, next, sums) : add_group<false, 0>(x, stride, rows, width, next, sums);
    }
}

// The same of up to kWidth neurons, after the model's activation function: through a copy, whose lanes beyond the last neuron are zero.
template <typename T> void add_copy(const T* x, int64_t stride, int64_t rows, int64_t width, bool first, Activation activation, Sums& sums) {
    alignas(64) float copy[kGroup * kWidth];
    const int64_t padded = (width + kFloats - 1) / kFloats * kFloats;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < padded; ++i) copy[row * padded + i] = i < width ? to_float(x[row * stride + i]) : 0.0f;
    }
    activate_all(copy, rows * padded, activation);
    add_rows<float>(copy, padded, rows, padded, first, copy, sums);
}

// A NaN is lost in comparisons; a sum tells that there might be one.
template <typename T> void keep_nan(const T* x, int64_t stride, int64_t rows, int64_t lane, Activation activation, Sums& sums) {
    float column[kRows];
    for (int64_t row = 0; row < rows; ++row) column[row] = to_float(x[row * stride + lane]);
    activate_all(column, rows, activation);
    for (int64_t row = 0; row < rows; ++row) {
        if (column[row] != column[row]) sums.low[lane] = sums.high[lane] = column[row];
    }
}

// The moments of a tile from its sums, field by field.
PYUNIVERSAL_INLINE void moments_of(const Sums& from, int64_t rows, int64_t width, Lanes* out) {
    const double n = static_cast<double>(rows), inverse = 1 / n;
    for (int64_t i = 0; i < width; ++i) {
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

// Up to kRows tokens of up to kWidth neurons, x [rows, width]; `next` is where the one after it begins.
template <typename T> void reduce(const T* x, int64_t stride, int64_t rows, int64_t width, const T* next, Activation activation, Lanes* fields) {
    Sums sums;
    const bool in_place = activation == Activation::none && width % kFloats == 0;
    for (int64_t row = 0; row < rows; row += kGroup) {
        const T* from = x + row * stride;
        const int64_t count = rows - row < kGroup ? rows - row : kGroup;
        if (in_place) {
            add_rows(from, stride, count, width, row == 0, row + kGroup < rows ? from + kGroup * stride : next, sums);
        } else {
            add_copy(from, stride, count, width, row == 0, activation, sums);
        }
    }
    int bad = 0;
    for (int64_t i = 0; i < width; ++i) bad += !(sums.sum[i] - sums.sum[i] == 0);
    for (int64_t i = 0; bad && i < width; ++i) {
        if (!(sums.sum[i] - sums.sum[i] == 0)) keep_nan(x, stride, rows, i, activation, sums);
    }
    moments_of(sums, rows, width, fields);
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

// The neurons [first, last).
template <typename T> void moments_of_type(const MomentsWork& work, int64_t first, int64_t last) {
    alignas(64) Lanes fields[FIELDS];
    const int64_t neurons = work.x.neurons, stride = work.x.stride;
    const T* x = static_cast<const T*>(work.x.data);
    for (int64_t set = 0, begin = 0; set < work.sets; begin = work.ends[set++]) {
        const int64_t end = work.ends[set];
        if (begin == end) continue;
        clear(work.segment + first, neurons, last - first);
        for (int64_t token = begin; token < end; token += kRows) {
            const int64_t rows = end - token < kRows ? end - token : kRows;
            for (int64_t at = first; at < last; at += kWidth) {
                const int64_t width = last - at < kWidth ? last - at : kWidth;
                const T* from = x + token * stride;
                reduce(from + at, stride, rows, width, at + width < last ? from + at + width : from + rows * stride + first, work.activation, fields);
                merge<true>(work.segment + at, neurons, fields[0], kWidth, width);
            }
        }
        for (int64_t later = set; later < work.sets; ++later) {
            merge<false>(work.state + later * FIELDS * neurons + first, neurons, work.segment + first, neurons, last - first);
        }
    }
}

}  // namespace

void moments(const MomentsWork& work, int64_t first_block, int64_t last_block) {
    const int64_t first = first_block * kMomentsWidth, end = last_block * kMomentsWidth, last = end < work.x.neurons ? end : work.x.neurons;
    if (first >= last) return;
    if (work.x.type == Float::float32) {
        moments_of_type<float>(work, first, last);
    } else if (work.x.type == Float::float16) {
        moments_of_type<Half>(work, first, last);
    } else {
        moments_of_type<BFloat16>(work, first, last);
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
