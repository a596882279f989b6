// A tensor that someone else owns, and what an op may demand of it. Knows neither Python nor torch: dlpack.h fills it in.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace pyuniversal {

struct Tensor {
    std::string problem;  // why the argument is no tensor that can be borrowed, in words; empty when it is one
    void* memory = nullptr;
    std::string dtype;   // "float32"
    std::string device;  // "cpu", "cuda:0"
    std::vector<int64_t> shape;
    std::vector<int64_t> strides;  // in elements

    int64_t size(int dimension) const { return shape[dimension]; }
    int64_t stride(int dimension) const { return strides[dimension]; }
    template <typename T> T* data() const { return static_cast<T*>(memory); }

    bool empty() const {
        for (int64_t extent : shape) {
            if (extent == 0) return true;
        }
        return false;
    }
};

// The strides that an op can read. A dimension of extent 1 has no stride worth asking for, and an empty tensor has none at all.
enum class Layout {
    contiguous,    // row major without gaps
    unit_columns,  // the last dimension has stride 1, the others any
};

inline std::string words(const std::vector<int64_t>& values) {
    std::string text = "[";
    for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
    return text + "]";
}

inline bool has_layout(const Tensor& tensor, Layout layout) {
    if (tensor.empty()) return true;
    int64_t expected = 1;
    for (size_t i = tensor.shape.size(); i-- > 0;) {
        if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
        if (layout == Layout::unit_columns) break;
        expected *= tensor.shape[i];
    }
    return true;
}

// Throw unless `tensor` lies on `device`, has one of `dtypes`, a dimension for each of `names` ("[tokens, neurons]") and the layout.
// `argument` begins every message: "moments_: x".
inline void check(const Tensor& tensor, const std::string& argument, const std::string& device, std::initializer_list<const char*> dtypes,
                  const std::vector<std::string>& names, Layout layout) {
    auto fail = [&](const std::string& expected, const std::string& got) { throw std::invalid_argument(argument + " must " + expected + ", got " + got); };
    if (!tensor.device.empty() && tensor.device != device) fail("be on the device " + device, "one on " + tensor.device);
    if (!tensor.problem.empty()) fail("be a tensor", tensor.problem);

    bool known = false;
    std::string allowed, dimensions;
    for (const char* dtype : dtypes) {
        known = known || tensor.dtype == dtype;
        allowed += (allowed.empty() ? "" : " or ") + std::string(dtype);
    }
    if (!known) fail("be " + allowed, tensor.dtype);

    for (const std::string& name : names) dimensions += (dimensions.empty() ? "" : ", ") + name;
    if (tensor.shape.size() != names.size()) fail("have the dimensions [" + dimensions + "]", "the shape " + words(tensor.shape));
    if (!has_layout(tensor, layout)) {
        fail(layout == Layout::contiguous ? "be contiguous" : "have neighbouring columns (stride 1 in the last dimension)",
             "the strides " + words(tensor.strides) + " for the shape " + words(tensor.shape));
    }
}

inline void check_equal(int64_t value, const std::string& what, int64_t expected, const std::string& of_what) {
    if (value == expected) return;
    throw std::invalid_argument(what + " must equal " + of_what + " (" + std::to_string(expected) + "), got " + std::to_string(value));
}

inline void check_threads(int threads, const std::string& op) {
    if (threads < 1) throw std::invalid_argument(op + ": threads must be at least 1, got " + std::to_string(threads));
}

}  // namespace pyuniversal
