// Activations of a chunk to int8, rounded stochastically: q = floor(fma(x - centre, 1 / scale, u)), with u from the hash of pyuniversal/ops/_dither.py.
// float32 arithmetic to the bit, on any machine: the product is exact in double, the sum is rounded to odd, so that rounding it again to float is exact.
#include <cmath>

#include "../tensor.h"
#include "threads.h"
#include "tile.h"

namespace pyuniversal::cpu {
namespace {

constexpr int64_t kRows = 128;  // tokens of a tile. Part of the result: it fixes the order of the sums of `rounding`
constexpr int64_t kWidth = 64;  // neurons of a tile

inline uint32_t lowbias32(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x7feb352du;
    h = (h ^ (h >> 15)) * 0x846ca68bu;
    return h ^ (h >> 16);
}

// float(product + u) with a single rounding.
inline float add_once(double product, double u) {
    const double sum = product + u, back = sum - product;
    const double error = (product - (sum - back)) + (u - back);  // TwoSum (Knuth): sum + error is exact
    int64_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    const int64_t towards = (error > 0) == (sum > 0) ? 1 : -1;
    bits += (error != 0 && (bits & 1) == 0) ? towards : 0;
    double odd;
    std::memcpy(&odd, &bits, sizeof odd);
    return static_cast<float>(odd);
}

struct Columns {
    alignas(64) float centre[kWidth], inverse[kWidth];
    alignas(64) uint32_t key[kWidth];
    alignas(64) double rounding[kWidth];
};

// q[row][neuron] of a tile, and the sums over its rows of f (1 - f), f the fractional part of (x - centre) / scale.
void round_tile(const float* tile, int64_t rows, const int32_t* token_key, Columns& columns, int8_t* q) {
    alignas(64) double sums[kWidth] = {};
    for (int64_t row = 0; row < rows; ++row) {
        const uint32_t token = static_cast<uint32_t>(token_key[row]);
        const float* x = tile + row * kWidth;
        alignas(64) float u[kWidth];
        for (int64_t i = 0; i < kWidth; ++i) u[i] = static_cast<float>(static_cast<int32_t>(lowbias32(token ^ columns.key[i]) >> 8)) * 0x1p-24f;
        for (int64_t i = 0; i < kWidth; ++i) {
            const float centred = x[i] - columns.centre[i];
            const double y = static_cast<double>(centred) * static_cast<double>(columns.inverse[i]);
            const float shifted = add_once(y, static_cast<double>(u[i]));
            // |shifted| < 128: truncation to int, less one where it rounded up, is floor.
            const int32_t whole = static_cast<int32_t>(shifted);
            q[row * kWidth + i] = static_cast<int8_t>(whole - (static_cast<float>(whole) > shifted));
            const int32_t below = static_cast<int32_t>(y);
            const double fraction = y - static_cast<double>(below - (static_cast<double>(below) > y));
            sums[i] += fraction * (1 - fraction);
        }
    }
    for (int64_t i = 0; i < kWidth; ++i) columns.rounding[i] += sums[i];
}

void check_vector(const Tensor& vector, const std::string& name, const char* dtype, const char* length, int64_t expected) {
    check(vector, "quantize: " + name, "cpu", {dtype}, {length}, Layout::contiguous);
    check_equal(vector.size(0), "quantize: the length of " + name, expected, std::string("the ") + length + " of x");
}

}  // namespace

// x [tokens, neurons]; data int8 [neurons, tokens]; rounding float64 [neurons] becomes the sum over tokens of f (1 - f).
void quantize(const Tensor& data, const Tensor& rounding, const Tensor& x, const Tensor& centre, const Tensor& inverse, const Tensor& token_key,
              const Tensor& neuron_key, int threads) {
    check_activations(x, "quantize: x");
    check(data, "quantize: data", "cpu", {"int8"}, {"neurons", "tokens"}, Layout::contiguous);
    const int64_t tokens = x.size(0), neurons = x.size(1);
    check_equal(data.size(0), "quantize: the rows of data", neurons, "the neurons of x");
    check_equal(data.size(1), "quantize: the columns of data", tokens, "the tokens of x");
    check_vector(rounding, "rounding", "float64", "neurons", neurons);
    check_vector(centre, "centre", "float32", "neurons", neurons);
    check_vector(inverse, "inverse", "float32", "neurons", neurons);
    check_vector(token_key, "token_key", "int32", "tokens", tokens);
    check_vector(neuron_key, "neuron_key", "int32", "neurons", neurons);
    check_threads(threads, "quantize");

    split((neurons + kWidth - 1) / kWidth, threads, [&](int64_t first_block, int64_t last_block) {
        alignas(64) float tile[kRows * kWidth];
        alignas(64) int8_t q[kRows * kWidth];
        for (int64_t block = first_block; block < last_block; ++block) {
            const int64_t neuron = block * kWidth, width = std::min(kWidth, neurons - neuron);
            Columns columns = {};
            for (int64_t i = 0; i < width; ++i) {
                columns.centre[i] = centre.data<const float>()[neuron + i];
                columns.inverse[i] = inverse.data<const float>()[neuron + i];
                columns.key[i] = static_cast<uint32_t>(neuron_key.data<const int32_t>()[neuron + i]);
            }
            for (int64_t token = 0; token < tokens; token += kRows) {
                const int64_t rows = std::min(kRows, tokens - token);
                load_tile<kWidth>(tile, x, token, neuron, rows, width);
                round_tile(tile, rows, token_key.data<const int32_t>() + token, columns, q);
                for (int64_t i = 0; i < width; ++i) {
                    int8_t* to = data.data<int8_t>() + (neuron + i) * tokens + token;
                    for (int64_t row = 0; row < rows; ++row) to[row] = q[row * kWidth + i];
                }
            }
            for (int64_t i = 0; i < width; ++i) rounding.data<double>()[neuron + i] = columns.rounding[i];
        }
    });
}

}  // namespace pyuniversal::cpu
