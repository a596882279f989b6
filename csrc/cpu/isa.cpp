// Which instruction sets there are, and which one is taken.
#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace pyuniversal::cpu {
namespace {

const char* const kNames[] = {"generic", "avx2", "avx512f", "avx512vnni"};

Isa best() {
#ifdef PYUNIVERSAL_X86
    __builtin_cpu_init();
    // These ask the operating system too, which must save the wider registers.
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::generic;
    const bool skylake =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!skylake) return Isa::avx2;
    return __builtin_cpu_supports("avx512vnni") ? Isa::avx512vnni : Isa::avx512f;
#else
    return Isa::generic;
#endif
}

}  // namespace

std::vector<std::string> instruction_sets() { return {kNames, kNames + static_cast<int>(best()) + 1}; }

Isa isa() {
    static const Isa found = best();
    const char* wanted = std::getenv("PYUNIVERSAL_ISA");
    if (wanted == nullptr || *wanted == '\0') return found;
    std::string known;
    for (int i = 0; i <= static_cast<int>(found); ++i) {
        if (std::string(kNames[i]) == wanted) return static_cast<Isa>(i);
        known += (i ? ", " : "") + std::string(kNames[i]);
    }
    throw std::invalid_argument("PYUNIVERSAL_ISA is " + std::string(wanted) + "; this CPU and this build have " + known);
}

std::string instruction_set() { return kNames[static_cast<int>(isa())]; }

}  // namespace pyuniversal::cpu
