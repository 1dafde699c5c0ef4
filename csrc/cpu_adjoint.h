// The adjoint over a range of elements.
#pragma once
#include <string.h>

#include "adjoint.h"
#include "cpu_loops.h"

namespace {

// Elements whose results are put together before they are written: a gradient may be written where another was read, which
// compilers would not vectorise.
constexpr int64_t CHUNK = 256;

template <class Float>
void adjoint_as(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end) {
    const Float gamma = Float(adjoint.gamma), weight = Float(adjoint.weight);
    Float branch[CHUNK], velocity[CHUNK], position[CHUNK];
    for (; begin < end; begin += CHUNK) {
        const Float *x = static_cast<const Float*>(gradients.x) + begin, *v = static_cast<const Float*>(gradients.v) + begin;
        const int64_t size = CHUNK < end - begin ? CHUNK : end - begin;
        for (int64_t i = 0; i < size; ++i) {
            const auto result = Gradients<Float>::of(x[i], v[i], gamma, weight);
            branch[i] = result.branch, velocity[i] = result.velocity, position[i] = result.position;
        }
        const size_t bytes = sizeof(Float) * size_t(size);
        memcpy(static_cast<Float*>(gradients.branch) + begin, branch, bytes);
        memcpy(static_cast<Float*>(gradients.velocity) + begin, velocity, bytes);
        if (gradients.position) memcpy(static_cast<Float*>(gradients.position) + begin, position, bytes);
    }
}

void adjoint(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end) {
    if (adjoint.is_double) adjoint_as<double>(adjoint, gradients, begin, end);
    else adjoint_as<float>(adjoint, gradients, begin, end);
}

}  // namespace
