// The k best values of each of many lines, gathered in passing. A list takes what may be among the k best until it is full, and is then cut back to k or a few
// more: the cut is found by counting, which vectorises, and one comparison drops every later value below it.
//
// Of equal values the one with the lower index is better. So what is kept does not depend on the order in which values arrive.
#pragma once

#include "simd.h"

namespace pyuniversal::cpu {

struct Best {
    int64_t k, capacity;  // capacity: a multiple of 16, above k
    double* values;       // [lines, capacity]
    int32_t* indices;     // [lines, capacity]
    int32_t* sizes;       // [lines]
    double* cuts;         // [lines]: what is below is not among the k best,
    int32_t* ties;        // [lines]: nor what equals the cut and has a higher index than this
    float* thresholds;    // [lines]: cuts, rounded. Rounding keeps the order: what is below once both are rounded is below
};

namespace PYUNIVERSAL_ISA {
namespace {

PYUNIVERSAL_INLINE bool worse(double a, int32_t a_index, double b, int32_t b_index) { return a < b || (a == b && a_index > b_index); }

// Best first: a heap with the worst at the root. Right for ties and any size, but slow.
void heap_sort(double* values, int32_t* indices, int64_t size) {
    auto sink = [&](double value, int32_t index, int64_t at, int64_t end) {
        for (int64_t child = 2 * at + 1; child < end; child = 2 * at + 1) {
            if (child + 1 < end && worse(values[child + 1], indices[child + 1], values[child], indices[child])) ++child;
            if (!worse(values[child], indices[child], value, index)) break;
            values[at] = values[child];
            indices[at] = indices[child];
            at = child;
        }
        values[at] = value;
        indices[at] = index;
    };
    for (int64_t at = size / 2 - 1; at >= 0; --at) sink(values[at], indices[at], at, size);
    for (int64_t end = size - 1; end > 0; --end) {
        const double value = values[end];
        const int32_t index = indices[end];
        values[end] = values[0];
        indices[end] = indices[0];
        sink(value, index, 0, end);
    }
}

// How many are at least `cut`.
PYUNIVERSAL_INLINE int64_t count(const double* values, int64_t size, double cut) {
    Longs counts = {};
    int64_t i = 0, total = 0;
    for (; i + kDoubles <= size; i += kDoubles) counts -= load<Doubles>(values + i) >= cut;  // a comparison is -1 where it holds
    for (; i < size; ++i) total += values[i] >= cut;
    for (int64_t lane = 0; lane < kDoubles; ++lane) total += counts[lane];
    return total;
}

// Those that are at least `cut` stay, in their order. Returns how many.
PYUNIVERSAL_INLINE int64_t keep(double* values, int32_t* indices, int64_t size, double cut) {
    int64_t kept = 0, i = 0;
#ifdef __AVX512F__
    for (; i + kDoubles <= size; i += kDoubles) {
        const __m512d value = _mm512_loadu_pd(values + i);
        const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices + i));
        const __mmask8 stays = _mm512_cmp_pd_mask(value, _mm512_set1_pd(cut), _CMP_GE_OQ);
        _mm512_storeu_pd(values + kept, _mm512_maskz_compress_pd(stays, value));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + kept), _mm256_maskz_compress_epi32(stays, index));
        kept += __builtin_popcount(stays);
    }
#endif
    for (; i < size; ++i) {  // without a branch, which would be guessed wrong every other time
        const double value = values[i];
        values[kept] = value;
        indices[kept] = indices[i];
        kept += value >= cut;
    }
    return kept;
}

// The same, but of those that equal `cut` only the ones up to the index `tie`.
int64_t keep(double* values, int32_t* indices, int64_t size, double cut, int32_t tie) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
        const double value = values[i];
        const int32_t index = indices[i];
        values[kept] = value;
        indices[kept] = index;
        kept += (value > cut) | ((value == cut) & (index <= tie));
    }
    return kept;
}

// Cut the `size` entries of a list back to k or a few more. Returns how many are left.
int64_t cut_back(const Best& best, int64_t line, int64_t size) {
    double* values = best.values + line * best.capacity;
    int32_t* indices = best.indices + line * best.capacity;
    const int64_t most = best.k + (best.capacity - best.k) / 4;
    auto cut_at = [&](double cut, int32_t tie) {
        best.cuts[line] = cut;
        best.ties[line] = tie;
        best.thresholds[line] = static_cast<float>(cut);
    };
    // Ties with the last cut still arrive. Where there are many it is enough to drop them.
    if (best.ties[line] != INT32_MAX) size = keep(values, indices, size, best.cuts[line], best.ties[line]);
    if (size <= most) return size;
    Doubles lows = load<Doubles>(values), highs = lows, sums = lows;
    for (int64_t i = kDoubles; i + kDoubles <= size; i += kDoubles) {
        const Doubles v = load<Doubles>(values + i);
        lows = v < lows ? v : lows;
        highs = v > highs ? v : highs;
        sums += v;
    }
    double low = lows[0], high = highs[0], sum = sums[0];
    for (int64_t lane = 1; lane < kDoubles; ++lane) {
        low = lows[lane] < low ? lows[lane] : low;
        high = highs[lane] > high ? highs[lane] : high;
        sum += sums[lane];
    }
    // The list is the tail of a distribution, nearly exponential: e^-0.75 = 47% of it lie above this. Bisection from there: 2.6 counts on average.
    double cut = low + 0.75 * (sum / static_cast<double>(size / kDoubles * kDoubles) - low);
    for (int trial = 0; trial < 32; ++trial) {
        const int64_t above = count(values, size, cut);
        if (best.k <= above && above <= most) {
            cut_at(cut, INT32_MAX);
            return keep(values, indices, size, cut);
        }
        (above > most ? low : high) = cut;
        cut = low + (high - low) / 2;
    }
    heap_sort(values, indices, size);  // ties, or infinities
    cut_at(values[best.k - 1], indices[best.k - 1]);
    return best.k;
}

PYUNIVERSAL_INLINE void push(const Best& best, int64_t line, double value, int32_t index) {
    double* values = best.values + line * best.capacity;
    int32_t* indices = best.indices + line * best.capacity;
    const int64_t size = best.sizes[line];
    values[size] = value;
    indices[size] = index;
    if (size == best.capacity - 3) {  // it will soon be cut back, and most of it was written long ago
        for (int64_t i = 0; i < best.capacity; i += 8) __builtin_prefetch(values + i, 1);
        for (int64_t i = 0; i < best.capacity; i += 16) __builtin_prefetch(indices + i, 1);
    }
    best.sizes[line] = static_cast<int32_t>(size + 1 < best.capacity ? size + 1 : cut_back(best, line, size + 1));
}

// The k best, best first, times `sign`; NaN and -1 where there are fewer.
void take(const Best& best, int64_t line, double sign, double* values_out, int64_t* indices_out) {
    constexpr int64_t kBlock = 16, kVectors = kBlock / kDoubles, kMost = 1024;
    double* values = best.values + line * best.capacity;
    int32_t* indices = best.indices + line * best.capacity;
    const int64_t size = cut_back(best, line, best.sizes[line]);
    // The place of a value is the number of those above it, if all are different: then the places add up. 60 values take 3600 comparisons, which vectorise.
    int64_t sum = 0;
    for (int64_t first = 0; first < size && size <= kMost; first += kBlock) {
        Doubles some[kVectors];
        Longs above[kVectors] = {};
        for (int64_t v = 0; v < kVectors; ++v) some[v] = load<Doubles>(values + first + v * kDoubles);
        for (int64_t i = 0; i < size; ++i) {
            for (int64_t v = 0; v < kVectors; ++v) above[v] -= values[i] > some[v];
        }
        int64_t places[kBlock];
        for (int64_t v = 0; v < kVectors; ++v) store(places + v * kDoubles, above[v]);
        for (int64_t i = 0; i < kBlock && first + i < size; ++i) {
            sum += places[i];
            if (places[i] >= best.k) continue;
            values_out[places[i]] = sign * values[first + i];
            indices_out[places[i]] = indices[first + i];
        }
    }
    if (size > kMost || sum != size * (size - 1) / 2) {
        heap_sort(values, indices, size);
        for (int64_t i = 0; i < size && i < best.k; ++i) {
            values_out[i] = sign * values[i];
            indices_out[i] = indices[i];
        }
    }
    for (int64_t i = size; i < best.k; ++i) {
        values_out[i] = __builtin_nan("");
        indices_out[i] = -1;
    }
}

}  // namespace
}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

namespace pyuniversal::cpu {

// The memory of the lists of some lines.
class Lists {
  public:
    Lists(int64_t lines, int64_t k)
        : k_(k), capacity_((k + std::max<int64_t>(k, 32) + 15) / 16 * 16), sizes_(lines), cuts_(lines), ties_(lines), thresholds_(lines) {
        values_.reset(new double[lines * capacity_]);  // not a vector, which would write it all
        indices_.reset(new int32_t[lines * capacity_]);
        clear();
    }

    void clear() {
        std::fill(sizes_.begin(), sizes_.end(), 0);
        std::fill(cuts_.begin(), cuts_.end(), -std::numeric_limits<double>::infinity());
        std::fill(ties_.begin(), ties_.end(), std::numeric_limits<int32_t>::max());
        std::fill(thresholds_.begin(), thresholds_.end(), -std::numeric_limits<float>::infinity());
    }

    Best from(int64_t line) {
        const int64_t at = line * capacity_;
        return {
            k_, capacity_, values_.get() + at, indices_.get() + at, sizes_.data() + line, cuts_.data() + line, ties_.data() + line, thresholds_.data() + line};
    }

  private:
    int64_t k_, capacity_;
    std::unique_ptr<double[]> values_;
    std::unique_ptr<int32_t[]> indices_;
    std::vector<int32_t> sizes_;
    std::vector<double> cuts_;
    std::vector<int32_t> ties_;
    std::vector<float> thresholds_;
};

}  // namespace pyuniversal::cpu
#endif
