// Whether CUDA kernels can run at all.
#include <cuda_runtime.h>

#include <string>

namespace pyuniversal::cuda {

// Why not, in words; "" if they can. A driver may be older than the CUDA that compiled this.
std::string problem() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace pyuniversal::cuda
