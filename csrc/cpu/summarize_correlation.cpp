// What is kept of the correlations r = (total - tokens shift_x shift_y) / (scale_x scale_y) of a block, for its rows and for its columns, in one read of the
// total.
//
// The block is cut into groups of rows and stripes of columns. A thread takes a group through all stripes: what is known of its rows stays with the thread,
// what is known of the columns of a stripe is shared under a lock, and each group begins at another stripe, so that threads seldom meet. Counts and best values
// do not depend on the order; power sums of columns are kept for each group and added at the end.
//
// At 36,864 x 36,864 with k = 50 the columns take 170 MB (lists 100, power sums 57, counters 17) and each thread 2.6 MB, beside a total of 5.4 GB.
#include "correlation_tile.h"
#include "isa.h"

namespace pyuniversal::cpu {

// Results for all rows or all columns of the block.
struct Summary {
    int64_t lines;
    double* best;         // [WAYS, lines, k]
    int64_t* best_index;  // [WAYS, lines, k]
    int64_t* histogram;   // [lines, kBins]
    double* moments;      // [mean var skew kurt, lines]
};

struct CorrelationFinishWork {
    Lines lines;
    int64_t count_line, count_bin;                 // strides of lines.counts
    int64_t sum_line, sum_power, sum_part, parts;  // strides of lines.sums, which are to be added over the parts
    Summary out;
};

PYUNIVERSAL_KERNEL(correlation_tile, CorrelationTileWork)
PYUNIVERSAL_KERNEL(correlation_finish, CorrelationFinishWork)

namespace PYUNIVERSAL_ISA {
namespace {

void finish_moments(const Summary& out, int64_t line, double pilot, double n, const double* sums) {
    const double m = sums[0] / n, m2 = m * m, second = sums[1] / n, third = sums[2] / n, fourth = sums[3] / n;
    const double var = second - m2;
    out.moments[line] = pilot + m;
    out.moments[out.lines + line] = var;
    out.moments[2 * out.lines + line] = (third - 3 * m * second + 2 * m2 * m) / (var * __builtin_sqrt(var));
    out.moments[3 * out.lines + line] = (fourth - 4 * m * third + 6 * m2 * second - 3 * m2 * m2) / (var * var);
}

}  // namespace

// Rows [begin, end) of the tile.
void correlation_tile(const CorrelationTileWork& work, int64_t begin, int64_t end) {
    if (work.doubles) return run_tile<double>(work, begin, end);
    run_tile<float>(work, begin, end);
}

// Results of lines [begin, end).
void correlation_finish(const CorrelationFinishWork& work, int64_t begin, int64_t end) {
    constexpr int64_t kBlock = 16;  // what is known of 16 columns lies side by side
    const Lines& lines = work.lines;
    const Summary& out = work.out;
    for (int64_t block = begin; block < end; block += kBlock) {
        const int64_t size = end - block < kBlock ? end - block : kBlock;
        int64_t numbers[kBlock] = {};
        for (int64_t bin = 0; bin < kBins; ++bin) {
            for (int64_t i = 0; i < size; ++i) {
                const uint32_t count = lines.counts[(block + i) * work.count_line + bin * work.count_bin];
                out.histogram[(lines.first + block + i) * kBins + bin] = count;
                numbers[i] += count;
            }
        }
        double sums[kBlock][kPowers] = {};
        for (int64_t part = 0; part < work.parts; ++part) {
            for (int64_t power = 0; power < kPowers; ++power) {
                const double* from = lines.sums + block * work.sum_line + power * work.sum_power + part * work.sum_part;
                for (int64_t i = 0; i < size; ++i) sums[i][power] += from[i * work.sum_line];
            }
        }
        for (int64_t i = 0; i < size; ++i) {
            const int64_t line = lines.first + block + i;
            finish_moments(out, line, lines.pilot[block + i], static_cast<double>(numbers[i]), sums[i]);
            for (int way = 0; way < WAYS; ++way) {
                const Best& best = lines.best[way];
                const int64_t at = (way * out.lines + line) * best.k;
                take(best, block + i, way == TOP ? 1 : -1, out.best + at, out.best_index + at);
            }
        }
    }
}

}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include <cmath>
#include <mutex>

#include "../tensor.h"
#include "threads.h"

namespace pyuniversal::cpu {
namespace {

constexpr const char* kOp = "summarize_correlation: ";

// Scale, shift and pilot of one side, with neurons that have no r after the last.
class Side {
  public:
    Side(const Tensor& given, const std::string& name, int64_t lines, const char* of_total, int64_t padded) : size_(padded), values_(3 * padded, 0.0) {
        check(given, kOp + name, "cpu", {"float64"}, {"3", "neurons"}, Layout::contiguous);
        check_equal(given.size(0), kOp + ("the first dimension of " + name), 3, "scale, shift and pilot");
        check_equal(given.size(1), kOp + ("the neurons of " + name), lines, of_total);
        for (int64_t field = 0; field < 3; ++field) std::copy_n(given.data<const double>() + field * lines, lines, values_.begin() + field * padded);
        std::fill(values_.begin() + lines, values_.begin() + padded, std::numeric_limits<double>::quiet_NaN());
    }

    const double* field(int64_t field, int64_t line) const { return values_.data() + field * size_ + line; }

  private:
    int64_t size_;
    std::vector<double> values_;
};

// What is known of some lines.
class Known {
  public:
    Known(int64_t lines, int64_t k, int64_t sums) : lists_{{lines, k}, {lines, k}}, counts_(lines * kCounters), sums_(new double[sums]), size_(sums) {}

    void clear() {
        for (Lists& lists : lists_) lists.clear();
        std::fill(counts_.begin(), counts_.end(), 0);
        std::fill_n(sums_.get(), size_, 0.0);
    }

    // From a line on, which is line `first` of the block.
    Lines from(int64_t line, const Side& side, int64_t first, int64_t sum) {
        return {first,
                side.field(0, first),
                side.field(1, first),
                side.field(2, first),
                {lists_[TOP].from(line), lists_[BOTTOM].from(line)},
                counts_.data() + line * kCounters,
                sums_.get() + sum};
    }

  private:
    Lists lists_[WAYS];
    std::vector<uint32_t> counts_;
    std::unique_ptr<double[]> sums_;  // of columns: cleared when a tile begins
    int64_t size_;
};

Summary summary(const std::string& side, int64_t lines, int64_t partners, const char* of_total, const Tensor& best, const Tensor& index,
                const Tensor& histogram, const Tensor& moments) {
    const std::string prefix = kOp + side;
    check(best, prefix + "_best", "cpu", {"float64"}, {"2", "neurons", "k"}, Layout::contiguous);
    check(index, prefix + "_index", "cpu", {"int64"}, {"2", "neurons", "k"}, Layout::contiguous);
    check(histogram, prefix + "_histogram", "cpu", {"int64"}, {"neurons", "99"}, Layout::contiguous);
    check(moments, prefix + "_moments", "cpu", {"float64"}, {"4", "neurons"}, Layout::contiguous);
    auto equal = [&](const Tensor& tensor, int dimension, const char* name, int64_t expected, const std::string& of_what) {
        check_equal(tensor.size(dimension), prefix + name + ": dimension " + std::to_string(dimension), expected, of_what);
    };
    equal(best, 0, "_best", WAYS, "top and bottom");
    equal(best, 1, "_best", lines, of_total);
    equal(index, 0, "_index", WAYS, "top and bottom");
    equal(index, 1, "_index", lines, of_total);
    equal(index, 2, "_index", best.size(2), "that of " + side + "_best");
    equal(histogram, 0, "_histogram", lines, of_total);
    equal(histogram, 1, "_histogram", kBins, "the number of bins");
    equal(moments, 0, "_moments", 4, "mean, var, skew, kurt");
    equal(moments, 1, "_moments", lines, of_total);
    if (lines && partners && !best.size(2)) throw std::invalid_argument(prefix + "_best must have room for at least one r, got the shape " + words(best.shape));
    return {lines, best.data<double>(), index.data<int64_t>(), histogram.data<int64_t>(), moments.data<double>()};
}

void check_edges(const Tensor& edges) {
    check(edges, std::string(kOp) + "edges", "cpu", {"float64"}, {"100"}, Layout::contiguous);
    check_equal(edges.size(0), std::string(kOp) + "the number of edges", kBins + 1, "bins + 1");
    for (int64_t i = 0; i <= kBins; ++i) {
        const double edge = edges.data<const double>()[i];
        if (std::abs(edge - (2.0 * i / kBins - 1)) < 1e-9) continue;  // false for NaN
        throw std::invalid_argument(std::string(kOp) + "edges must be spaced evenly from -1 to 1, got " + std::to_string(edge) + " at " + std::to_string(i));
    }
}

}  // namespace

// total [n, m] float32 or float64; x [scale shift pilot, n] and y [scale shift pilot, m] float64, a scale of NaN for a neuron that has no r; edges [100]
// float64.
void summarize_correlation(const Tensor& total, int64_t tokens, const Tensor& x, const Tensor& y, const Tensor& edges, const Tensor& x_best,
                           const Tensor& x_index, const Tensor& x_histogram, const Tensor& x_moments, const Tensor& y_best, const Tensor& y_index,
                           const Tensor& y_histogram, const Tensor& y_moments, int threads) {
    check(total, std::string(kOp) + "total", "cpu", {"float32", "float64"}, {"neurons of x", "neurons of y"}, Layout::unit_columns);
    const int64_t n = total.size(0), m = total.size(1), stride = total.stride(0);
    if (std::max(n, m) > std::numeric_limits<int32_t>::max())
        throw std::invalid_argument(std::string(kOp) + "total is too large, got the shape " + words(total.shape));
    const int64_t group_rows = kGroup * std::max<int64_t>(1, (n + kGroup * kGroups - 1) / (kGroup * kGroups));
    const int64_t groups = (n + group_rows - 1) / group_rows, stripes = (m + kStripe - 1) / kStripe;
    const int64_t rows = std::min(group_rows, (n + kRows - 1) / kRows * kRows);
    const Side x_side(x, "x", n, "the rows of total", groups * group_rows), y_side(y, "y", m, "the columns of total", stripes * kStripe);
    const Summary x_out = summary("x", n, m, "the rows of total", x_best, x_index, x_histogram, x_moments);
    const Summary y_out = summary("y", m, n, "the columns of total", y_best, y_index, y_histogram, y_moments);
    check_edges(edges);
    check_threads(threads, "summarize_correlation");

    Known of_columns(stripes * kStripe, y_best.size(2), groups * stripes * kPowers * kStripe);
    std::vector<Known> of_rows;
    for (int64_t worker = 0; worker < std::min<int64_t>(threads, groups); ++worker) of_rows.emplace_back(rows, x_best.size(2), rows * kPowers * kParts);
    std::vector<std::mutex> locks(stripes);
    std::atomic<int64_t> next{0};
    auto run = PYUNIVERSAL_PICK(correlation_tile);
    auto finish = PYUNIVERSAL_PICK(correlation_finish);
    auto columns_of = [&](int64_t stripe, int64_t group) {
        return of_columns.from(stripe * kStripe, y_side, stripe * kStripe, (group * stripes + stripe) * kPowers * kStripe);
    };
    auto run_group = [&](Known& known, int64_t group) {
        known.clear();
        const int64_t first = group * group_rows, count = std::min(group_rows, n - first);
        const bool doubles = total.dtype == "float64";
        const Lines lines = known.from(0, x_side, first, 0);
        for (int64_t step = 0; step < stripes; ++step) {
            const int64_t stripe = (group * (5 * stripes / 8 + 1) + step) % stripes, at = first * stride + stripe * kStripe;
            const std::lock_guard<std::mutex> lock(locks[stripe]);
            const void* from = doubles ? static_cast<const void*>(total.data<const double>() + at) : total.data<const float>() + at;
            run({from, doubles, stride, std::min(kStripe, m - stripe * kStripe), static_cast<double>(tokens), edges.data<const double>(), lines,
                 columns_of(stripe, group)},
                0, count);
        }
        finish({lines, kCounters, 1, kPowers * kParts, kParts, 1, kParts, x_out}, 0, count);
    };
    on_threads(std::max(1, static_cast<int>(of_rows.size())), [&](int64_t worker) {
        for (int64_t group = next++; group < groups; group = next++) run_group(of_rows[worker], group);
    });
    share(stripes, threads, [&](int64_t stripe, int64_t) {
        finish({columns_of(stripe, 0), 1, kStripe, 1, kStripe, stripes * kPowers * kStripe, groups, y_out}, 0, std::min(kStripe, m - stripe * kStripe));
    });
}

}  // namespace pyuniversal::cpu
#endif
