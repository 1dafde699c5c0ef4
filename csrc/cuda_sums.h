// Reports on CUDA: what the threads of a block have added up.
#pragma once
#include "arithmetic.h"
#include "cuda_launch.h"
#include "planes.h"

namespace {

// The report of the elements that one thread has passed over.
template <class Word>
struct Sums {
    typename Word::Unsigned magnitudes = 0, checksum = 0;

    __device__ void add(const Element<Word>& e, int64_t position) {
        using Number = typename Word::Unsigned;
        checksum += Arithmetic<Word>::mix(e.x, e.v, e.s, Number(position) * Arithmetic<Word>::stride);
    }

    // Adds the sums of all threads of the block to the report.
    __device__ void into(void* report) {
        __shared__ typename Word::Unsigned parts[2][THREADS / 32];
        fold(32);
        if (threadIdx.x % 32 == 0) parts[0][threadIdx.x / 32] = magnitudes, parts[1][threadIdx.x / 32] = checksum;
        __syncthreads();
        if (threadIdx.x >= 32) return;
        const bool used = threadIdx.x < THREADS / 32;
        magnitudes = used ? parts[0][threadIdx.x] : 0, checksum = used ? parts[1][threadIdx.x] : 0;
        fold(THREADS / 32);
        if (threadIdx.x > 0) return;
        using Atomic = decltype(atomic_type(magnitudes));
        if (magnitudes) atomicOr(static_cast<Atomic*>(report), Atomic(magnitudes));
        atomicAdd(static_cast<Atomic*>(report) + 1, Atomic(checksum));
    }

private:
    __device__ void fold(int lanes) {
        for (int distance = lanes / 2; distance; distance /= 2) {
            magnitudes |= __shfl_down_sync(~0u, magnitudes, distance);
            checksum += __shfl_down_sync(~0u, checksum, distance);
        }
    }
    static unsigned atomic_type(uint32_t);
    static unsigned long long atomic_type(uint64_t);
};

}  // namespace
