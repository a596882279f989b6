// Instruction sets. Every op is compiled once for each (CMakeLists.txt gives the flags and defines PYUNIVERSAL_ISA as its name), and the kernel of the best one
// that the CPU has is taken at run time. The border of an op, which checks arguments and starts threads, is compiled once (PYUNIVERSAL_BORDER).
//
// What a kernel is made of lies in unnamed namespaces: an inline function that two objects share would be merged by the linker into one copy, which might be
// the one for instructions that this CPU does not have. So kernels use no std:: containers or algorithms either.
#pragma once

#include <string>
#include <vector>

namespace pyuniversal::cpu {

#ifdef PYUNIVERSAL_X86
// name(work, begin, end): the kernel's share [begin, end) of the pieces of `work`.
#define PYUNIVERSAL_KERNEL(name, Work)                       \
    namespace generic {                                      \
    void name(const Work& work, int64_t begin, int64_t end); \
    }                                                        \
    namespace avx2 {                                         \
    void name(const Work& work, int64_t begin, int64_t end); \
    }                                                        \
    namespace avx512f {                                      \
    void name(const Work& work, int64_t begin, int64_t end); \
    }                                                        \
    namespace avx512vnni {                                   \
    void name(const Work& work, int64_t begin, int64_t end); \
    }
#define PYUNIVERSAL_PICK(name) ::pyuniversal::cpu::pick(generic::name, avx2::name, avx512f::name, avx512vnni::name)
#else
#define PYUNIVERSAL_KERNEL(name, Work)                       \
    namespace generic {                                      \
    void name(const Work& work, int64_t begin, int64_t end); \
    }
#define PYUNIVERSAL_PICK(name) generic::name
#endif

enum class Isa { generic, avx2, avx512f, avx512vnni };

// The best that this CPU has, or the one that the environment variable PYUNIVERSAL_ISA names.
Isa isa();

// For Python: its name, and the names of all that this CPU has, worst first.
std::string instruction_set();
std::vector<std::string> instruction_sets();

template <typename Kernel> Kernel* pick(Kernel* generic, Kernel* avx2, Kernel* avx512f, Kernel* avx512vnni) {
    Kernel* kernels[] = {generic, avx2, avx512f, avx512vnni};
    return kernels[static_cast<int>(isa())];
}

}  // namespace pyuniversal::cpu
