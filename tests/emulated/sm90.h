// The functions of csrc/cuda/sm90.h for a CPU, each as the PTX specification describes its instruction. Every thread of a cluster is a fiber. What the hardware
// may do at any time happens at random times; whatever a program must not rely on of addresses, lifetimes, counts and the order of arrivals is an error. Not
// here: the order in which threads see each other's accesses of memory (acquire, release, scopes, proxies), so that a fence left out goes unnoticed.
#ifndef PYUNIVERSAL_SM90_H
#define PYUNIVERSAL_SM90_H

#include "wgmma.h"

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
