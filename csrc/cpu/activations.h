// Activations as a kernel sees them: x [tokens, neurons] of one of three dtypes, neighbouring neurons, any distance between tokens.
#pragma once

#include <cstdint>

namespace pyuniversal::cpu {

enum class Float { float32, float16, bfloat16 };

struct Activations {
    const void* data;
    Float type;
    int64_t stride;  // between tokens, in elements
    int64_t tokens, neurons;
};

}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "../tensor.h"

namespace pyuniversal::cpu {

// Throws unless x can be read; `argument` begins the message: "moments_: x".
inline Activations activations(const Tensor& x, const std::string& argument) {
    check(x, argument, "cpu", {"float32", "float16", "bfloat16"}, {"tokens", "neurons"}, Layout::unit_columns);
    const Float type = x.dtype == "float32" ? Float::float32 : x.dtype == "float16" ? Float::float16 : Float::bfloat16;
    return {x.memory, type, x.stride(0), x.size(0), x.size(1)};
}

}  // namespace pyuniversal::cpu
#endif
