// The adjoint over a range of elements.
#pragma once
#include "adjoint.h"
#include "cpu_cases.h"
#include "cpu_loops.h"

namespace {

// in_place: the gradient of v is read from where the new one is written; moves_x: that of x is wanted.
template <class X, class V, bool in_place, bool moves_x>
void adjoint_loop(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end) {
    using Float = typename X::Float;
    const Float gamma = Float(adjoint.gamma), weight = Float(adjoint.weight);
    const auto *MN_RESTRICT x = static_cast<const typename X::Raw*>(gradients.x);
    const auto *MN_RESTRICT v = static_cast<const typename V::Raw*>(gradients.v);
    auto* MN_RESTRICT branch = static_cast<typename X::Raw*>(gradients.branch);
    auto* MN_RESTRICT velocity = static_cast<typename V::Raw*>(gradients.velocity);
    auto* MN_RESTRICT position = static_cast<typename X::Raw*>(gradients.position);
    for (int64_t i = begin; i < end; ++i) {
        const auto result = Gradients<Float>::of(X::from(x[i]), V::from(in_place ? velocity[i] : v[i]), gamma, weight);
        branch[i] = X::to(result.branch), velocity[i] = V::to(result.velocity);
        if (moves_x) position[i] = X::to(result.position);
    }
}

void adjoint(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end) {
    with_types_of(adjoint, [&](auto x, auto v) {
        decide(gradients.velocity == gradients.v, [&](auto in_place) { decide(gradients.position != nullptr, [&](auto moves_x) {
            adjoint_loop<decltype(x), decltype(v), in_place.value, moves_x.value>(adjoint, gradients, begin, end);
        }); });
    });
}

}  // namespace
