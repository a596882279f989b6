// csrc/cuda/product.cuh on a CPU: the very kernel, with the instructions of sm90.h of this folder, which must come first.
// clang-format off
#include "sm90.h"
#include "product.cuh"
// clang-format on

namespace {

constexpr int kRegisters = 168;  // of a thread at the start, as tests/ops/test_cuda_sources.py finds them

using namespace pyuniversal::cuda;

CUtensorMap tensor_map(const int8_t* x, int64_t rows, int64_t tokens, int64_t stride) {
    return {reinterpret_cast<const uint8_t*>(x), tokens, rows, stride, kTokens, kRows};
}

void run_cluster(const CUtensorMap& x, const CUtensorMap& y, const Product& work, int64_t total_floats, int cluster, uint32_t seed) {
    using namespace emulated;
    Machine machine(seed, kCluster, kSharedBytes);
    launch = Launch{};
    launch.machine = &machine;
    launch.threads = kThreads;
    launch.warps.resize(kCluster * kThreads / kWarp);
    launch.issued.resize(kCluster * kThreads / emulated::kWarpgroup);
    launch.cluster_arrivals.resize(kCluster * kThreads);
    launch.readable = {{work.x_scale, work.x_scale + work.rows}, {work.y_scale, work.y_scale + work.columns}};
    launch.addable = {{work.total, work.total + total_floats}};
    for (Warp& warp : launch.warps) warp.registers = kRegisters;
    for (Block& block : machine.blocks) block.running = kThreads;
    machine.scheduler.enter = [&](int thread) {
        threadIdx.x = thread % kThreads;
        blockIdx.x = cluster * kCluster + thread / kThreads;
    };
    machine.scheduler.run(kCluster * kThreads, kWarp, [&](int thread) {
        product_kernel(x, y, work);
        require(in_flight().empty(), "a warp leaves while its wgmma is in flight");
        --machine.blocks[thread / kThreads].running;
    });
    require(!machine.loads_under_way(), "a block leaves while its loads are under way");
    for (const Block& block : machine.blocks) {
        for (const auto& [address, barrier] : block.barriers) require(barrier.bytes == 0, "a barrier still waits for bytes at the end");
    }
}

}  // namespace

// What went wrong, in words; "" if nothing did. x, y: strides in bytes; total_floats: from its first element to the end of its last row.
extern "C" const char* product(const int8_t* x, const int8_t* y, float* total, const float* x_scale, const float* y_scale, int rows, int columns, int tokens,
                               int64_t x_stride, int64_t y_stride, int64_t total_stride, int64_t total_floats, int blocks, uint32_t seed) {
    static std::string problem;
    const Product work{total, total_stride, x_scale, y_scale, rows, columns, tokens};
    const CUtensorMap x_map = tensor_map(x, rows, tokens, x_stride), y_map = tensor_map(y, columns, tokens, y_stride);
    gridDim.x = std::min(blocks, Pairs(work).count() * kCluster);
    try {
        problem.clear();
        for (unsigned cluster = 0; cluster < gridDim.x / kCluster; ++cluster) run_cluster(x_map, y_map, work, total_floats, cluster, seed + cluster);
    } catch (const std::exception& error) {
        problem = error.what();
    }
    return problem.c_str();
}
