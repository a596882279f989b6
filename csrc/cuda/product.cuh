// total += x_scale y_scale x y^T of int8 operands [neurons, tokens]: the kernel. sm90.h holds the instructions, product.cu starts it.
//
// Two neighbouring blocks (a cluster) make two tiles of the total at a time, one above the other. Both need the same rows of y, so each loads half of them for
// both. In a block one thread orders the loads, a ring of stages ahead; two warpgroups multiply, 64 rows of the tile each, and add what they have made to the
// total while the loads of the next tile run. Tiles follow each other down kBand rows of tiles and then across, so that what the blocks at work read stays in
// L2.
#pragma once

#include "sm90.h"

namespace pyuniversal::cuda {

constexpr int kRows = 128, kColumns = 256, kTokens = 128;  // of a tile of the total, and of a step: 128 bytes, the width that the swizzle knows
constexpr int kCluster = 2, kStages = 4, kBand = 16;
constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kSumRows = kRows / kConsumers, kSums = kSumRows * kColumns / kWarpgroup;  // of a warpgroup; registers of a thread
constexpr int kSharedColumns = kColumns / kCluster;                                     // rows of y that a block loads for all

// Shared memory: in each stage the rows of x, then those of y. The swizzle repeats every 1,024 bytes, of which the memory need not begin at a multiple.
constexpr uint32_t kAlignment = 1024, kXBytes = kRows * kTokens, kStageBytes = kXBytes + kColumns * kTokens;
constexpr uint32_t kBarriers = kStages * kStageBytes, kSharedBytes = kAlignment + kBarriers + 2 * kStages * 8;
static_assert(kSharedBytes <= 227 * 1024, "more than a block may have");

// The thread that orders loads needs few registers, those with sums many; all were started with 65,536 / 384 of them, rounded down to 168.
constexpr int kFewRegisters = 40, kManyRegisters = 232;

struct Product {
    float* total;    // [rows, columns], unit stride along columns
    int64_t stride;  // between rows of the total
    const float *x_scale, *y_scale;
    int rows, columns, tokens;
};

__host__ __device__ constexpr int parts(int whole, int part) { return (whole + part - 1) / part; }

// The pairs of tiles of a product, in the order in which clusters take them.
struct Pairs {
    int down, across;

    __host__ __device__ explicit Pairs(const Product& work) : down(parts(work.rows, kRows * kCluster)), across(parts(work.columns, kColumns)) {}
    __host__ __device__ int count() const { return down * across; }  // a total of 2^31 of them would have 2^47 elements

    struct Place {
        int row, column;  // of the total
    };
    __device__ Place place(int pair, uint32_t rank) const {
        constexpr int kHeight = kBand / kCluster;
        const int band = kHeight * across, first = pair / band * kHeight, inside = pair % band;
        const int height = down - first < kHeight ? down - first : kHeight;
        return {((first + inside % height) * kCluster + static_cast<int>(rank)) * kRows, inside / height * kColumns};
    }
};

// Where a warpgroup is in the ring. The parity of a stage's phases flips with each round.
struct Ring {
    uint32_t memory, stage = 0, parity = 0;

    __device__ explicit Ring(uint32_t shared) : memory((shared + kAlignment - 1) / kAlignment * kAlignment) {}
    __device__ uint32_t x() const { return memory + stage * kStageBytes; }
    __device__ uint32_t y() const { return x() + kXBytes; }
    __device__ uint32_t full() const { return memory + kBarriers + stage * 8; }  // the loads into the stage have arrived
    __device__ uint32_t empty() const { return full() + kStages * 8; }           // nobody in the cluster reads the stage any more
    __device__ void next() {
        stage = (stage + 1) % kStages;
        parity ^= stage == 0;
    }
};

__device__ inline void wait(uint32_t barrier, uint32_t parity) {
    while (!sm90::mbarrier_try_wait_parity(barrier, parity)) {
    }
}

// One thread: all loads of the block. What it loads of y lands in both blocks, so it waits until the stage is empty in both.
__device__ inline void load(const CUtensorMap& x, const CUtensorMap& y, const Product& work, uint32_t rank) {
    const Pairs pairs(work);
    Ring ring(sm90::shared_memory());
    for (int pair = static_cast<int>(blockIdx.x / kCluster); pair < pairs.count(); pair += static_cast<int>(gridDim.x / kCluster)) {
        const auto [row, column] = pairs.place(pair, rank);
        for (int token = 0; token < work.tokens; token += kTokens) {
            wait(ring.empty(), ring.parity ^ 1);  // before its first phase a barrier is in one of parity 1 that is over: the first round goes through
            sm90::mbarrier_arrive_expect_tx(ring.full(), kStageBytes);  // the other block's half of y too
            sm90::cp_async_bulk_tensor_2d(ring.x(), x, token, row, ring.full());
            const int mine = static_cast<int>(rank) * kSharedColumns;
            sm90::cp_async_bulk_tensor_2d_multicast(ring.y() + mine * kTokens, y, token, column + mine, ring.full(), (1 << kCluster) - 1);
            ring.next();
        }
    }
}

// The descriptor of rows of 128 swizzled bytes in shared memory, eight of which make 1,024. It counts bytes in sixteens: two further are the next 32 tokens.
__device__ inline uint64_t described(uint32_t address) {
    constexpr uint64_t kSwizzle128 = 1, kUnused = 1, kEightRows = 8 * kTokens;
    return kSwizzle128 << 62 | kEightRows >> 4 << 32 | kUnused << 16 | (address & 0x3ffff) >> 4;
}

// Each warp tells both blocks that it has read the stage: lane 0 this one's barrier or the other's, lane 1 the remaining one.
__device__ inline void release(uint32_t empty) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < kCluster) sm90::mbarrier_arrive_cluster(sm90::mapa(empty, lane));
}

// The fragment that a thread holds of 64 rows by 256 columns: in registers 4j and 4j + 1 two neighbouring columns of a row, in the next two those of the row
// eight below. kWhole: there are all columns, and each pair lies at a multiple of 8 bytes. Scales are read sixteen at a time, so that not each addition waits
// for its own; nothing waits for the additions, which L2 makes, one to each element in a launch.
template <bool kWhole> __device__ __forceinline__ void add_fragment(const Product& work, const int32_t (&sums)[kSums], int row, int column) {
    constexpr int kTogether = 8, kPairs = kColumns / 8;
    const bool there[] = {row < work.rows, row + 8 < work.rows};
    const float of_row[] = {there[0] ? sm90::ld_global_nc(work.x_scale + row) : 0, there[1] ? sm90::ld_global_nc(work.x_scale + row + 8) : 0};
    float* const line = work.total + row * work.stride;
#pragma unroll
    for (int begin = 0; begin < kPairs; begin += kTogether) {
        float of_column[2 * kTogether];
#pragma unroll
        for (int i = 0; i < 2 * kTogether; ++i) {
            const int at = column + 8 * (begin + i / 2) + i % 2;
            of_column[i] = kWhole || at < work.columns ? sm90::ld_global_nc(work.y_scale + at) : 0;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (!there[half]) continue;
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
                const int32_t* const pair = sums + 4 * (begin + i) + 2 * half;
                const int at = column + 8 * (begin + i);
                float* const place = line + 8 * half * work.stride + at;
                const float left = static_cast<float>(pair[0]) * of_row[half] * of_column[2 * i];
                const float right = static_cast<float>(pair[1]) * of_row[half] * of_column[2 * i + 1];
                if (kWhole) {
                    sm90::red_add_v2(place, left, right);
                } else {
                    if (at < work.columns) sm90::red_add(place, left);
                    if (at + 1 < work.columns) sm90::red_add(place + 1, right);
                }
            }
        }
    }
}

// What a warpgroup has made, to the total.
__device__ __forceinline__ void add(const Product& work, const int32_t (&sums)[kSums], int row, int column) {
    const int thread = threadIdx.x % kWarpgroup;
    const bool whole = column + kColumns <= work.columns && work.stride % 2 == 0 && reinterpret_cast<uintptr_t>(work.total) % 8 == 0;
    row += thread / 32 * 16 + thread % 32 / 4;
    column += thread % 4 * 2;
    if (whole) {
        add_fragment<true>(work, sums, row, column);
    } else {
        add_fragment<false>(work, sums, row, column);
    }
    sm90::bar_warp_sync();  // lanes without a row were faster, and wgmma is of whole warps
}

// A warpgroup: all products of its rows of the block's tiles. Those of a step run while those of the next are issued, which keeps the tensor cores busy.
__device__ inline void multiply(const Product& work, uint32_t rank, int consumer) {
    const Pairs pairs(work);
    Ring ring(sm90::shared_memory());
    for (int pair = static_cast<int>(blockIdx.x / kCluster); pair < pairs.count(); pair += static_cast<int>(gridDim.x / kCluster)) {
        int32_t sums[kSums];
        uint32_t behind = 0;  // the empty barrier of the step whose products are in flight
        for (int token = 0; token < work.tokens; token += kTokens) {
            wait(ring.full(), ring.parity);
            const uint64_t x = described(ring.x() + consumer * kSumRows * kTokens), y = described(ring.y());
            sm90::wgmma_fence();
#pragma unroll
            for (int k = 0; k < kTokens / 32; ++k) sm90::wgmma_m64n256k32_s32_s8_s8(sums, x + 2 * k, y + 2 * k, token + k > 0);
            sm90::wgmma_commit_group();
            sm90::wgmma_wait_group<1>();
            if (token > 0) release(behind);
            behind = ring.empty();
            ring.next();
        }
        sm90::wgmma_wait_group<0>();
        sm90::touch(sums);
        release(behind);
        const auto [row, column] = pairs.place(pair, rank);
        add(work, sums, row + consumer * kSumRows, column);
    }
}

__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap y, const __grid_constant__ Product work) {
    const uint32_t rank = sm90::cluster_ctarank();
    if (threadIdx.x == 0) {
        Ring ring(sm90::shared_memory());
        for (int stage = 0; stage < kStages; ++stage, ring.next()) {
            sm90::mbarrier_init(ring.full(), 1);
            sm90::mbarrier_init(ring.empty(), kCluster * kConsumers * kWarpgroup / 32);
        }
        sm90::fence_mbarrier_init();
        sm90::fence_proxy_async();
    }
    // Nobody loads into a block whose barriers are not there yet, and no block leaves before the other has signalled and written its last into it.
    sm90::barrier_cluster_arrive();
    sm90::barrier_cluster_wait();
    const int warpgroup = threadIdx.x / kWarpgroup;
    if (warpgroup == 0) {
        sm90::setmaxnreg_dec<kFewRegisters>();
        if (threadIdx.x == 0) load(x, y, work, rank);
        sm90::bar_warp_sync();
    } else {
        sm90::setmaxnreg_inc<kManyRegisters>();
        multiply(work, rank, warpgroup - 1);
    }
    sm90::barrier_cluster_arrive();
    sm90::barrier_cluster_wait();
}

}  // namespace pyuniversal::cuda
