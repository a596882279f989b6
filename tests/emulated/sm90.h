// The functions of csrc/cuda/sm90.h for a CPU, each as the PTX specification describes its instruction. Every thread of a cluster is a fiber. What the hardware
// may do at any time happens at random times; whatever a program must not rely on is an error.
#ifndef PYUNIVERSAL_SM90_H
#define PYUNIVERSAL_SM90_H

#include <array>
#include <cmath>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads, blocks)

struct Index {
    unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

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

// The bytes that a descriptor of sm_90 shows: `rows` rows of 32, one after the other. K-major, 128-byte swizzle; no other is known here.
class Operand {
  public:
    explicit Operand(uint64_t descriptor) : start_((descriptor & 0x3fff) << 4), eight_rows_((descriptor >> 32 & 0x3fff) << 4) {
        require(descriptor >> 62 == 1, "a descriptor of another swizzle than that of 128 bytes");
        require((descriptor >> 49 & 7) == 0 && start_ % 1024 < 128, "a descriptor whose pattern does not begin at a multiple of 1,024 bytes");
    }
    uint32_t address(int row, int byte) const { return swizzled(start_ + row / 8 * eight_rows_ + row % 8 * 128 + byte); }

    template <typename Visit> void chunks(int block, int first, int rows, Visit&& visit) const {
        for (int row = first; row < first + rows; ++row) {
            for (int byte = 0; byte < 32; byte += kChunk) {
                launch.machine->require_inside(block, address(row, byte), kChunk);
                visit(address(row, byte), launch.machine->chunk(block, address(row, byte)));
            }
        }
    }

  private:
    uint32_t start_, eight_rows_;
};

constexpr int kWarpRows = 16, kColumns = 256, kDepth = 32;

// The operands of a warp's part of a wgmma: 16 rows of a, then 256 of b.
template <typename Visit> void operand_chunks(int warp, uint64_t a, uint64_t b, Visit&& visit) {
    const int block = warp * kWarp / launch.threads;
    Operand(a).chunks(block, warp % 4 * kWarpRows, kWarpRows, visit);
    Operand(b).chunks(block, 0, kColumns, visit);
}

inline std::vector<uint8_t> read_operands(int warp, uint64_t a, uint64_t b) {
    std::vector<uint8_t> bytes;
    bytes.reserve((kWarpRows + kColumns) * kDepth);
    operand_chunks(warp, a, b, [&](uint32_t address, Chunk& chunk) {
        require(chunk.written, "a wgmma reads shared memory that nothing was written to");
        require(chunk.landing == 0, "a wgmma reads shared memory that a load is still on its way to");
        const uint8_t* const from = launch.machine->bytes(warp * kWarp / launch.threads, address);
        bytes.insert(bytes.end(), from, from + kChunk);
    });
    return bytes;
}

// Register i of lane t: row t / 4 and eight below it for every other two, columns 8 (i / 4) + 2 (t % 4) + i % 2.
inline void multiply(const Wgmma& wgmma, const std::vector<uint8_t>& bytes) {
    const auto* const a = reinterpret_cast<const int8_t*>(bytes.data());
    const int8_t* const b = a + kWarpRows * kDepth;
    for (int row = 0; row < kWarpRows; ++row) {
        for (int column = 0; column < kColumns; ++column) {
            int32_t sum = 0;
            for (int k = 0; k < kDepth; ++k) sum += a[row * kDepth + k] * b[column * kDepth + k];
            int32_t& to = wgmma.sums[row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row / 8 * 2 + column % 2];
            to = (wgmma.accumulate ? to : 0) + sum;
        }
    }
}

inline void retire(int warp, Wgmma& wgmma) {
    multiply(wgmma, wgmma.early.empty() ? read_operands(warp, wgmma.a, wgmma.b) : wgmma.early);
    operand_chunks(warp, wgmma.a, wgmma.b, [](uint32_t, Chunk& chunk) { --chunk.readers; });
}

inline bool within(const std::vector<std::pair<const float*, const float*>>& ranges, const float* place, int floats) {
    for (const auto& [begin, end] : ranges) {
        if (place >= begin && place + floats <= end) return true;
    }
    return false;
}

}  // namespace emulated

namespace pyuniversal::sm90 {

using namespace emulated;

inline uint32_t shared_memory() { return kBase; }

// ---- the cluster

inline uint32_t cluster_ctarank() { return my_block(); }

inline void barrier_cluster_arrive() {
    require(launch.cluster_arrivals[self()] == launch.cluster_phase, "barrier.cluster.arrive twice without barrier.cluster.wait");
    ++launch.cluster_arrivals[self()];
    if (++launch.cluster_arrived < static_cast<int>(launch.cluster_arrivals.size())) return;
    launch.cluster_arrived = 0;
    ++launch.cluster_phase;
    launch.machine->scheduler.wake(launch.cluster_waiters);
}

inline void barrier_cluster_wait() {
    while (launch.cluster_phase < launch.cluster_arrivals[self()]) launch.machine->scheduler.wait(launch.cluster_waiters, "barrier.cluster.wait");
}

inline uint32_t mapa(uint32_t address, uint32_t rank) {
    require(rank < launch.machine->blocks.size() && address >> kWindow == 0, "mapa of a block that the cluster does not have");
    return (rank + 1) << kWindow | address;
}

inline void bar_warp_sync() {
    together("bar.warp.sync", [](Warp&) {});
}

// ---- barriers in shared memory

inline void mbarrier_init(uint32_t barrier, uint32_t count) {
    require(barrier % 8 == 0 && count > 0, "mbarrier.init of no barrier");
    launch.machine->require_inside(my_block(), barrier, 8);
    auto& barriers = launch.machine->blocks[my_block()].barriers;
    require(barriers.count(barrier) == 0, "mbarrier.init of a barrier that is in use");
    barriers[barrier] = Barrier{static_cast<int>(count), static_cast<int>(count), self(), false, 0, 0, {}};
}

inline void fence_mbarrier_init() {
    for (auto& [address, barrier] : launch.machine->blocks[my_block()].barriers) barrier.published = barrier.published || barrier.initialiser == self();
}

inline void fence_proxy_async() {}

inline void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
    launch.machine->scheduler.yield();
    require(barrier >> kWindow == 0, "expect_tx of a barrier in another block");
    Barrier& mine = launch.machine->barrier({my_block(), barrier}, self());
    launch.machine->expect(mine, bytes);
    launch.machine->arrive(mine);
}

inline void mbarrier_arrive_cluster(uint32_t barrier) {
    launch.machine->scheduler.yield();
    launch.machine->arrive(launch.machine->barrier(launch.machine->place(my_block(), barrier), self()));
}

inline bool mbarrier_try_wait_parity(uint32_t barrier, uint32_t parity) {
    launch.machine->scheduler.yield();
    require(barrier >> kWindow == 0 && parity < 2, "try_wait of a barrier in another block, or of no parity");
    Barrier& mine = launch.machine->barrier({my_block(), barrier}, self());
    const auto over = [&] { return mine.phase % 2 != parity; };
    if (!over()) launch.machine->scheduler.wait(mine.waiters, "a barrier in shared memory");
    return over();
}

// ---- the tensor memory accelerator

inline void cp_async_bulk_tensor_2d_multicast(uint32_t to, const CUtensorMap& from, int column, int row, uint32_t barrier, uint16_t blocks) {
    launch.machine->scheduler.yield();
    require(to >> kWindow == 0 && barrier >> kWindow == 0, "a load by an address of another block");
    require(blocks != 0 && blocks >> launch.machine->blocks.size() == 0, "a load to a block that the cluster does not have");
    for (int block = 0; blocks >> block != 0; ++block) {
        if (blocks >> block & 1) launch.machine->load(launch.machine->place(block, to), from, column, row, barrier);
    }
}

inline void cp_async_bulk_tensor_2d(uint32_t to, const CUtensorMap& from, int column, int row, uint32_t barrier) {
    cp_async_bulk_tensor_2d_multicast(to, from, column, row, barrier, static_cast<uint16_t>(1 << my_block()));
}

// ---- matrix products of a warpgroup

inline void wgmma_fence() {
    together("wgmma.fence", [](Warp& warp) { warp.fenced = true; });
}

inline void wgmma_m64n256k32_s32_s8_s8(int32_t (&sums)[128], uint64_t a, uint64_t b, bool accumulate) {
    Wgmma& next = my_warp().next;
    next.sums[self() % kWarp] = sums;
    require(my_warp().arrived == 0 || (next.a == a && next.b == b && next.accumulate == accumulate), "lanes of a warp ask for different wgmma");
    next.a = a;
    next.b = b;
    next.accumulate = accumulate;
    together("wgmma.mma_async", [](Warp& warp) {
        require(warp.fenced, "wgmma.mma_async without wgmma.fence after its registers may have been touched");
        Wgmma wgmma = warp.next;
        const int index = static_cast<int>(&warp - launch.warps.data());
        auto& all = launch.issued[index / 4];
        const std::array<uint64_t, 3> words = {wgmma.a, wgmma.b, wgmma.accumulate};
        if (warp.issued == all.size()) all.push_back(words);
        require(all[warp.issued++] == words, "warps of a warpgroup ask for different wgmma");
        std::vector<uint8_t> now = read_operands(index, wgmma.a, wgmma.b);
        operand_chunks(index, wgmma.a, wgmma.b, [](uint32_t, Chunk& chunk) { ++chunk.readers; });
        if (launch.machine->scheduler.chance(0.3)) wgmma.early = std::move(now);
        warp.in_flight.push_back(std::move(wgmma));
    });
}

inline void wgmma_commit_group() {
    together("wgmma.commit_group", [](Warp& warp) {
        ++warp.groups;
        for (Wgmma& wgmma : warp.in_flight) {
            if (!wgmma.committed) wgmma.group = warp.groups;
            wgmma.committed = true;
        }
    });
}

// As late as it may: what is not waited for is not computed.
template <int kPending> void wgmma_wait_group() {
    together("wgmma.wait_group", [](Warp& warp) {
        auto& all = warp.in_flight;
        const int index = static_cast<int>(&warp - launch.warps.data());
        size_t over = 0;
        for (; over < all.size() && all[over].committed && all[over].group <= warp.groups - kPending; ++over) retire(index, all[over]);
        all.erase(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(over));
        if (all.empty()) warp.fenced = false;
    });
}

inline void touch(int32_t (&)[128]) { require(in_flight().empty(), "sums are read while a wgmma may still write them"); }

// ---- registers and global memory

inline void setmaxnreg(int registers, bool more) {
    Machine& machine = *launch.machine;
    Block& block = machine.blocks[my_block()];
    require(registers % 8 == 0 && registers >= 24 && registers <= 256, "setmaxnreg of a number that it does not take");
    const auto needed = [&] { return (registers - my_warp().registers) * kWarp; };
    while (true) {
        while (needed() > block.free_registers) machine.scheduler.wait(block.for_registers, "setmaxnreg.inc: more registers than are free");
        together("setmaxnreg", [&](Warp& warp) {
            require(more ? registers >= warp.registers : registers <= warp.registers, "setmaxnreg in the wrong direction");
            if (needed() > block.free_registers) return;
            block.free_registers -= needed();
            warp.registers = registers;
            machine.scheduler.wake(block.for_registers);
        });
        if (my_warp().registers == registers) return;
    }
}

template <int kRegisters> void setmaxnreg_dec() { setmaxnreg(kRegisters, false); }
template <int kRegisters> void setmaxnreg_inc() { setmaxnreg(kRegisters, true); }

inline float ld_global_nc(const float* place) {
    require(within(launch.readable, place, 1), "global memory outside of the arguments is read");
    return *place;
}

inline void red_add(float* place, float value) {
    require(within(launch.addable, place, 1), "something is added outside of the total");
    *place += value;
}

inline void red_add_v2(float* place, float first, float second) {
    require(reinterpret_cast<uintptr_t>(place) % 8 == 0, "red.v2 at an address that is no multiple of 8");
    red_add(place, first);
    red_add(place + 1, second);
}

}  // namespace pyuniversal::sm90

#endif
