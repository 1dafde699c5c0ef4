// The adjoint over a range of elements.
#pragma once
#include "adjoint.h"
#include "cpu_cases.h"
#include "cpu_loops.h"

namespace {

// in_place: the gradient of v is read from where the new one is written; moves_x: that of x is wanted.
template <class Float, bool in_place, bool moves_x>
void adjoint_loop(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end) {
    const Float gamma = Float(adjoint.gamma), weight = Float(adjoint.weight);
    const Float *MN_RESTRICT x = static_cast<const Float*>(gradients.x), *MN_RESTRICT v = static_cast<const Float*>(gradients.v);
    Float* MN_RESTRICT branch = static_cast<Float*>(gradients.branch);
    Float* MN_RESTRICT velocity = static_cast<Float*>(gradients.velocity);
    Float* MN_RESTRICT position = static_cast<Float*>(gradients.position);
    for (int64_t i = begin; i < end; ++i) {
        const auto result = Gradients<Float>::of(x[i], in_place ? velocity[i] : v[i], gamma, weight);
        branch[i] = result.branch, velocity[i] = result.velocity;
        if (moves_x) position[i] = result.position;
    }
}

template <class Float>
void adjoint_as(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end) {
    decide(gradients.velocity == gradients.v, [&](auto in_place) { decide(gradients.position != nullptr, [&](auto moves_x) {
        adjoint_loop<Float, in_place.value, moves_x.value>(adjoint, gradients, begin, end);
    }); });
}

void adjoint(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end) {
    if (adjoint.is_double) adjoint_as<double>(adjoint, gradients, begin, end);
    else adjoint_as<float>(adjoint, gradients, begin, end);
}

}  // namespace
