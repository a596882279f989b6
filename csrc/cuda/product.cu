// total += x_scale y_scale x y^T of int8 operands [neurons, tokens] on a GPU of compute capability 9.0: what is asked of the arguments, and the start of the
// kernel.
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>

#include "../tensor.h"
#include "product.cuh"

namespace pyuniversal::cuda {
namespace {

constexpr int kMostTokens = INT32_MAX / (127 * 127), kMostNeurons = INT32_MAX - kColumns * kCluster;

void succeed(cudaError_t error, const char* doing) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("product_: CUDA could not ") + doing + ": " + cudaGetErrorString(error));
}

// Makes a device the current one, as launches want it.
class Current {
  public:
    explicit Current(int device) {
        succeed(cudaGetDevice(&before_), "tell the current device");
        succeed(cudaSetDevice(device), "choose the device");
    }
    ~Current() { cudaSetDevice(before_); }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

  private:
    int before_ = 0;
};

// The driver's function by way of the runtime: the extension is not linked with libcuda, which machines without a GPU lack.
auto tensor_map_encoder() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    succeed(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result), "find cuTensorMapEncodeTiled");
#else
    succeed(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result), "find cuTensorMapEncodeTiled");
#endif
    if (result != cudaDriverEntryPointSuccess || found == nullptr) {
        throw std::runtime_error("product_: the NVIDIA driver has no cuTensorMapEncodeTiled; it must be of CUDA 12.0 or later");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

// An operand as the tensor memory accelerator reads it: boxes of 128 neurons by 128 tokens, swizzled; what lies outside is 0.
CUtensorMap tensor_map(const Tensor& x) {
    static const auto encode = tensor_map_encoder();
    static_assert(kRows == kSharedColumns, "one box for both operands");
    const cuuint64_t extent[] = {static_cast<cuuint64_t>(x.size(1)), static_cast<cuuint64_t>(x.size(0))};
    // The stride of a single row says nothing, but is looked at.
    const cuuint64_t stride[] = {x.size(0) == 1 ? (extent[0] + 15) / 16 * 16 : static_cast<cuuint64_t>(x.stride(0))};
    const cuuint32_t box[] = {kTokens, kRows}, each[] = {1, 1};
    CUtensorMap map;
    const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, x.data<void>(), extent, stride, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) throw std::runtime_error("product_: cuTensorMapEncodeTiled refused an operand with error " + std::to_string(result));
    return map;
}

void check_operand(const Tensor& x, const Tensor& scale, const std::string& name, const std::string& device, int64_t neurons, const std::string& of_total) {
    check(x, "product_: " + name, device, {"int8"}, {"neurons", "tokens"}, Layout::unit_columns);
    check(scale, "product_: " + name + "_scale", device, {"float32"}, {"neurons"}, Layout::contiguous);
    check_equal(x.size(0), "product_: the neurons of " + name, neurons, of_total);
    check_equal(scale.size(0), "product_: the length of " + name + "_scale", neurons, of_total);
    const bool apart = x.size(0) == 1 || (x.stride(0) % 16 == 0 && x.stride(0) >= x.size(1));
    if (x.empty() || (apart && reinterpret_cast<uintptr_t>(x.memory) % 16 == 0)) return;
    throw std::invalid_argument("product_: the rows of " + name + " must begin at multiples of 16 bytes, got the strides " + words(x.strides));
}

}  // namespace

void product_(const Tensor& total, const Tensor& x, const Tensor& y, const Tensor& x_scale, const Tensor& y_scale, uintptr_t stream) {
    const std::string device = total.device.rfind("cuda:", 0) == 0 ? total.device : "cuda";
    check(total, "product_: total", device, {"float32"}, {"rows", "columns"}, Layout::unit_columns);
    check_operand(x, x_scale, "x", device, total.size(0), "the rows of total");
    check_operand(y, y_scale, "y", device, total.size(1), "the columns of total");
    check_equal(y.size(1), "product_: the tokens of y", x.size(1), "those of x");
    if (x.size(1) > kMostTokens || std::max(total.size(0), total.size(1)) > kMostNeurons) {
        throw std::invalid_argument("product_: takes at most " + std::to_string(kMostTokens) + " tokens and " + std::to_string(kMostNeurons) + " neurons");
    }
    if (total.empty() || x.empty()) return;

    const int index = std::stoi(device.substr(device.find(':') + 1));
    const Current current(index);
    succeed(cudaFuncSetAttribute(product_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), "give a block its shared memory");
    const Product work{
        total.data<float>(),        total.stride(0), x_scale.data<float>(), y_scale.data<float>(), static_cast<int>(x.size(0)), static_cast<int>(y.size(0)),
        static_cast<int>(x.size(1))};

    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {kCluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kCluster);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kSharedBytes;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int clusters = 0;  // that run at once: a multiprocessor without a neighbour is none
    succeed(cudaOccupancyMaxActiveClusters(&clusters, product_kernel, &config), "count the clusters that run at once");
    config.gridDim = dim3(std::min(Pairs(work).count(), std::max(clusters, 1)) * kCluster);
    succeed(cudaLaunchKernelEx(&config, product_kernel, tensor_map(x), tensor_map(y), work), "start the kernel");
}

}  // namespace pyuniversal::cuda
