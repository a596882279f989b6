// Rows of logits in one read: sums of e^(x - m) and (m - x) e^(x - m) about the largest logit m so far, rescaled when a block of columns holds a larger one,
// and how many logits are greater than that of the true token.
#include "activation.h"
#include "isa.h"
#include "tile.h"

namespace pyuniversal::cpu {

struct LogitStatsWork {
    Activations logits;      // [tokens, d_vocab]
    const int64_t* next_id;  // [tokens], or -1
    double* sums;            // [4, tokens]: m (NaN where a logit is NaN or +Inf), the true logit, sum of e^(x - m) without m itself, sum of (m - x) e^(x - m)
    int64_t* greater;        // [tokens]
};

PYUNIVERSAL_KERNEL(logit_stats, LogitStatsWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kBlock = 2048;            // logits in L1 at a time, 8 KB: read twice, for their maximum and their terms
constexpr int64_t kTogether = 8 * kFloats;  // whose terms are added in float
constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -87;  // what e^x is computed for; lower terms are zero

// Beside the terms about `largest`, the logits that equal it are counted: 1 + 1e-20 would lose its digits in any sum.
struct Row {
    float largest;
    int64_t equal, greater;
    double others, spread;
};

// Copy `width` logits as float and fill up with -Inf. The largest of them; NaN if one is NaN or +Inf.
template <typename T> float fill(float* block, const T* x, int64_t width, int64_t padded) {
    Floats largest = all(-kInfinity);
    Ints legal = Ints{} - 1;
    int64_t i = 0;
    for (; i + kFloats <= width; i += kFloats) {
        const Floats values = load_floats(x + i);
        largest = larger(values, largest);
        legal &= values < kInfinity;
        store(block + i, values);
    }
    const int64_t rest = i;
    for (; i < width; ++i) block[i] = to_float(x[i]);
    for (; i < padded; ++i) block[i] = -kInfinity;
    for (i = rest; i < padded; i += kFloats) {
        const Floats values = load<Floats>(block + i);
        largest = larger(values, largest);
        legal &= values < kInfinity;
    }
    float most = largest[0];
    bool fine = true;
    for (int64_t lane = 0; lane < kFloats; ++lane) {
        most = largest[lane] > most ? largest[lane] : most;
        fine = fine && legal[lane] != 0;
    }
    return fine ? most : __builtin_nanf("");
}

// From now on about `largest`.
void raise(Row& row, float largest) {
    const float below = row.largest - largest;
    row.largest = largest;
    if (row.equal == 0) return;  // nothing so far
    const double factor = below > kLowest ? static_cast<double>(exponential(all(below))[0]) : 0, terms = row.others + static_cast<double>(row.equal);
    row.spread = factor == 0 ? 0 : factor * (row.spread - static_cast<double>(below) * terms);
    row.others = factor * terms;
    row.equal = 0;
}

PYUNIVERSAL_INLINE double sum(Doubles x) {
    double total = 0;
    for (int64_t lane = 0; lane < kDoubles; ++lane) total += x[lane];
    return total;
}

PYUNIVERSAL_INLINE int64_t sum(Ints x) {
    int64_t total = 0;
    for (int64_t lane = 0; lane < kFloats; ++lane) total += x[lane];
    return total;
}

// A block whose largest is not above that of the row, which is finite.
PYUNIVERSAL_INLINE void add(Row& row, const float* block, int64_t padded, float target) {
    Ints equal = {}, greater = {};
    Doubles others = {}, spread = {};
    for (int64_t begin = 0; begin < padded; begin += kTogether) {
        Floats terms = {}, products = {};
#pragma GCC unroll 8
        for (int64_t i = 0; i < kTogether; i += kFloats) {
            const Floats x = load<Floats>(block + begin + i), below = x - row.largest, low = larger(below, all(kLowest));
            const Floats e = (below > kLowest) & (below < 0) ? exponential(low) : Floats{};
            terms += e;
            products += low * e;
            equal -= below == 0;
            greater -= x > target;
        }
        others += half_of(terms, 0) + half_of(terms, 1);
        spread -= half_of(products, 0) + half_of(products, 1);
    }
    row.others += sum(others);
    row.spread += sum(spread);
    row.equal += sum(equal);
    row.greater += sum(greater);
}

template <typename T> void all_rows(const LogitStatsWork& work, int64_t begin, int64_t end) {
    alignas(64) float block[kBlock];
    const int64_t tokens = work.logits.tokens, words = work.logits.neurons;
    for (int64_t token = begin; token < end; ++token) {
        const T* x = static_cast<const T*>(work.logits.data) + token * work.logits.stride;
        const float target = work.next_id[token] < 0 ? kInfinity : to_float(x[work.next_id[token]]);
        Row row{-kInfinity, 0, 0, 0, 0};
        for (int64_t first = 0; first < words; first += kBlock) {
            const int64_t width = words - first < kBlock ? words - first : kBlock, padded = (width + kTogether - 1) / kTogether * kTogether;
            const float largest = fill(block, x + first, width, padded);
            if (!(largest < kInfinity)) {
                row.largest = largest;
                break;
            }
            if (largest > row.largest) raise(row, largest);
            if (row.largest > -kInfinity) add(row, block, padded, target);
        }
        work.sums[token] = row.largest;
        work.sums[tokens + token] = target;
        work.sums[2 * tokens + token] = row.others + static_cast<double>(row.equal - 1);
        work.sums[3 * tokens + token] = row.spread;
        work.greater[token] = row.greater;
    }
}

}  // namespace

void logit_stats(const LogitStatsWork& work, int64_t begin, int64_t end) {
    if (work.logits.type == Float::float32) return all_rows<float>(work, begin, end);
    if (work.logits.type == Float::float16) return all_rows<Half>(work, begin, end);
    all_rows<BFloat16>(work, begin, end);
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "threads.h"

namespace pyuniversal::cpu {

// sums float64 [4, tokens], greater int64 [tokens], logits [tokens, d_vocab], next_id int64 [tokens].
void logit_stats(const Tensor& sums, const Tensor& greater, const Tensor& logits, const Tensor& next_id, int threads) {
    const Activations view = activations(logits, "logit_stats: logits");
    check(sums, "logit_stats: sums", "cpu", {"float64"}, {"sums", "tokens"}, Layout::contiguous);
    check(greater, "logit_stats: greater", "cpu", {"int64"}, {"tokens"}, Layout::contiguous);
    check(next_id, "logit_stats: next_id", "cpu", {"int64"}, {"tokens"}, Layout::contiguous);
    check_equal(sums.size(0), "logit_stats: the rows of sums", 4, "the number of sums");
    check_equal(sums.size(1), "logit_stats: the columns of sums", view.tokens, "the tokens of logits");
    check_equal(greater.size(0), "logit_stats: the length of greater", view.tokens, "the tokens of logits");
    check_equal(next_id.size(0), "logit_stats: the length of next_id", view.tokens, "the tokens of logits");
    check_threads(threads, "logit_stats");
    const int64_t* ids = next_id.data<const int64_t>();
    for (int64_t token = 0; token < view.tokens; ++token) {
        if (ids[token] >= -1 && ids[token] < view.neurons) continue;
        throw std::invalid_argument("logit_stats: next_id must be within [0, " + std::to_string(view.neurons) + ") or -1, got " + std::to_string(ids[token]) +
                                    " at " + std::to_string(token));
    }
    const LogitStatsWork work{view, ids, sums.data<double>(), greater.data<int64_t>()};
    auto kernel = PYUNIVERSAL_PICK(logit_stats);
    split(view.tokens, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
