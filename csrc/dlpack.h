// Python tensors (torch, numpy, anything with __dlpack__) as pyuniversal::Tensor: borrowed for the length of the call, never copied.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "tensor.h"

namespace pyuniversal::dlpack {

namespace py = pybind11;

// The layout that https://dmlc.github.io/dlpack fixes for a capsule named "dltensor".
struct Device {
    int32_t type, id;
};
struct Dtype {
    uint8_t code, bits;
    uint16_t lanes;
};
struct View {
    void* data;
    Device device;
    int32_t rank;
    Dtype dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null means contiguous
    uint64_t byte_offset;
};
struct Managed {
    View view;
    void* context;
    void (*deleter)(Managed*);
};

inline std::string name(Device device) {
    if (device.type == 1) return "cpu";
    if (device.type == 2) return "cuda:" + std::to_string(device.id);
    return "DLPack device " + std::to_string(device.type) + ":" + std::to_string(device.id);
}

inline std::string name(Dtype dtype) {
    if (dtype.code == 6) return "bool";
    if (dtype.code == 4) return "bfloat" + std::to_string(dtype.bits);
    const char* kinds[] = {"int", "uint", "float"};
    return (dtype.code < 3 ? kinds[dtype.code] : "dtype with DLPack code " + std::to_string(dtype.code) + " and bits ") + std::to_string(dtype.bits);
}

// Fill in `tensor`; the returned capsule keeps its memory alive. Whatever goes wrong is left in `tensor.problem`, so that the op can name the argument.
inline py::object borrow(py::handle object, Tensor& tensor) {
    if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__")) {
        tensor.problem = py::str("a {}").format(py::type::of(object).attr("__name__")).cast<std::string>();
        return py::none();
    }
    try {
        auto place = object.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
        tensor.device = name(Device{place.first, place.second});
        // On a GPU nothing is waited for (-1 is the array API standard's word for it): what is done with the tensor is queued on the stream that the caller
        // names. A tensor elsewhere is only reported.
        const bool gpu = place.first == 2;
        if (!gpu && place.first != 1) return py::none();
        py::capsule owner = object.attr("__dlpack__")(py::arg("stream") = gpu ? py::object(py::int_(-1)) : py::object(py::none()));
        const auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(owner.ptr(), "dltensor"));
        if (managed == nullptr) throw py::error_already_set();  // a capsule of another name
        const View& view = managed->view;
        tensor.memory = static_cast<char*>(view.data) + view.byte_offset;
        tensor.dtype = name(view.dtype);
        tensor.shape.assign(view.shape, view.shape + view.rank);
        tensor.strides.assign(view.rank, 1);
        for (int i = view.rank - 2; i >= 0; --i) tensor.strides[i] = tensor.strides[i + 1] * tensor.shape[i + 1];
        if (view.strides != nullptr) tensor.strides.assign(view.strides, view.strides + view.rank);
        return std::move(owner);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;  // Ctrl-C is not the tensor's fault
        tensor.problem = py::str("one that cannot be borrowed ({})").format(error.value()).cast<std::string>();
        return py::none();
    }
}

}  // namespace pyuniversal::dlpack

template <> struct pybind11::detail::type_caster<pyuniversal::Tensor> {
    PYBIND11_TYPE_CASTER(pyuniversal::Tensor, const_name("Tensor"));

    bool load(handle object, bool /*convert*/) {
        owner = pyuniversal::dlpack::borrow(object, value);
        return true;
    }

    object owner;  // lives as long as the arguments of the call
};
