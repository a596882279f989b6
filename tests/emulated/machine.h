// A cluster of blocks on an H100 as far as sm90.h shows it, from the words of the PTX specification: shared memory, barriers in it, loads that land late.
// Whatever a program must not rely on is an error with words.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>

#include "fibers.h"

struct CUtensorMap {  // a row-major matrix of bytes, of which boxes are loaded with the 128-byte swizzle
    const uint8_t* memory;
    int64_t columns, rows, stride;
    int box_columns, box_rows;
};

namespace emulated {

constexpr int kWarp = 32, kWarpgroup = 128;
constexpr uint32_t kChunk = 16;                // bytes that the swizzle moves together
constexpr uint32_t kBase = 1024 + 16;          // where dynamic shared memory begins: at a multiple of 16, no more is promised
constexpr int kWindow = 24;                    // bits of an address in a block; above them, in those of shared::cluster, the block's rank and one
constexpr int64_t kMostBytes = (1 << 20) - 1;  // that a barrier can count

struct Barrier {
    int count, pending, initialiser;
    bool published = false;
    int64_t bytes = 0;
    uint64_t phase = 0;
    Waiters waiters;
};

struct Chunk {
    bool written = false;
    int landing = 0, readers = 0;  // loads that are under way to it; wgmma of warps that are issued and not yet waited for
};

struct Block {
    std::vector<uint8_t> memory;
    std::vector<Chunk> chunks;
    std::map<uint32_t, Barrier> barriers;
    int running = 0, free_registers = 0;
    Waiters for_registers;
};

// The address of bytes in shared memory after the 128-byte swizzle: which sixteen of 128 bytes, exclusive-or the number of the 128 bytes modulo 8.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

struct Place {
    int block;
    uint32_t address;
};

class Machine {
  public:
    Scheduler scheduler;
    std::vector<Block> blocks;

    Machine(uint32_t seed, int cluster, uint32_t shared_bytes) : scheduler(seed), blocks(cluster) {
        for (Block& block : blocks) {
            block.memory.resize(shared_bytes);
            block.chunks.resize((shared_bytes + kChunk - 1) / kChunk + 1);
        }
        scheduler.background = [this] { return land(); };
    }

    // Where an address lies that a thread of `here` uses: of its own block, or of shared::cluster.
    Place place(int here, uint32_t address) {
        const uint32_t rank = address >> kWindow;
        require(rank <= blocks.size(), "an address of a block that the cluster does not have");
        const int block = rank == 0 ? here : static_cast<int>(rank) - 1;
        require(blocks[block].running > 0, "shared memory of a block that has left is used");
        return {block, address & ((1u << kWindow) - 1)};
    }

    void require_inside(int block, uint32_t address, uint32_t bytes) {
        require(address >= kBase && address + bytes <= kBase + blocks[block].memory.size(), "shared memory outside of the block's is used");
    }

    uint8_t* bytes(int block, uint32_t address) { return blocks[block].memory.data() + (address - kBase); }
    Chunk& chunk(int block, uint32_t address) { return blocks[block].chunks[(address - kBase) / kChunk]; }

    Barrier& barrier(const Place& place, int thread) {
        require_inside(place.block, place.address, 8);
        const auto found = blocks[place.block].barriers.find(place.address);
        require(found != blocks[place.block].barriers.end(), "a barrier is used before mbarrier.init");
        require(found->second.published || found->second.initialiser == thread, "a barrier is used by others without fence.mbarrier_init");
        return found->second;
    }

    void expect(Barrier& barrier, int64_t bytes) {
        barrier.bytes += bytes;
        require(barrier.bytes <= kMostBytes && barrier.bytes >= -kMostBytes, "a barrier counts more bytes than it can");
    }

    void arrive(Barrier& barrier) {
        require(barrier.pending > 0, "more threads arrive at a barrier than its phase counts");
        --barrier.pending;
        end_phase(barrier);
    }

    // A load, in pieces; the bytes are there, and counted, when `land` has drawn the last of them.
    void load(const Place& to, const CUtensorMap& map, int column, int row, uint32_t barrier_address) {
        require(to.address % 1024 == 0, "a load with the 128-byte swizzle must begin at a multiple of 1,024 bytes");
        require(map.box_columns == 128 && map.stride % 16 == 0 && reinterpret_cast<uintptr_t>(map.memory) % 16 == 0,
                "a tensor map that the driver would refuse");
        require_inside(to.block, to.address, 128 * map.box_rows);
        barrier({to.block, barrier_address}, -1);
        for (const auto& [address, other] : blocks[to.block].barriers) {
            require(address + 8 <= to.address || address >= to.address + 128 * map.box_rows, "a load overwrites a barrier");
        }
        for (uint32_t at = 0; at < 128u * map.box_rows; at += kChunk) {
            Chunk& chunk = this->chunk(to.block, to.address + at);
            require(chunk.landing == 0, "two loads to the same shared memory are under way");
            require(chunk.readers == 0, "a load overwrites shared memory that a wgmma in flight reads");
            ++chunk.landing;
        }
        constexpr int kPiece = 32;
        for (int first = 0; first < map.box_rows; first += kPiece) {
            const int rows = std::min(kPiece, map.box_rows - first);
            loads_.push_back({{to.block, to.address + 128 * first}, &map, column, row + first, rows, barrier_address});
        }
    }

    bool loads_under_way() const { return !loads_.empty(); }

  private:
    struct Load {
        Place to;
        const CUtensorMap* map;
        int column, row, rows;
        uint32_t barrier;
    };
    std::vector<Load> loads_;

    void end_phase(Barrier& barrier) {
        if (barrier.pending > 0 || barrier.bytes != 0) return;
        ++barrier.phase;
        barrier.pending = barrier.count;
        scheduler.wake(barrier.waiters);
    }

    bool land() {
        if (loads_.empty()) return false;
        std::swap(loads_[scheduler.random() % loads_.size()], loads_.back());
        const Load load = loads_.back();
        loads_.pop_back();
        require(blocks[load.to.block].running > 0, "a load lands in a block that has left");
        const CUtensorMap& map = *load.map;
        for (int i = 0; i < load.rows; ++i) {
            for (int j = 0; j < 128; j += kChunk) {
                const uint32_t address = swizzled(load.to.address + 128 * i + j);
                uint8_t* const to = bytes(load.to.block, address);
                for (int byte = 0; byte < static_cast<int>(kChunk); ++byte) {
                    const int64_t row = load.row + i, column = load.column + j + byte;
                    const bool inside = row >= 0 && row < map.rows && column >= 0 && column < map.columns;
                    to[byte] = inside ? map.memory[row * map.stride + column] : 0;
                }
                Chunk& chunk = this->chunk(load.to.block, address);
                chunk.written = true;
                --chunk.landing;
            }
        }
        Barrier& counter = barrier({load.to.block, load.barrier}, -1);
        expect(counter, -128 * load.rows);
        end_phase(counter);
        return true;
    }
};

}  // namespace emulated
