// The instructions of an H100 (compute capability 9.0) that C++ has no words for: one function each, named after the instruction, with its PTX. What they do
// and what they ask for: https://docs.nvidia.com/cuda/parallel-thread-execution. Shared memory is spoken of by its 32-bit addresses.
//
// tests/emulated/sm90.h has the same functions for a CPU, under the same guard: a kernel that is included after that file runs there.
#ifndef PYUNIVERSAL_SM90_H
#define PYUNIVERSAL_SM90_H

#include <cuda.h>

#include <cstdint>

namespace pyuniversal::sm90 {

// The dynamic shared memory of the block; equal in all blocks of a cluster. Aligned to 16 bytes at least.
__device__ __forceinline__ uint32_t shared_memory() {
    extern __shared__ uint8_t memory[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

// ---- the cluster

__device__ __forceinline__ uint32_t cluster_ctarank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void barrier_cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }

__device__ __forceinline__ void barrier_cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// The address in the block `rank` of the cluster that is `address` in this one.
__device__ __forceinline__ uint32_t mapa(uint32_t address, uint32_t rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// All lanes of the warp.
__device__ __forceinline__ void bar_warp_sync() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// ---- barriers in shared memory

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// `barrier` is an address of `mapa`. Without a scope, as is usual: that means .release of .cta. .release.cluster would put a fence before each, which waits for
// all that the thread has sent to the total, and .acquire.cluster below would empty the L1 cache. Both order accesses of threads, of which stages have none:
// the loads and wgmma alone touch them.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Whether the phase of this parity is over; waits for it a while.
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    asm volatile(
        "{\n.reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n}"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
    return over != 0;
}

// ---- the tensor memory accelerator: the box at (column, row) of a matrix to shared memory; its bytes are counted by the barrier

__device__ __forceinline__ void cp_async_bulk_tensor_2d(uint32_t to, const CUtensorMap& from, int column, int row, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(reinterpret_cast<uint64_t>(&from)), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

// The same to each block of the cluster whose bit is set in `blocks`, at the same place, counted by the barrier at the same place.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(uint32_t to, const CUtensorMap& from, int column, int row, uint32_t barrier,
                                                                  uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(reinterpret_cast<uint64_t>(&from)), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
                 : "memory");
}

// ---- matrix products of a warpgroup

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending> __device__ __forceinline__ void wgmma_wait_group() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory"); }

// sums (+)= a b^T: 64 rows of a by 256 of b, 32 bytes of each, which the descriptors show in shared memory.
__device__ __forceinline__ void wgmma_m64n256k32_s32_s8_s8(int32_t (&sums)[128], uint64_t a, uint64_t b, bool accumulate) {
#define SUMS(i) "+r"(sums[i]), "+r"(sums[i + 1]), "+r"(sums[i + 2]), "+r"(sums[i + 3])
#define SUMS_16(i) SUMS(i), SUMS(i + 4), SUMS(i + 8), SUMS(i + 12)
    asm volatile(
        "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, "
        "%72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, "
        "%120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, accumulate;\n}"
        : SUMS_16(0), SUMS_16(16), SUMS_16(32), SUMS_16(48), SUMS_16(64), SUMS_16(80), SUMS_16(96), SUMS_16(112)
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
#undef SUMS_16
#undef SUMS
}

// No instruction: sums are not read before this line, nor is what follows moved above it. After wgmma_wait_group, of which the compiler does not know.
__device__ __forceinline__ void touch(int32_t (&sums)[128]) {
#pragma unroll
    for (int i = 0; i < 128; ++i) asm volatile("" : "+r"(sums[i])::"memory");
}

// ---- registers and global memory

template <int kRegisters> __device__ __forceinline__ void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters)); }

template <int kRegisters> __device__ __forceinline__ void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)); }

// Of memory that no thread writes.
__device__ __forceinline__ float ld_global_nc(const float* place) {
    float value;
    asm("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(__cvta_generic_to_global(place)));
    return value;
}

// Additions to global memory that nobody here reads: they are ordered with nothing. What is less than a normal float32 counts as 0.
__device__ __forceinline__ void red_add(float* place, float value) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(place)), "f"(value));
}

// `place` at a multiple of 8 bytes.
__device__ __forceinline__ void red_add_v2(float* place, float first, float second) {
    asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(place)), "f"(first), "f"(second));
}

}  // namespace pyuniversal::sm90

#endif
