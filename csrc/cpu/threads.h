// Work split over threads without a library: results never depend on how many there are, because nothing is summed across pieces.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace pyuniversal::cpu {

// Call work(thread) on each of `threads` threads. `work` must not throw. Where a thread cannot be had, the caller does its work after its own.
template <typename Work> void on_threads(int threads, const Work& work) {
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    int started = 1;
    try {
        for (; started < threads; ++started) others.emplace_back([&work, started] { work(started); });
    } catch (...) {  // no thread to be had: slower, the same result
    }
    work(0);
    for (int thread = started; thread < threads; ++thread) work(thread);
    for (std::thread& other : others) other.join();
}

// Call work(begin, end) on contiguous pieces of [0, count), one a thread: for even work on neighbouring memory.
template <typename Work> void split(int64_t count, int threads, const Work& work) {
    const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(threads, count));
    on_threads(static_cast<int>(pieces), [&](int64_t piece) { work(count * piece / pieces, count * (piece + 1) / pieces); });
}

// Call work(begin, end) on single pieces of [0, count), each as soon as a thread is free: for large or uneven pieces.
template <typename Work> void share(int64_t count, int threads, const Work& work) {
    std::atomic<int64_t> next{0};
    on_threads(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count))), [&](int) {
        for (int64_t piece = next++; piece < count; piece = next++) work(piece, piece + 1);
    });
}

}  // namespace pyuniversal::cpu
