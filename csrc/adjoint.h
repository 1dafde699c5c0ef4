// The adjoint of a step (coupling.adjoint) at one element, each operation rounded by itself as PyTorch's are.
#pragma once
#include "arithmetic.h"
#include "interface.h"

namespace {

template <class Float>
struct Gradients {
    Float branch, velocity, position;

    MN_HD static Gradients of(Float x, Float v, Float gamma, Float weight) {
        const Float total = x + v, branch = total * weight;
        return {branch, total * gamma, x - branch};
    }
};

}  // namespace
