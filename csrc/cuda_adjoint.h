// The adjoint on CUDA.
#pragma once
#include "adjoint.h"
#include "cuda_launch.h"

namespace {

// velocity may be v: an element is read before it is written, by the same thread.
template <class Float>
__global__ void __launch_bounds__(THREADS) adjoint(int64_t size, int64_t groups, Float gamma, Float weight, const Float* x,
                                                   const Float* v, Float* branch, Float* velocity, Float* position) {
    const int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x, stride = int64_t(gridDim.x) * THREADS;
    for (int64_t group = first; group < groups; group += stride) {
        const Four<Float> xs = four<Float>(x, group), vs = four<Float>(v, group);
        Four<Float> branches, velocities, positions;
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
            const auto result = Gradients<Float>::of(xs.at[lane], vs.at[lane], gamma, weight);
            branches.at[lane] = result.branch, velocities.at[lane] = result.velocity, positions.at[lane] = result.position;
        }
        four<Float>(branch, group) = branches, four<Float>(velocity, group) = velocities;
        if (position) four<Float>(position, group) = positions;
    }
    for (int64_t i = 4 * groups + first; i < size; i += stride) {
        const auto result = Gradients<Float>::of(x[i], v[i], gamma, weight);
        branch[i] = result.branch, velocity[i] = result.velocity;
        if (position) position[i] = result.position;
    }
}

template <class Float>
int32_t run_adjoint(const MnAdjoint& constants, int64_t size, int32_t device, void* stream, const void* x, const void* v,
                    void* branch, void* velocity, void* position) {
    const bool in_groups = is_aligned(x, 16) && is_aligned(v, 16) && is_aligned(branch, 16) && is_aligned(velocity, 16) &&
                           is_aligned(position, 16);
    const int64_t groups = in_groups ? size / 4 : 0;
    return run_on(device, groups ? groups : size, [&](dim3 grid) {
        adjoint<Float><<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
            size, groups, Float(constants.gamma), Float(constants.weight), static_cast<const Float*>(x),
            static_cast<const Float*>(v), static_cast<Float*>(branch), static_cast<Float*>(velocity),
            static_cast<Float*>(position));
    });
}

}  // namespace
