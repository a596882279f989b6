// A tile of a block's correlations: r, and what it adds to what is known of its rows and columns.
#pragma once

#include "best.h"
#include "simd.h"

namespace pyuniversal::cpu {

constexpr int64_t kBins = 99;
constexpr int64_t kCounters = 112;             // of a line: one a bin, one for r = NaN, the rest never used
constexpr int64_t kStripe = 256;               // columns of a stripe: what is known of them, as far as it is in use, stays in L2
constexpr int64_t kRows = 8;                   // rows worked on together: their r, bins and counters stay in L1
constexpr int64_t kGroup = 256, kGroups = 64;  // a group has 256 rows, or a multiple such that there are at most 64. Part of the result: it orders additions
constexpr int64_t kPowers = 4;                 // sums of d, d^2, d^3, d^4
constexpr int64_t kParts = 8;                  // a row has each in as many parts as the widest vector has lanes

enum Way { TOP, BOTTOM, WAYS };  // best by r and by -r

// Rows of a group or columns of a stripe.
struct Lines {
    int64_t first;  // its place in the block
    const double *scale, *shift, *pilot;
    Best best[WAYS];
    uint32_t* counts;  // rows: [rows, kCounters]. columns: [kCounters, kStripe]
    double* sums;      // of d = r - pilot. rows: [rows, kPowers, kParts]. columns: [kPowers, kStripe]
};

struct CorrelationTileWork {
    const void* total;  // at the first row and column of the tile
    bool doubles;       // not floats
    int64_t stride;     // between rows
    int64_t width;      // columns
    double tokens;
    const double* edges;  // [kBins + 1]
    Lines rows, columns;
};

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kStep = 128;                       // widths are rounded up to a multiple: an eighth is a number of vectors
constexpr int64_t kTogether = kBytes == 64 ? 4 : 2;  // rows whose sums fit into the registers

struct Tile {
    double r[kRows * kStripe];
    float rounded[kRows * kStripe];
    uint32_t places[kRows * kStripe];  // of counters: bin * kStripe + column
};

PYUNIVERSAL_INLINE Doubles load_doubles(const double* from) { return load<Doubles>(from); }

PYUNIVERSAL_INLINE Floats splat(float x) { return x - Floats{}; }

PYUNIVERSAL_INLINE void add_powers(Doubles* sums, Doubles d) {
    const Doubles square = d * d;
    sums[0] += d;
    sums[1] = multiply_add(d, d, sums[1]);
    sums[2] = multiply_add(square, d, sums[2]);
    sums[3] = multiply_add(square, square, sums[3]);
}

// r, by the operations of the reference and so with its bits, and the sums of its powers. They are taken about a pilot, the mean of some r of the line: about
// zero, the kurtosis of a line with mean 0.3 and standard deviation 1e-3 would keep four digits.
template <typename T>
PYUNIVERSAL_INLINE void correlate(Tile& tile, const CorrelationTileWork& work, const T* from, int64_t stride, int64_t row, int64_t width) {
    const Lines &rows = work.rows, &columns = work.columns;
    const Doubles zero = {};
    for (int64_t first = 0; first < kRows; first += kTogether) {
        double* row_sums = rows.sums + (row + first) * kPowers * kParts;
        Doubles of_row[kTogether][kPowers];
        for (int64_t i = 0; i < kTogether; ++i) {
            for (int64_t power = 0; power < kPowers; ++power) of_row[i][power] = load<Doubles>(row_sums + (i * kPowers + power) * kParts);
        }
        for (int64_t at = 0; at < width; at += kDoubles) {
            Doubles of_column[kPowers];
            for (int64_t power = 0; power < kPowers; ++power) of_column[power] = load<Doubles>(columns.sums + power * kStripe + at);
            const Doubles scale = load<Doubles>(columns.scale + at), shift = load<Doubles>(columns.shift + at), pilot = load<Doubles>(columns.pilot + at);
#pragma GCC unroll 4
            for (int64_t i = 0; i < kTogether; ++i) {
                const int64_t line = row + first + i, place = (first + i) * kStripe + at;
                const T* here = from + (first + i) * stride + at;
                __builtin_prefetch(here + kRows * stride);  // 7% to 15% faster: a row of a stripe is too short for the machine to see what comes next
                const Doubles r = (load_doubles(here) - work.tokens * (rows.shift[line] * shift)) / (rows.scale[line] * scale);
                store(tile.r + place, r);
                store(tile.rounded + place, __builtin_convertvector(r, HalfFloats));
                add_powers(of_row[i], r == r ? r - rows.pilot[line] : zero);
                add_powers(of_column, r == r ? r - pilot : zero);
            }
            for (int64_t power = 0; power < kPowers; ++power) store(columns.sums + power * kStripe + at, of_column[power]);
        }
        for (int64_t i = 0; i < kTogether; ++i) {
            for (int64_t power = 0; power < kPowers; ++power) store(row_sums + (i * kPowers + power) * kParts, of_row[i][power]);
        }
    }
}

// Bit i says whether a[i] >= b[i].
PYUNIVERSAL_INLINE uint32_t at_least(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GE_OQ);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(a >= b)));
#elif defined(__SSE2__)
    return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(a >= b)));
#else
    uint32_t bits = 0;
    for (int64_t i = 0; i < kFloats; ++i) bits |= static_cast<uint32_t>(a[i] >= b[i]) << i;
    return bits;
#endif
}

// The bin of r, which is no NaN, from a guess.
uint32_t bin_of(const double* edges, double r, uint32_t bin) {
    while (bin > 0 && r <= edges[bin]) --bin;
    while (bin < kBins - 1 && r > edges[bin + 1]) ++bin;
    return bin;
}

// Where each r is counted. The bin is 49.5 r + 49 rounded, in float; where that comes within rounding errors (7e-6) of an edge, the edges decide.
PYUNIVERSAL_INLINE void find_places(Tile& tile, const CorrelationTileWork& work, int64_t width) {
    constexpr float kRound = 0x1.8p23f;  // added, it leaves an integer in the low bits
    Words lanes;
    for (int64_t i = 0; i < kFloats; ++i) lanes[i] = static_cast<uint32_t>(i);
    for (int64_t row = 0; row < kRows; ++row) {
        // Each row begins an eighth of the width after the one before, so that rows are counted at different columns.
        int64_t to = row ? width - row * (width / kRows) : 0;
        for (int64_t at = 0; at < width; at += kFloats, to = to + kFloats == width ? 0 : to + kFloats) {
            uint32_t* places = tile.places + row * kStripe + to;
            const Floats r = load<Floats>(tile.rounded + row * kStripe + at);
            Floats u = r * 49.5f + 49.0f;
            u = u < 98.25f ? u : splat(98.25f);
            u = u > -0.25f ? u : splat(-0.25f);
            const Floats shifted = u + kRound, off = u - (shifted - kRound);
            const Words bins = r == r ? reinterpret_cast<Words>(shifted) & 0xff : Words{} + kBins;
            store(places, bins * kStripe + lanes + static_cast<uint32_t>(at));
            const Floats distance = reinterpret_cast<Floats>(reinterpret_cast<Words>(off) & 0x7fffffffu);
            for (uint32_t near = at_least(distance, splat(0.5f - 0x1p-16f)); near; near &= near - 1) {
                const int i = __builtin_ctz(near);
                const uint32_t bin = bin_of(work.edges, tile.r[row * kStripe + at + i], places[i] / kStripe);
                places[i] = bin * kStripe + places[i] % kStripe;
            }
        }
    }
}

// Consecutive r of a line often fall into one bin. A counter comes up again after those of seven other rows and columns, when its last sum has been stored.
PYUNIVERSAL_INLINE void count_places(const Tile& tile, const CorrelationTileWork& work, int64_t first, int64_t width) {
    uint32_t *of_rows = work.rows.counts + first * kCounters, *of_columns = work.columns.counts;
    for (int64_t i = 0; i < width; ++i) {
#pragma GCC unroll 8
        for (int64_t row = 0; row < kRows; ++row) {
            const uint32_t place = tile.places[row * kStripe + i];
            ++of_columns[place];
            ++of_rows[row * kCounters + place / kStripe];
        }
    }
}

#ifndef __AVX512F__
struct BitPlaces {
    uint64_t places[256];  // of the bits of a byte, a byte each
    uint8_t counts[256];
};

constexpr BitPlaces bit_places() {
    BitPlaces table = {};
    for (int byte = 0; byte < 256; ++byte) {
        for (uint64_t bit = 0; bit < 8; ++bit) {
            if (byte >> bit & 1) table.places[byte] |= bit << 8 * table.counts[byte]++;
        }
    }
    return table;
}

constexpr BitPlaces kBitPlaces = bit_places();
#endif

// Write at + i for each bit i of kFloats, and up to 16 bytes. Returns how many.
PYUNIVERSAL_INLINE int64_t write_places(uint8_t* to, uint32_t bits, int64_t at) {
#ifdef __AVX512F__
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(at))));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(places));
    return __builtin_popcount(bits);
#else
    const uint64_t places = kBitPlaces.places[bits] + static_cast<uint64_t>(at) * 0x0101010101010101u;
    for (int byte = 0; byte < 8; ++byte) to[byte] = static_cast<uint8_t>(places >> 8 * byte);  // one store where the lowest byte comes first
    return kBitPlaces.counts[bits];
#endif
}

PYUNIVERSAL_INLINE void add_to_row(const Best& best, int64_t line, const uint8_t* found, int64_t count, const double* r, double sign, int64_t first) {
    const int64_t capacity = best.capacity;
    double* values = best.values + line * capacity;
    int32_t* indices = best.indices + line * capacity;
    int64_t size = best.sizes[line];
    for (int64_t i = 0; i < count; ++i) {
        values[size] = sign * r[found[i]];
        indices[size] = static_cast<int32_t>(first + found[i]);
        if (++size == capacity) size = cut_back(best, line, size);
    }
    best.sizes[line] = static_cast<int32_t>(size);
}

PYUNIVERSAL_INLINE void add_to_columns(const Best& best, const uint8_t* found, int64_t count, const double* r, double sign, int64_t index) {
    const Best local = best;
    for (int64_t i = 0; i < count; ++i) push(local, found[i], sign * r[found[i]], static_cast<int32_t>(index));
}

// What may be among the best of its row or column goes into their lists. All of a row are found first, without a branch for each: of 4096 r, 450 enter each
// list.
PYUNIVERSAL_INLINE void find_best(const Tile& tile, const CorrelationTileWork& work, int64_t row, int64_t width) {
    static_assert(kStripe <= 256, "a column is found as a byte");
    uint8_t found[4][kStripe + 16];
    const Best *of_rows = work.rows.best, *of_columns = work.columns.best;
    for (int64_t i = 0; i < kRows; ++i) {
        const int64_t line = row + i;
        const double* r = tile.r + i * kStripe;
        const Floats row_top = splat(of_rows[TOP].thresholds[line]), row_bottom = splat(of_rows[BOTTOM].thresholds[line]);
        int64_t a = 0, b = 0, c = 0, d = 0;
        for (int64_t at = 0; at < width; at += kFloats) {
            const Floats up = load<Floats>(tile.rounded + i * kStripe + at), down = -up;
            const uint32_t in_a = at_least(up, row_top), in_b = at_least(down, row_bottom);
            const uint32_t in_c = at_least(up, load<Floats>(of_columns[TOP].thresholds + at));
            const uint32_t in_d = at_least(down, load<Floats>(of_columns[BOTTOM].thresholds + at));
            if (in_a | in_b) {
                a += write_places(found[0] + a, in_a, at);
                b += write_places(found[1] + b, in_b, at);
            }
            if (in_c | in_d) {
                c += write_places(found[2] + c, in_c, at);
                d += write_places(found[3] + d, in_d, at);
            }
        }
        add_to_row(of_rows[TOP], line, found[0], a, r, 1, work.columns.first);
        add_to_row(of_rows[BOTTOM], line, found[1], b, r, -1, work.columns.first);
        add_to_columns(of_columns[TOP], found[2], c, r, 1, work.rows.first + line);
        add_to_columns(of_columns[BOTTOM], found[3], d, r, -1, work.rows.first + line);
    }
}

template <typename T> void run_tile(const CorrelationTileWork& work, int64_t begin, int64_t end) {
    alignas(64) Tile tile;
    alignas(64) T ragged[kRows * kStripe];
    const int64_t width = (work.width + kStep - 1) / kStep * kStep;
    std::memset(work.columns.sums, 0, kPowers * kStripe * sizeof(double));
    for (int64_t row = begin; row < end; row += kRows) {
        const T* from = static_cast<const T*>(work.total) + row * work.stride;
        if (width == work.width && row + kRows <= end) {
            correlate(tile, work, from, work.stride, row, width);
        } else {  // rows and columns beyond the block have the scale NaN
            std::memset(ragged, 0, sizeof ragged);
            for (int64_t i = 0; i < kRows && row + i < end; ++i) std::memcpy(ragged + i * kStripe, from + i * work.stride, work.width * sizeof(T));
            correlate(tile, work, ragged, kStripe, row, width);
        }
        find_places(tile, work, width);
        count_places(tile, work, row, width);
        find_best(tile, work, row, width);
    }
}

}  // namespace
}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu
