// Work split over threads without a library: results never depend on how many there are, because nothing is summed across pieces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace pyuniversal::cpu {

// Call work(begin, end) on contiguous pieces of [0, count), one a thread. `work` must not throw.
template <typename Work> void split(int64_t count, int threads, const Work& work) {
    const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(threads, count));
    std::vector<std::thread> others;
    others.reserve(pieces - 1);
    for (int64_t piece = 1; piece < pieces; ++piece) {
        const int64_t begin = count * piece / pieces, end = count * (piece + 1) / pieces;
        try {
            others.emplace_back([&work, begin, end] { work(begin, end); });
        } catch (const std::system_error&) {
            work(begin, end);  // no thread to be had: slower, the same result
        }
    }
    work(int64_t{0}, count / pieces);
    for (std::thread& other : others) other.join();
}

}  // namespace pyuniversal::cpu
