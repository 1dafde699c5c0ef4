// The adjoint on CUDA.
#pragma once
#include "adjoint.h"
#include "cuda_launch.h"

namespace {

// velocity may be v: an element is read before it is written, by the same thread.
template <class X, class V>
__global__ void __launch_bounds__(THREADS)
    adjoint(int64_t size, int64_t groups, typename X::Float gamma, typename X::Float weight, const typename X::Raw* x,
            const typename V::Raw* v, typename X::Raw* branch, typename V::Raw* velocity, typename X::Raw* position) {
    using Float = typename X::Float;
    const int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x, stride = int64_t(gridDim.x) * THREADS;
    for (int64_t group = first; group < groups; group += stride) {
        const auto xs = four<typename X::Raw>(x, group);
        const auto vs = four<typename V::Raw>(v, group);
        Four<typename X::Raw> branches, positions;
        Four<typename V::Raw> velocities;
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
            const auto result = Gradients<Float>::of(X::from(xs.at[lane]), V::from(vs.at[lane]), gamma, weight);
            branches.at[lane] = X::to(result.branch), velocities.at[lane] = V::to(result.velocity);
            positions.at[lane] = X::to(result.position);
        }
        four<typename X::Raw>(branch, group) = branches, four<typename V::Raw>(velocity, group) = velocities;
        if (position) four<typename X::Raw>(position, group) = positions;
    }
    for (int64_t i = 4 * groups + first; i < size; i += stride) {
        const auto result = Gradients<Float>::of(X::from(x[i]), V::from(v[i]), gamma, weight);
        branch[i] = X::to(result.branch), velocity[i] = V::to(result.velocity);
        if (position) position[i] = X::to(result.position);
    }
}

template <class X, class V>
int32_t run_adjoint(const MnAdjoint& constants, int64_t size, int32_t device, void* stream, const void* x, const void* v,
                    void* branch, void* velocity, void* position) {
    using Float = typename X::Float;
    const bool in_groups = is_aligned(x, 16) && is_aligned(v, 16) && is_aligned(branch, 16) && is_aligned(velocity, 16) &&
                           is_aligned(position, 16);
    const int64_t groups = in_groups ? size / 4 : 0;
    return run_on(device, groups ? groups : size, [&](dim3 grid) {
        adjoint<X, V><<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
            size, groups, Float(constants.gamma), Float(constants.weight), static_cast<const typename X::Raw*>(x),
            static_cast<const typename V::Raw*>(v), static_cast<typename X::Raw*>(branch),
            static_cast<typename V::Raw*>(velocity), static_cast<typename X::Raw*>(position));
    });
}

}  // namespace
