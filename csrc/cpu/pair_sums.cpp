// Products of neurons with chosen partners, summed over tokens. A tile of y is transposed, so that what a pair needs of it is a run of neighbouring floats,
// wherever the partner lies; x is transposed block by block beside it. Each pair is then a product of two short rows.
#include "isa.h"
#include "tile.h"
#include "transpose.h"

namespace pyuniversal::cpu {

// Tokens of a tile; part of the result: it orders additions. With 36,864 neurons of y a tile has 4.7 MB. Tiles of 64 tokens took as long or up to 1.25 times,
// of 128 up to 1.7 times as long.
constexpr int64_t kPairTokens = 32;
// Threads wait for one another once a round, so few neurons take several tiles in one; 512 KB of them are at home in L2.
constexpr int64_t kPairRound = 512 * 1024;
constexpr int64_t kPairSlot = 16;   // neighbouring neurons of y, which are in the tile if one of them is a partner
constexpr int64_t kPairWidth = 64;  // neurons of a block of x

struct Pair {
    double centre_y;
    int32_t x, y;  // neuron within its block of x, row of the tile of y
};

struct PairSumsWork {
    Activations x, y;
    const double* centre_x;  // [neurons of x]
    const int32_t* slots;    // [slots] which kPairSlot neurons of y each holds: from neuron slot * kPairSlot on
    const Pair* pairs;       // by neuron of x
    const int64_t* starts;   // [blocks of x + 1] first pair of each
    double* sums;            // [pairs]
    float* tiles;            // of y: [tiles of a round, tile_size], a tile [slots * kPairSlot, kPairTokens]
    int64_t tile_size;
    int64_t begin, end;  // tokens of the round
};

PYUNIVERSAL_KERNEL(pair_tiles, PairSumsWork)
PYUNIVERSAL_KERNEL(pair_sums, PairSumsWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kTokens = kPairTokens, kSlot = kPairSlot, kWidth = kPairWidth;
constexpr int64_t kTogether = 8;  // pairs in flight, whose lanes are added up together
constexpr int64_t kLine = 16;     // floats

// Memory is asked for early, since rows of 16 tokens, and partners anywhere, leave nothing for the machine to guess. One core, AVX-512, float32: slots, blocks
// and squares without it 0.5, with it 1.8 G products/s (one candidate); partners in 36,864 neurons without it 5.4, with it 7.5 G products/s (16 candidates).
constexpr int64_t kSlotsAhead = 4, kPairsAhead = 16;

// Transpose up to kFloats tokens of up to kSlot neurons: line(i, values) gets the tokens of neuron i. Tokens and neurons that are not there are zero.
// Meanwhile the line at `ahead`, of as many rows, is fetched.
template <typename T, typename Line>
PYUNIVERSAL_INLINE void transpose_some(const T* from, int64_t stride, int64_t rows, int64_t width, const T* ahead, const Line& line) {
#pragma GCC unroll 16
    for (int64_t row = 0; row < kFloats; ++row) __builtin_prefetch(ahead + row * stride, 0, 2);
    for (int64_t at = 0; at < kSlot; at += kFloats) {
        Floats square[kFloats];
        if (rows >= kFloats && width >= at + kFloats) {
#pragma GCC unroll 16
            for (int64_t row = 0; row < kFloats; ++row) square[row] = load_floats(from + row * stride + at);
        } else {
            alignas(64) float edge[kFloats * kFloats] = {};
            for (int64_t row = 0; row < rows && row < kFloats; ++row) {
                for (int64_t i = 0; i < kFloats && at + i < width; ++i) edge[row * kFloats + i] = to_float(from[row * stride + at + i]);
            }
            for (int64_t row = 0; row < kFloats; ++row) square[row] = load<Floats>(edge + row * kFloats);
        }
        transpose(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < kFloats; ++i) line(at + i, square[i]);
    }
}

// The slots [begin, end) of a tile of y. All of them for a few tokens, then for the next: so memory is read in long runs.
template <typename T> void fill_tile(float* tile, const PairSumsWork& work, int64_t first, int64_t begin, int64_t end) {
    for (int64_t token = 0; token < kTokens; token += kFloats) {
        const T* from = static_cast<const T*>(work.y.data) + (first + token) * work.y.stride;
        for (int64_t slot = begin; slot < end; ++slot) {
            const int64_t neuron = work.slots[slot] * kSlot;
            float* to = tile + slot * kSlot * kTokens + token;
            const bool in_rows = slot + kSlotsAhead < end;  // else in the next rows
            const int64_t later = in_rows ? slot + kSlotsAhead : begin + (slot + kSlotsAhead - end) % (end - begin);
            const T* ahead = from + (in_rows ? 0 : kFloats * work.y.stride) + work.slots[later] * kSlot;
            transpose_some(from + neuron, work.y.stride, work.end - first - token, work.y.neurons - neuron, ahead,
                           [to](int64_t i, Floats values) { store(to + i * kTokens, values); });
        }
    }
}

template <typename T> void fill_tiles(const PairSumsWork& work, int64_t begin, int64_t end) {
    float* tile = work.tiles;
    for (int64_t token = work.begin; token < work.end; token += kTokens, tile += work.tile_size) fill_tile<T>(tile, work, token, begin, end);
}

// x - centre of a block, [kWidth, kTokens]; zero beyond the last token.
template <typename T> void fill_block(double* block, const PairSumsWork& work, int64_t first_token, int64_t first) {
    const int64_t width = work.x.neurons - first < kWidth ? work.x.neurons - first : kWidth, rows = work.end - first_token;
    for (int64_t token = 0; token < kTokens; token += kFloats) {
        const T* from = static_cast<const T*>(work.x.data) + (first_token + token) * work.x.stride + first;
        for (int64_t neuron = 0; neuron < width; neuron += kSlot) {
            double* to = block + neuron * kTokens + token;
            const double* centre = work.centre_x + first + neuron;
            const int64_t last = width - neuron - 1;
            transpose_some(from + neuron, work.x.stride, rows - token, width - neuron, from + neuron + kWidth, [=](int64_t i, Floats values) {
                const double c = centre[i < last ? i : last];
                store(to + i * kTokens, half_of(values, 0) - c);
                store(to + i * kTokens + kDoubles, half_of(values, 1) - c);
            });
        }
    }
    if (rows >= kTokens) return;
    for (int64_t i = 0; i < width; ++i) std::memset(block + i * kTokens + rows, 0, (kTokens - rows) * sizeof(double));
}

PYUNIVERSAL_INLINE Doubles multiply(const double* x, const float* y, double centre) {
    Doubles sums[2] = {};
#pragma GCC unroll 16
    for (int64_t token = 0; token < kTokens; token += 2 * kDoubles) {
        for (int64_t i = 0; i < 2; ++i) {
            const int64_t at = token + i * kDoubles;
            sums[i] = multiply_add(load<Doubles>(x + at), load_doubles(y + at) - centre, sums[i]);
        }
    }
    return sums[0] + sums[1];
}

void add_pairs(const PairSumsWork& work, const double* block, const float* tile, int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; pair += kTogether) {
        Doubles parts[kTogether];
#pragma GCC unroll 8
        for (int64_t i = 0; i < kTogether; ++i) {
            const Pair& of = work.pairs[pair + i < end ? pair + i : end - 1];
            const float* later = tile + work.pairs[pair + i + kPairsAhead < end ? pair + i + kPairsAhead : end - 1].y * kTokens;
            for (int64_t at = 0; at < kTokens; at += kLine) __builtin_prefetch(later + at);
            parts[i] = multiply(block + of.x * kTokens, tile + of.y * kTokens, of.centre_y);
        }
        alignas(64) double sums[kTogether];
#pragma GCC unroll 4
        for (int64_t i = 0; i < kTogether; i += kDoubles) store(sums + i, add_lanes(parts + i));
        const int64_t some = end - pair < kTogether ? end - pair : kTogether;
        for (int64_t i = 0; i < some; ++i) work.sums[pair + i] += sums[i];
    }
}

template <typename T> void sum_pairs(const PairSumsWork& work, int64_t begin, int64_t end) {
    alignas(64) double block[kWidth * kTokens];
    for (int64_t at = begin; at < end; ++at) {
        const int64_t first = work.starts[at], last = work.starts[at + 1];
        if (first == last) continue;
        const float* tile = work.tiles;
        for (int64_t token = work.begin; token < work.end; token += kTokens, tile += work.tile_size) {
            fill_block<T>(block, work, token, at * kWidth);
            add_pairs(work, block, tile, first, last);
        }
    }
}

}  // namespace

void pair_tiles(const PairSumsWork& work, int64_t begin, int64_t end) {
    if (work.y.type == Float::float32) return fill_tiles<float>(work, begin, end);
    if (work.y.type == Float::float16) return fill_tiles<Half>(work, begin, end);
    fill_tiles<BFloat16>(work, begin, end);
}

void pair_sums(const PairSumsWork& work, int64_t begin, int64_t end) {
    if (work.x.type == Float::float32) return sum_pairs<float>(work, begin, end);
    if (work.x.type == Float::float16) return sum_pairs<Half>(work, begin, end);
    sum_pairs<BFloat16>(work, begin, end);
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include <memory>

#include "threads.h"

namespace pyuniversal::cpu {
namespace {

void check_arguments(const Tensor& sums, const Tensor& x, const Tensor& y, const Tensor& centre_x, const Tensor& centre_y, const Tensor& partner, int threads) {
    if (x.dtype != y.dtype) throw std::invalid_argument("pair_sums_: y must have the dtype of x, " + x.dtype + ", got " + y.dtype);
    check_equal(y.size(0), "pair_sums_: the tokens of y", x.size(0), "those of x");
    check(sums, "pair_sums_: sums", "cpu", {"float64"}, {"neurons of x", "candidates"}, Layout::contiguous);
    check(partner, "pair_sums_: partner", "cpu", {"int64"}, {"neurons of x", "candidates"}, Layout::contiguous);
    check_equal(sums.size(0), "pair_sums_: the rows of sums", x.size(1), "the columns of x");
    check_equal(partner.size(0), "pair_sums_: the rows of partner", x.size(1), "the columns of x");
    check_equal(partner.size(1), "pair_sums_: the columns of partner", sums.size(1), "those of sums");
    check(centre_x, "pair_sums_: centre_x", "cpu", {"float64"}, {"neurons of x"}, Layout::contiguous);
    check(centre_y, "pair_sums_: centre_y", "cpu", {"float64"}, {"neurons of y"}, Layout::contiguous);
    check_equal(centre_x.size(0), "pair_sums_: the length of centre_x", x.size(1), "the columns of x");
    check_equal(centre_y.size(0), "pair_sums_: the length of centre_y", y.size(1), "the columns of y");
    check_threads(threads, "pair_sums_");
}

// The pairs that there are, and the parts of y that they need.
struct Pairs {
    std::vector<int32_t> slots;
    std::vector<Pair> pairs;
    std::vector<int64_t> starts;
};

Pairs pairs_of(const Tensor& partner, int64_t neurons, const double* centre_y) {
    const int64_t candidates = partner.size(1), all = partner.size(0) * candidates;
    const int64_t* partners = partner.data<const int64_t>();
    std::vector<int32_t> place((neurons + kPairSlot - 1) / kPairSlot, -1);  // of a slot in the tile
    for (int64_t i = 0; i < all; ++i) {
        if (partners[i] < -1 || partners[i] >= neurons) {
            throw std::invalid_argument("pair_sums_: partner must be within [0, " + std::to_string(neurons) + ") or -1, got " + std::to_string(partners[i]) +
                                        " at [" + std::to_string(i / candidates) + ", " + std::to_string(i % candidates) + "]");
        }
        if (partners[i] >= 0) place[partners[i] / kPairSlot] = 0;
    }
    Pairs found;
    for (size_t slot = 0; slot < place.size(); ++slot) {
        if (place[slot] < 0) continue;
        place[slot] = static_cast<int32_t>(found.slots.size());
        found.slots.push_back(static_cast<int32_t>(slot));
    }
    for (int64_t x = 0; x < partner.size(0); ++x) {
        if (x % kPairWidth == 0) found.starts.push_back(static_cast<int64_t>(found.pairs.size()));
        for (int64_t i = x * candidates; i < (x + 1) * candidates; ++i) {
            if (partners[i] < 0) continue;
            const int32_t row = static_cast<int32_t>(place[partners[i] / kPairSlot] * kPairSlot + partners[i] % kPairSlot);
            found.pairs.push_back({centre_y[partners[i]], static_cast<int32_t>(x % kPairWidth), row});
        }
    }
    found.starts.push_back(static_cast<int64_t>(found.pairs.size()));
    return found;
}

}  // namespace

// sums float64 [neurons of x, candidates], x [tokens, neurons of x], y [tokens, neurons of y], centres float64 [neurons], partner int64 [neurons of x,
// candidates].
void pair_sums_(const Tensor& sums, const Tensor& x, const Tensor& y, const Tensor& centre_x, const Tensor& centre_y, const Tensor& partner, int threads) {
    const Activations left = activations(x, "pair_sums_: x"), right = activations(y, "pair_sums_: y");
    check_arguments(sums, x, y, centre_x, centre_y, partner, threads);
    const Pairs found = pairs_of(partner, right.neurons, centre_y.data<const double>());
    const int64_t slots = static_cast<int64_t>(found.slots.size()), blocks = static_cast<int64_t>(found.starts.size()) - 1;
    std::vector<double> parts(found.pairs.size(), 0.0);
    const int64_t tile_size = slots * kPairSlot * kPairTokens;
    const int64_t tokens = kPairTokens * std::max<int64_t>(1, kPairRound / (4 * std::max<int64_t>(1, tile_size)));  // of a round
    const std::unique_ptr<float[]> tiles(new float[tile_size * tokens / kPairTokens]);  // not cleared: it would only be touched twice
    const PairSumsWork all{
        left, right, centre_x.data<const double>(), found.slots.data(), found.pairs.data(), found.starts.data(), parts.data(), tiles.get(), tile_size, 0, 0};
    auto fill = PYUNIVERSAL_PICK(pair_tiles);
    auto add = PYUNIVERSAL_PICK(pair_sums);
    const int64_t rounds = found.pairs.empty() ? 0 : (left.tokens + tokens - 1) / tokens;
    share_in_turns(rounds, slots, blocks, threads, [&](int64_t round, bool first, int64_t begin, int64_t end) {
        PairSumsWork work = all;
        work.begin = round * tokens, work.end = std::min(work.begin + tokens, left.tokens);
        (first ? fill : add)(work, begin, end);
    });
    const int64_t* partners = partner.data<const int64_t>();
    const double* part = parts.data();
    for (int64_t i = 0; i < sums.size(0) * sums.size(1); ++i) {
        if (partners[i] >= 0) sums.data<double>()[i] += *part++;
    }
}

}  // namespace pyuniversal::cpu
#endif
