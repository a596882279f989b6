// Activations summed by the token's id. Tokens are visited grouped by id, so that each row of the sums is read and written once, and rounded once if it is
// float: what is added to it is a sum in double.
#include "isa.h"
#include "tile.h"

namespace pyuniversal::cpu {

struct TokenSumsWork {
    Activations x;
    // Group g is the tokens order[starts[g]] to order[starts[g + 1] - 1], in their order; all have the id ids[g].
    const int64_t *order, *starts, *ids;
    int64_t groups;
    void* sums;  // double or float [d_vocab, neurons]
    bool wide;   // double
    int64_t stride;
};

constexpr int64_t kTokenSumsWidth = 64;

PYUNIVERSAL_KERNEL(token_sums, TokenSumsWork)

namespace PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kWidth = kTokenSumsWidth;
constexpr int64_t kSlab = 16 * kWidth;  // neurons whose sums are in L1 while the tokens of a group pass: 8 KB, and 4 KB of x at a stretch
constexpr int64_t kLine = 64;           // bytes

template <typename T> PYUNIVERSAL_INLINE void prefetch(const T* from) {
    for (int64_t i = 0; i < kWidth; i += kLine / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
}

template <typename T> PYUNIVERSAL_INLINE void add(double* sum, const T* x, int64_t width, bool first) {
    if (first) {
        for (int64_t i = 0; i < width; ++i) sum[i] = static_cast<double>(to_float(x[i]));
    } else {
        for (int64_t i = 0; i < width; ++i) sum[i] += static_cast<double>(to_float(x[i]));
    }
}

template <typename Sum> PYUNIVERSAL_INLINE void finish(Sum* to, const double* sum, int64_t width) {
    for (int64_t i = 0; i < width; ++i) to[i] = static_cast<Sum>(static_cast<double>(to[i]) + sum[i]);
}

// The rows of a group lie anywhere, so the hardware cannot guess the next: while one is added, the same columns of the next are fetched, and of the next
// row of sums. Without: 1.9 instead of 3.4 Gelem/s (float32, AVX-512, one core).
template <typename T, typename Sum> void sum_groups(const TokenSumsWork& work, int64_t begin, int64_t end) {
    alignas(64) double sums[kSlab];
    const T* x = static_cast<const T*>(work.x.data);
    Sum* total = static_cast<Sum*>(work.sums);
    const int64_t last_token = work.starts[work.groups] - 1;
    for (int64_t group = 0; group < work.groups; ++group) {
        Sum* row = total + work.ids[group] * work.stride;
        const Sum* next_row = total + work.ids[group + 1 < work.groups ? group + 1 : group] * work.stride;
        const int64_t first = work.starts[group], last = work.starts[group + 1] - 1;
        for (int64_t slab = begin; slab < end; slab += kSlab) {
            const int64_t slab_end = end - slab < kSlab ? end : slab + kSlab;
            for (int64_t token = first; token <= last; ++token) {
                const T* from = x + work.order[token] * work.x.stride;
                const T* next = x + work.order[token < last_token ? token + 1 : token] * work.x.stride;
                for (int64_t neuron = slab; neuron < slab_end; neuron += kWidth) {
                    const int64_t width = slab_end - neuron < kWidth ? slab_end - neuron : kWidth;
                    double* sum = sums + (neuron - slab);
                    prefetch(next + neuron);
                    if (token == first) prefetch(next_row + neuron);
                    if (width == kWidth) {
                        add(sum, from + neuron, kWidth, token == first);
                        if (token == last) finish(row + neuron, sum, kWidth);
                    } else {
                        add(sum, from + neuron, width, token == first);
                        if (token == last) finish(row + neuron, sum, width);
                    }
                }
            }
        }
    }
}

template <typename T> void sum_groups_of(const TokenSumsWork& work, int64_t begin, int64_t end) {
    if (work.wide) return sum_groups<T, double>(work, begin, end);
    sum_groups<T, float>(work, begin, end);
}

}  // namespace

void token_sums(const TokenSumsWork& work, int64_t first_block, int64_t last_block) {
    const int64_t begin = first_block * kWidth, end = last_block * kWidth < work.x.neurons ? last_block * kWidth : work.x.neurons;
    if (work.x.type == Float::float32) return sum_groups_of<float>(work, begin, end);
    if (work.x.type == Float::float16) return sum_groups_of<Half>(work, begin, end);
    sum_groups_of<BFloat16>(work, begin, end);
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "threads.h"

namespace pyuniversal::cpu {
namespace {

void check_arguments(const Tensor& sums, const Tensor& counts, const Tensor& x, const Tensor& ids, int threads) {
    check(sums, "token_sums_: sums", "cpu", {"float64", "float32"}, {"d_vocab", "neurons"}, Layout::unit_columns);
    check(counts, "token_sums_: counts", "cpu", {"int64"}, {"d_vocab"}, Layout::contiguous);
    check(ids, "token_sums_: ids", "cpu", {"int64", "int32"}, {"tokens"}, Layout::contiguous);
    check_equal(counts.size(0), "token_sums_: the length of counts", sums.size(0), "the rows of sums");
    check_equal(x.size(1), "token_sums_: the columns of x", sums.size(1), "the neurons of sums");
    check_equal(ids.size(0), "token_sums_: the length of ids", x.size(0), "the tokens of x");
    check_threads(threads, "token_sums_");
}

struct Groups {
    std::vector<int64_t> order, starts, ids;
};

// Stable: the tokens of a group keep their order. Counting takes as many steps as there are tokens and words.
template <typename Id> Groups group(const Id* ids, int64_t tokens, int64_t words) {
    std::vector<int64_t> place(words, 0);  // how many tokens have this id; then, where the next of them goes
    for (int64_t token = 0; token < tokens; ++token) {
        if (ids[token] >= 0 && ids[token] < words) {
            ++place[ids[token]];
            continue;
        }
        throw std::invalid_argument("token_sums_: ids must be within [0, " + std::to_string(words) + "), got " + std::to_string(ids[token]) + " at token " +
                                    std::to_string(token));
    }
    Groups groups;
    int64_t sum = 0;
    for (int64_t id = 0; id < words; ++id) {
        const int64_t many = place[id];
        if (many == 0) continue;
        groups.ids.push_back(id);
        groups.starts.push_back(sum);
        place[id] = sum;
        sum += many;
    }
    groups.starts.push_back(sum);
    groups.order.resize(tokens);
    for (int64_t token = 0; token < tokens; ++token) groups.order[place[ids[token]]++] = token;
    return groups;
}

}  // namespace

// sums float64 or float32 [d_vocab, neurons], counts int64 [d_vocab], x [tokens, neurons], ids int64 or int32 [tokens].
void token_sums_(const Tensor& sums, const Tensor& counts, const Tensor& x, const Tensor& ids, int threads) {
    const Activations view = activations(x, "token_sums_: x");
    check_arguments(sums, counts, x, ids, threads);
    const int64_t tokens = ids.size(0), words = sums.size(0);
    const Groups groups = ids.dtype == "int64" ? group(ids.data<const int64_t>(), tokens, words) : group(ids.data<const int32_t>(), tokens, words);
    const int64_t many = static_cast<int64_t>(groups.ids.size());
    for (int64_t g = 0; g < many; ++g) counts.data<int64_t>()[groups.ids[g]] += groups.starts[g + 1] - groups.starts[g];
    const TokenSumsWork work{view, groups.order.data(), groups.starts.data(), groups.ids.data(), many, sums.memory, sums.dtype == "float64", sums.stride(0)};
    auto kernel = PYUNIVERSAL_PICK(token_sums);
    split((view.neurons + kTokenSumsWidth - 1) / kTokenSumsWidth, threads, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace pyuniversal::cpu
#endif
