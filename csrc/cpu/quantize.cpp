// Activations of a chunk to int8, rounded stochastically: q = floor(fma(x - centre, 1 / scale, u)), with u from the hash of pyuniversal/ops/_dither.py.
// float32 arithmetic to the bit, on any machine.
#include "isa.h"
#include "panels.h"
#include "tile.h"

namespace pyuniversal::cpu {

struct QuantizeWork {
    Activations x;
    const float *centre, *inverse;  // [neurons]
    const uint32_t *token_key, *neuron_key;
    int8_t* data;      // [panels, groups, 16, 4]
    double* rounding;  // [2, neurons]
};

constexpr int64_t kQuantizeWidth = 64;  // neurons of a tile, a multiple of a panel's

PYUNIVERSAL_KERNEL(quantize, QuantizeWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kRows = kTileRows;  // part of the result: it fixes the order of the sums of `rounding`
constexpr int64_t kWidth = kTileWidth;
constexpr int kHalves = 2;  // a vector of floats is two of doubles

PYUNIVERSAL_INLINE Words lowbias32(Words h) {
    h = (h ^ (h >> 16)) * 0x7feb352du;
    h = (h ^ (h >> 15)) * 0x846ca68bu;
    return h ^ (h >> 16);
}

// a b + c with a single rounding.
PYUNIVERSAL_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<Floats>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
    // The product is exact in double; the sum is rounded to odd, so that rounding it again to float is exact.
    Floats result;
    for (int64_t i = 0; i < kFloats; ++i) {
        const double product = static_cast<double>(a[i]) * static_cast<double>(b[i]), u = static_cast<double>(c[i]);
        const double sum = product + u, back = sum - product;
        const double error = (product - (sum - back)) + (u - back);  // TwoSum (Knuth): sum + error is exact
        int64_t bits;
        std::memcpy(&bits, &sum, sizeof bits);
        const int64_t towards = (error > 0) == (sum > 0) ? 1 : -1;
        bits += (error != 0 && (bits & 1) == 0) ? towards : 0;
        double odd;
        std::memcpy(&odd, &bits, sizeof odd);
        result[i] = static_cast<float>(odd);
    }
    return result;
#endif
}

// f (1 - f), f the fractional part of y. With d the distance to the nearest integer it is |d| - d^2. |y| < 2^51.
PYUNIVERSAL_INLINE Doubles variance(Doubles y) {
    const Doubles d = y - ((y + 0x1.8p52) - 0x1.8p52);
    return absolute(d) - d * d;
}

struct Columns {
    alignas(64) float centre[kWidth], inverse[kWidth];
    alignas(64) uint32_t key[kWidth];
    alignas(64) double rounding[2][kWidth];  // sums of f (1 - f), and of it times y^2
};

// q of `rows` tokens of the kFloats neurons from the lane `at` on to `to`, in the layout of panels.
PYUNIVERSAL_INLINE void round_lanes(const float* tile, int64_t rows, const uint32_t* token_key, Columns& columns, int64_t at, int8_t* to, const Ahead& ahead) {
    const Floats centre = load<Floats>(columns.centre + at), inverse = load<Floats>(columns.inverse + at);
    const Words key = load<Words>(columns.key + at);
    Doubles sums[2][kHalves] = {}, wide[kHalves];
    for (int half = 0; half < kHalves; ++half) wide[half] = load_doubles(columns.inverse + at + half * kDoubles);
    for (int64_t row = 0; row < rows; row += kGroup) {
        Words packed = {};
        const int64_t tokens = rows - row < kGroup ? rows - row : kGroup;
        for (int64_t token = 0; token < tokens; ++token) {
            ahead.fetch(at / kFloats * kRows + row + token);
            const Floats centred = load<Floats>(tile + (row + token) * kWidth + at) - centre;
            const Words h = lowbias32(token_key[row + token] ^ key) >> 8;
            const Floats u = __builtin_convertvector(reinterpret_cast<Ints>(h), Floats) * 0x1p-24f;
            const Floats shifted = fused(centred, inverse, u);
            // |shifted| < 128: truncation to int, less one where it rounded up, is floor.
            const Ints whole = __builtin_convertvector(shifted, Ints);
            const Ints q = whole + (__builtin_convertvector(whole, Floats) > shifted);
            packed |= (reinterpret_cast<Words>(q) & 0xffu) << static_cast<uint32_t>(8 * token);
            for (int half = 0; half < kHalves; ++half) {
                const Doubles y = half_of(centred, half) * wide[half], added = variance(y);  // y is exact
                sums[0][half] += added;
                sums[1][half] = multiply_add(y * y, added, sums[1][half]);
            }
        }
        store(to + row / kGroup * kPanel * kGroup, packed);
    }
    for (int power = 0; power < 2; ++power) {
        for (int half = 0; half < kHalves; ++half) {
            double* rounding = columns.rounding[power] + at + half * kDoubles;
            store(rounding, load<Doubles>(rounding) + sums[power][half]);
        }
    }
}

}  // namespace

void quantize(const QuantizeWork& work, int64_t first_block, int64_t last_block) {
    const int64_t neurons = work.x.neurons, groups = divide_up(work.x.tokens, kGroup);
    const int64_t first = first_block * kWidth, last = last_block * kWidth < neurons ? last_block * kWidth : neurons;
    for (int64_t neuron = first; neuron < last; ++neuron) work.rounding[neuron] = work.rounding[neurons + neuron] = 0;
    for (Tiles tiles(work.x, first, last, 0, work.x.tokens); tiles.next();) {
        for (int64_t begin = 0; begin < tiles.width; begin += kWidth) {
            const int64_t neuron = tiles.neuron + begin, width = tiles.width - begin < kWidth ? tiles.width - begin : kWidth;
            Columns columns = {};
            std::memcpy(columns.centre, work.centre + neuron, width * sizeof(float));
            std::memcpy(columns.inverse, work.inverse + neuron, width * sizeof(float));
            std::memcpy(columns.key, work.neuron_key + neuron, width * sizeof(uint32_t));
            for (int power = 0; power < 2; ++power) std::memcpy(columns.rounding[power], work.rounding + power * neurons + neuron, width * sizeof(double));
            for (int64_t at = 0; at < divide_up(width, kPanel) * kPanel; at += kFloats) {
                int8_t* to = work.data + (((neuron + at) / kPanel * groups + tiles.token / kGroup) * kPanel + at % kPanel) * kGroup;
                round_lanes(tiles.tile(begin / kWidth), tiles.rows, work.token_key + tiles.token, columns, at, to, tiles.ahead());
            }
            tiles.load();
            for (int power = 0; power < 2; ++power) std::memcpy(work.rounding + power * neurons + neuron, columns.rounding[power], width * sizeof(double));
        }
    }
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "threads.h"

namespace pyuniversal::cpu {
namespace {

void check_vector(const Tensor& vector, const std::string& name, const char* dtype, const char* length, int64_t expected) {
    check(vector, "quantize: " + name, "cpu", {dtype}, {length}, Layout::contiguous);
    check_equal(vector.size(0), "quantize: the length of " + name, expected, std::string("the ") + length + " of x");
}

}  // namespace

// x [tokens, neurons]; data int8 [neurons / 16, tokens / 4, 16, 4], both rounded up; rounding float64 [2, neurons] becomes the sums over tokens of
// f (1 - f) and of y^2 f (1 - f), f the fractional part of y = (x - centre) / scale.
void quantize(const Tensor& data, const Tensor& rounding, const Tensor& x, const Tensor& centre, const Tensor& inverse, const Tensor& token_key,
              const Tensor& neuron_key, int threads) {
    const Activations view = activations(x, "quantize: x");
    check_panels(data, "quantize: data");
    check_equal(data.size(0), "quantize: the panels of data", divide_up(view.neurons, kPanel), "a sixteenth of the neurons of x, rounded up");
    check_equal(data.size(1), "quantize: the groups of data", divide_up(view.tokens, kGroup), "a fourth of the tokens of x, rounded up");
    check(rounding, "quantize: rounding", "cpu", {"float64"}, {"2", "neurons"}, Layout::contiguous);
    check_equal(rounding.size(0), "quantize: the first dimension of rounding", 2, "the number of sums");
    check_equal(rounding.size(1), "quantize: the columns of rounding", view.neurons, "the neurons of x");
    check_vector(centre, "centre", "float32", "neurons", view.neurons);
    check_vector(inverse, "inverse", "float32", "neurons", view.neurons);
    check_vector(token_key, "token_key", "int32", "tokens", view.tokens);
    check_vector(neuron_key, "neuron_key", "int32", "neurons", view.neurons);
    check_threads(threads, "quantize");
    const QuantizeWork work{view,
                            centre.data<const float>(),
                            inverse.data<const float>(),
                            token_key.data<const uint32_t>(),
                            neuron_key.data<const uint32_t>(),
                            data.data<int8_t>(),
                            rounding.data<double>()};
    auto kernel = PYUNIVERSAL_PICK(quantize);
    split(divide_up(view.neurons, kQuantizeWidth), threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
