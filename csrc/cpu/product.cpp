// total += scale_x scale_y x y^T of int8 operands in panels (panels.h): exact int32 sums over all tokens, scaled and added once, a block of the total at a
// time.
//
// A block of A rows and B columns is multiplied in steps of tokens that leave its operands in the caches; its sums wait in L2. The micro-kernel keeps kTileRows
// rows times a few vectors of columns in registers.
#include "isa.h"
#include "panels.h"
#include "simd.h"

namespace pyuniversal::cpu {

struct ProductWork {
    float* total;
    int64_t stride;  // between rows of the total
    const int8_t *x, *y;
    const float *x_scale, *y_scale;
    int64_t rows, columns, groups;
    bool symmetric;  // x is y: only the upper triangle is computed, and written twice
};

constexpr int64_t kBlockRows = 96, kBlockColumns = 384;
constexpr int64_t kMostGroups = INT32_MAX / (127 * 127) / kGroup;

PYUNIVERSAL_KERNEL(product, ProductWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kLine = kPanel * kGroup;  // bytes of four tokens of a panel

#if defined(__AVX512VNNI__)

constexpr int64_t kTileRows = 8, kVectors = 3, kTileColumns = kVectors * kPanel;
constexpr int64_t kStep = 256;  // groups of tokens

using Operand = int8_t;

// Sums of u8 x s8: the columns' bytes have 128 added by the exclusive or, which the start value of the sums takes off again.
PYUNIVERSAL_INLINE void start(int32_t* sums, const ProductWork& work, int64_t row, int64_t rows) {
    for (int64_t panel = 0; panel < rows; panel += kPanel) {
        const int8_t* x = work.x + (row + panel) / kPanel * work.groups * kLine;
        __m512i total = _mm512_setzero_si512();
        for (int64_t group = 0; group < work.groups; ++group) total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), _mm512_loadu_si512(x + group * kLine));
        int32_t of_row[kPanel];
        _mm512_storeu_si512(of_row, _mm512_mullo_epi32(total, _mm512_set1_epi32(-128)));
        for (int64_t i = 0; i < kPanel && panel + i < kBlockRows; ++i) {
            for (int64_t j = 0; j < kBlockColumns; j += kPanel) _mm512_storeu_si512(sums + (panel + i) * kBlockColumns + j, _mm512_set1_epi32(of_row[i]));
        }
    }
}

PYUNIVERSAL_INLINE const Operand* widen(Operand*, const ProductWork&, int64_t, int64_t, int64_t, int64_t) { return nullptr; }

// sums[8 rows][Vectors * 16] += x y^T over `groups` groups of tokens. x points into a panel, at its first or ninth neuron; panels of y are `panel` bytes apart.
// The instruction is written out since compilers copy the sums around the intrinsic, which takes half of the speed.
template <int Vectors> __attribute__((noinline)) void multiply(int32_t* sums, const int8_t* x, const int8_t* y, int64_t panel, int64_t groups) {
    __m512i c[kTileRows][Vectors];
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
        for (int v = 0; v < Vectors; ++v) c[i][v] = _mm512_loadu_si512(sums + i * kBlockColumns + v * kPanel);
    }
    const __m512i offset = _mm512_set1_epi8(-128);
    for (int64_t group = 0; group < groups; ++group) {
        __m512i b[Vectors];
        for (int v = 0; v < Vectors; ++v) b[v] = _mm512_xor_si512(_mm512_loadu_si512(y + v * panel + group * kLine), offset);
#pragma GCC unroll 8
        for (int i = 0; i < kTileRows; ++i) {
            int32_t four;
            std::memcpy(&four, x + group * kLine + i * kGroup, sizeof four);
            const __m512i a = _mm512_set1_epi32(four);
            for (int v = 0; v < Vectors; ++v) asm("vpdpbusd %2, %1, %0" : "+v"(c[i][v]) : "v"(b[v]), "v"(a));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
        for (int v = 0; v < Vectors; ++v) _mm512_storeu_si512(sums + i * kBlockColumns + v * kPanel, c[i][v]);
    }
}

PYUNIVERSAL_INLINE void multiply_tile(int32_t* sums, const ProductWork& work, const Operand*, int64_t row, int64_t column, int64_t columns, int64_t group,
                                      int64_t groups) {
    const int64_t panel = work.groups * kLine;
    const int8_t* x = work.x + row / kPanel * panel + group * kLine + row % kPanel * kGroup;
    const int8_t* y = work.y + column / kPanel * panel + group * kLine;
    if (columns > 2 * kPanel) return multiply<3>(sums, x, y, panel, groups);
    if (columns > kPanel) return multiply<2>(sums, x, y, panel, groups);
    multiply<1>(sums, x, y, panel, groups);
}

#else

typedef int16_t Shorts __attribute__((vector_size(kBytes)));
typedef int8_t Bytes __attribute__((vector_size(kBytes / 2)));

// Products of int16 and sums of neighbouring pairs: exact, on any instruction set. A vector holds four tokens of kLanes neurons.
constexpr int64_t kLanes = kBytes / 8;
constexpr int64_t kTileRows = kBytes == 64 ? 8 : 4, kVectors = 2, kTileColumns = kVectors * kLanes;
constexpr int64_t kStep = 128;  // groups of tokens

using Operand = int16_t;

PYUNIVERSAL_INLINE void start(int32_t* sums, const ProductWork&, int64_t, int64_t rows) { std::memset(sums, 0, rows * kBlockColumns * sizeof *sums); }

PYUNIVERSAL_INLINE Ints add_pairs(Shorts a, Shorts b) {
#if defined(__AVX512BW__)
    return reinterpret_cast<Ints>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
    return reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
    return reinterpret_cast<Ints>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    Ints sums;
    for (int64_t i = 0; i < kFloats; ++i) sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sums;
#endif
}

// Half a vector of bytes, widened; compilers do not find the instruction by themselves.
PYUNIVERSAL_INLINE Shorts load_shorts(const int8_t* from) {
#if defined(__AVX512BW__)
    return reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX2__)
    return reinterpret_cast<Shorts>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    return __builtin_convertvector(load<Bytes>(from), Shorts);
#endif
}

// The rows of a block as int16 [rows / kTileRows, groups, kTileRows, 4]: widened once, multiplied with every column.
PYUNIVERSAL_INLINE const Operand* widen(Operand* buffer, const ProductWork& work, int64_t row, int64_t rows, int64_t group, int64_t groups) {
    for (int64_t i = 0; i < rows; ++i) {
        const int8_t* from = work.x + ((row + i) / kPanel * work.groups + group) * kLine + (row + i) % kPanel * kGroup;
        Operand* to = buffer + (i / kTileRows * groups * kTileRows + i % kTileRows) * kGroup;
        for (int64_t g = 0; g < groups; ++g) {
            for (int64_t token = 0; token < kGroup; ++token) to[g * kTileRows * kGroup + token] = from[g * kLine + token];
        }
    }
    return buffer;
}

// sums[kTileRows][kTileColumns] += x y^T over `groups` groups of tokens.
PYUNIVERSAL_INLINE void multiply_tile(int32_t* sums, const ProductWork& work, const Operand* x, int64_t, int64_t column, int64_t, int64_t group,
                                      int64_t groups) {
    const int8_t* y = work.y + (column / kPanel * work.groups + group) * kLine + column % kPanel * kGroup;
    Ints c[kTileRows][kVectors] = {};
    for (int64_t g = 0; g < groups; ++g) {
        Shorts b[kVectors];
        for (int v = 0; v < kVectors; ++v) b[v] = load_shorts(y + g * kLine + v * kLanes * kGroup);
#pragma GCC unroll 8
        for (int i = 0; i < kTileRows; ++i) {
            const Longs four = load<int64_t>(x + (g * kTileRows + i) * kGroup) - Longs{};
            for (int v = 0; v < kVectors; ++v) c[i][v] += add_pairs(b[v], reinterpret_cast<Shorts>(four));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
            int32_t* to = sums + i * kBlockColumns + v * kLanes;
            for (int64_t j = 0; j < kLanes; ++j) to[j] += c[i][v][2 * j] + c[i][v][2 * j + 1];
        }
    }
}

#endif

// The first column of a block that is computed in this row: all, or from the diagonal on.
PYUNIVERSAL_INLINE int64_t first(const ProductWork& work, int64_t row, int64_t column) { return work.symmetric && row > column ? row - column : 0; }

// total[row:, column:] += scale_x scale_y sums.
PYUNIVERSAL_INLINE void add(const ProductWork& work, const int32_t* sums, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
        float* to = work.total + (row + i) * work.stride + column;
        const float scale = work.x_scale[row + i];
        const float* scales = work.y_scale + column;
        const int32_t* from = sums + i * kBlockColumns;
        for (int64_t j = first(work, row + i, column); j < columns; ++j) to[j] += scale * scales[j] * static_cast<float>(from[j]);
    }
    if (!work.symmetric) return;
    for (int64_t j = 0; j < columns; ++j) {  // the same, transposed, but for the diagonal
        float* to = work.total + (column + j) * work.stride + row;
        const int64_t end = rows < column + j - row ? rows : column + j - row;
        for (int64_t i = 0; i < end; ++i) to[i] += work.x_scale[row + i] * work.y_scale[column + j] * static_cast<float>(sums[i * kBlockColumns + j]);
    }
}

}  // namespace

// Pieces are blocks of the total, down its columns: the operand of a block of columns stays in the last cache while all rows pass.
void product(const ProductWork& work, int64_t begin, int64_t end) {
    alignas(64) int32_t sums[kBlockRows * kBlockColumns];
    alignas(64) Operand buffer[sizeof(Operand) == 1 ? 1 : kBlockRows * kStep * kGroup];
    const int64_t down = divide_up(work.rows, kBlockRows);
    for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t row = piece % down * kBlockRows, column = piece / down * kBlockColumns;
        const int64_t rows = work.rows - row < kBlockRows ? work.rows - row : kBlockRows;
        const int64_t columns = work.columns - column < kBlockColumns ? work.columns - column : kBlockColumns;
        if (work.symmetric && column + columns <= row) continue;
        const int64_t whole = divide_up(rows, kTileRows) * kTileRows;  // rows of whole tiles: they are in the panels, with anything in them
        start(sums, work, row, whole);
        for (int64_t group = 0; group < work.groups; group += kStep) {
            const int64_t groups = work.groups - group < kStep ? work.groups - group : kStep;
            const Operand* x = widen(buffer, work, row, whole, group, groups);
            for (int64_t j = 0; j < columns; j += kTileColumns) {
                for (int64_t i = 0; i < whole; i += kTileRows) {
                    const Operand* tile = x + (sizeof(Operand) == 1 ? 0 : i * groups * kGroup);
                    multiply_tile(sums + i * kBlockColumns + j, work, tile, row + i, column + j, columns - j, group, groups);
                }
            }
        }
        add(work, sums, row, rows, column, columns);
    }
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "threads.h"

namespace pyuniversal::cpu {
namespace {

void check_side(const Tensor& data, const Tensor& scale, const std::string& name, int64_t neurons) {
    check_panels(data, "product_: " + name);
    check_equal(data.size(0), "product_: the panels of " + name, divide_up(neurons, kPanel), "a sixteenth of its neurons, rounded up");
    check(scale, "product_: " + name + "_scale", "cpu", {"float32"}, {"neurons"}, Layout::contiguous);
    check_equal(scale.size(0), "product_: the length of " + name + "_scale", neurons, "the neurons of " + name + " in total");
}

}  // namespace

// total float32 [rows, columns]; x, y int8 [neurons / 16, tokens / 4, 16, 4]; scales float32 [neurons].
void product_(const Tensor& total, const Tensor& x, const Tensor& y, const Tensor& x_scale, const Tensor& y_scale, int threads) {
    check(total, "product_: total", "cpu", {"float32"}, {"rows", "columns"}, Layout::unit_columns);
    const int64_t rows = total.size(0), columns = total.size(1);
    check_side(x, x_scale, "x", rows);
    check_side(y, y_scale, "y", columns);
    check_equal(y.size(1), "product_: the groups of y", x.size(1), "those of x");
    check_threads(threads, "product_");
    if (x.size(1) > kMostGroups) throw std::invalid_argument("product_: sums are exact up to 133,144 tokens, got " + std::to_string(x.size(1) * kGroup));
    const bool symmetric = x.memory == y.memory && x_scale.memory == y_scale.memory && rows == columns;
    const ProductWork work{total.data<float>(),
                           total.stride(0),
                           x.data<const int8_t>(),
                           y.data<const int8_t>(),
                           x_scale.data<const float>(),
                           y_scale.data<const float>(),
                           rows,
                           columns,
                           x.size(1),
                           symmetric};
    auto kernel = PYUNIVERSAL_PICK(product);
    share(divide_up(rows, kBlockRows) * divide_up(columns, kBlockColumns), threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
