// What this CPU can do at best: the ceilings that the bench holds the ops against. Loops over registers, and one over memory.
#include "isa.h"
#include "simd.h"

namespace pyuniversal::cpu {

struct PeakWork {
    int64_t rounds;
    double* operations;  // [threads]: done by each
};

struct ReadWork {
    const char* data;
    uint64_t* sums;  // [blocks]: so that nothing is left out
};

constexpr int64_t kReadBlock = 1 << 20;  // bytes

PYUNIVERSAL_KERNEL(peak_int8, PeakWork)
PYUNIVERSAL_KERNEL(peak_float32, PeakWork)
PYUNIVERSAL_KERNEL(read_memory, ReadWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int kChains = kBytes == 64 ? 16 : 12;  // sums that do not wait for each other, all in registers

// The compiler must believe that somebody changes and somebody reads it.
template <typename Vector> PYUNIVERSAL_INLINE void touch(Vector& vector) {
#if defined(__AVX512F__)
    asm volatile("" : "+v"(vector));
#elif defined(__x86_64__)
    asm volatile("" : "+x"(vector));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(vector));
#else
    asm volatile("" : "+m"(vector));
#endif
}

}  // namespace

// A multiplication and an addition are two operations. The instructions are those of product.cpp.
void peak_int8(const PeakWork& work, int64_t thread, int64_t) {
    Ints sums[kChains] = {}, a = {}, b = {};
    touch(a);
    touch(b);
    for (int64_t round = 0; round < work.rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) {
#if defined(__AVX512VNNI__)
            asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(b));
#elif defined(__AVX512BW__)
            Ints pairs;
            asm volatile("vpmaddwd %2, %1, %0" : "=v"(pairs) : "v"(a), "v"(b));
            sums[i] += pairs;
#elif defined(__AVX2__)
            Ints pairs;
            asm volatile("vpmaddwd %2, %1, %0" : "=x"(pairs) : "x"(a), "x"(b));
            sums[i] += pairs;
#elif defined(__SSE2__)
            Ints pairs = a;
            asm volatile("pmaddwd %1, %0" : "+x"(pairs) : "x"(b));
            sums[i] += pairs;
#else
            touch(a);
            sums[i] += a * b;
#endif
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) touch(sums[i]);
#if defined(__AVX512VNNI__)
    const int64_t products = kBytes;
#elif defined(__SSE2__)
    const int64_t products = kBytes / 2;
#else
    const int64_t products = kBytes / 4;
#endif
    work.operations[thread] += 2.0 * static_cast<double>(work.rounds * kChains * products);
}

void peak_float32(const PeakWork& work, int64_t thread, int64_t) {
    Floats sums[kChains] = {}, a = {}, b = {};
    touch(a);
    touch(b);
    for (int64_t round = 0; round < work.rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) {
#if defined(__AVX512F__)
            asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(b));
#elif defined(__FMA__)
            asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sums[i]) : "x"(a), "x"(b));
#else
            touch(a);
            sums[i] += a * b;
#endif
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) touch(sums[i]);
    work.operations[thread] += 2.0 * static_cast<double>(work.rounds * kChains * kFloats);
}

void read_memory(const ReadWork& work, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
        const char* from = work.data + block * kReadBlock;
        Longs sums[4] = {};
        for (int64_t at = 0; at < kReadBlock; at += 4 * kBytes) {
            for (int i = 0; i < 4; ++i) sums[i] += load<Longs>(from + at + i * kBytes);
        }
        const Longs sum = sums[0] + sums[1] + sums[2] + sums[3];
        work.sums[block] = static_cast<uint64_t>(sum[0]);
    }
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include <chrono>

#include "../tensor.h"
#include "threads.h"

namespace pyuniversal::cpu {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

// Operations a second of all threads together, over at least `seconds`. kind: "int8" (added in int32) or "float32".
double peak(const std::string& kind, int threads, double seconds) {
    check_threads(threads, "peak");
    if (kind != "int8" && kind != "float32") throw std::invalid_argument("peak: kind must be int8 or float32, got " + kind);
    auto kernel = kind == "int8" ? PYUNIVERSAL_PICK(peak_int8) : PYUNIVERSAL_PICK(peak_float32);
    std::vector<double> operations(threads);
    const PeakWork work{100000, operations.data()};
    const double start = now();
    on_threads(threads, [&](int thread) {
        while (now() - start < seconds) kernel(work, thread, thread + 1);
    });
    double total = 0;
    for (double one : operations) total += one;
    return total / (now() - start);
}

// Bytes a second at which all threads together read `x`, once.
double read_bandwidth(const Tensor& x, int threads) {
    check(x, "read_bandwidth: x", "cpu", {"float32"}, {"elements"}, Layout::contiguous);
    check_threads(threads, "read_bandwidth");
    const int64_t blocks = x.size(0) * 4 / kReadBlock;
    if (blocks == 0) throw std::invalid_argument("read_bandwidth: x must hold at least " + std::to_string(kReadBlock) + " bytes");
    std::vector<uint64_t> sums(blocks);
    const ReadWork work{x.data<const char>(), sums.data()};
    auto kernel = PYUNIVERSAL_PICK(read_memory);
    const double start = now();
    split(blocks, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
    return static_cast<double>(blocks * kReadBlock) / (now() - start);
}

}  // namespace pyuniversal::cpu
#endif
