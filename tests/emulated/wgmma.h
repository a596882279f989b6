// Matrix products of a warpgroup: what descriptors show, which registers hold which sums, and when shared memory is read.
#pragma once

#include "launch.h"

namespace emulated {

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

}  // namespace emulated
