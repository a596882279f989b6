// What the instructions know of the threads that run: warps, which reach some instructions together, and what was asked of them before.
#pragma once

#include <array>

#include "machine.h"

namespace emulated {

struct Wgmma {
    std::array<int32_t*, kWarp> sums;  // of each lane
    uint64_t a, b;
    bool accumulate, committed = false;
    int group = 0;
    std::vector<uint8_t> early;  // the operands, where they were read at once
};

// What the instructions know of a warp.
struct Warp {
    const char* together = nullptr;  // the instruction of all lanes that some have reached
    int arrived = 0, registers = 0, groups = 0;
    size_t issued = 0;
    bool fenced = false;
    Waiters waiters;
    std::vector<Wgmma> in_flight;
    Wgmma next;
};

struct Launch {
    Machine* machine;
    std::vector<Warp> warps;
    std::vector<std::vector<std::array<uint64_t, 3>>> issued;  // by warpgroup: all wgmma, as its first warp had them
    int threads, cluster_arrived = 0;                          // threads: of a block
    std::vector<int> cluster_arrivals;                         // of each thread
    int cluster_phase = 0;
    Waiters cluster_waiters;
    std::vector<std::pair<const float*, const float*>> readable, addable;  // [begin, end)
};

inline Launch launch;

inline int self() { return launch.machine->scheduler.current().index; }
inline int my_block() { return self() / launch.threads; }
inline Warp& my_warp() { return launch.warps[self() / kWarp]; }
inline std::vector<Wgmma>& in_flight() { return my_warp().in_flight; }

// The instructions with .sync: no lane goes on before all are there. The last does the work for all.
template <typename Work> void together(const char* instruction, Work&& work) {
    Warp& warp = my_warp();
    require(warp.together == nullptr || warp.together == instruction, std::string("lanes of a warp meet at different instructions: ") + instruction);
    warp.together = instruction;
    if (++warp.arrived < kWarp) return launch.machine->scheduler.wait(warp.waiters, instruction);
    warp.arrived = 0;
    warp.together = nullptr;
    work(warp);
    launch.machine->scheduler.wake(warp.waiters);
    launch.machine->scheduler.yield();
}

inline bool within(const std::vector<std::pair<const float*, const float*>>& ranges, const float* place, int floats) {
    for (const auto& [begin, end] : ranges) {
        if (place >= begin && place + floats <= end) return true;
    }
    return false;
}

}  // namespace emulated
