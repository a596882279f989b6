// Where quantize puts its int8 and product_ reads it: int8 [panels, groups, 16 neurons, 4 tokens], so that 64 neighbouring bytes are four tokens of sixteen
// neurons: what one instruction multiplies, for either side of a product. Tokens are filled up with zeros; neurons with anything.
#pragma once

#include <cstdint>

namespace pyuniversal::cpu {

constexpr int64_t kPanel = 16, kGroup = 4;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pyuniversal::cpu

#ifdef PYUNIVERSAL_BORDER
#include "../tensor.h"

namespace pyuniversal::cpu {

inline void check_panels(const Tensor& data, const std::string& argument) {
    check(data, argument, "cpu", {"int8"}, {"panels", "groups", "16", "4"}, Layout::contiguous);
    check_equal(data.size(2), argument + ": the third dimension", kPanel, "the neurons of a panel");
    check_equal(data.size(3), argument + ": the fourth dimension", kGroup, "the tokens of a group");
}

}  // namespace pyuniversal::cpu
#endif
