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

// Rounds of two stages, each of which begins when the one before is done: work(round, first, begin, end) on pieces of [0, count of that stage), each as soon as
// a thread is free. A thread waits only for pieces that others are at, so one that could not be had is not missed.
template <typename Work> void share_in_turns(int64_t rounds, int64_t first_count, int64_t second_count, int threads, const Work& work) {
    constexpr int64_t kPieces = 8;  // a thread and stage: those that end early wait for an eighth at most
    const int64_t first = std::min(first_count, kPieces * threads), second = std::min(second_count, kPieces * threads), both = first + second;
    std::atomic<int64_t> next{0}, done{0};
    on_threads(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, std::max(first, second)))), [&](int64_t) {
        for (int64_t ticket = next++; ticket < rounds * both; ticket = next++) {
            const int64_t round = ticket / both, place = ticket % both;
            const bool in_first = place < first;
            const int64_t piece = in_first ? place : place - first, pieces = in_first ? first : second, count = in_first ? first_count : second_count;
            while (done.load(std::memory_order_acquire) < ticket - piece) std::this_thread::yield();
            work(round, in_first, count * piece / pieces, count * (piece + 1) / pieces);
            done.fetch_add(1, std::memory_order_release);
        }
    });
}

}  // namespace pyuniversal::cpu
