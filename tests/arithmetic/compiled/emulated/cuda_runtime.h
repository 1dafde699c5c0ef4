// The CUDA runtime as far as csrc uses it, on the CPU: the threads of a block take turns, and wait for one another where they
// synchronise or shuffle. What a GPU would leave undefined ends the process with a message.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static  // blocks run one after the other

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
struct cudaFuncAttributes {};

struct dim3 {
    unsigned x;
    explicit dim3(unsigned x) : x(x) {}
};

namespace emulated {

// Processors: few, so that threads have several elements each.
constexpr int DEVICES = 2, PROCESSORS = 1, WARP = 32, STACK = 1 << 16;

struct Index {
    unsigned x;
};
inline Index thread_index, block_index, grid_size;
inline int device = 0, launched_on = 0;

[[noreturn]] inline void fail(const char* why) {
    fprintf(stderr, "block %u, thread %u: %s\n", block_index.x, thread_index.x, why);
    abort();
}

// Those that wait for one another: a block, or a warp.
struct Meeting {
    int members = 0, arrived = 0;
    long held = 0;  // how often all have met
};

struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    bool ended = false;
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Meeting> warps;
    std::vector<uint64_t> shown;  // what each thread shows the others of its warp
    Meeting all;
    ucontext_t scheduler;
    long changes = 0;  // threads that have ended and meetings that were held
    void (*body)(void*);
    void* arguments;
};
inline Block* block;

inline void enter() {
    block->body(block->arguments);
    const unsigned self = thread_index.x;
    Meeting& warp = block->warps[self / WARP];
    if (warp.arrived || block->all.arrived) fail("ended while others wait for it");
    --warp.members, --block->all.members, ++block->changes;
    block->threads[self].ended = true;
    swapcontext(&block->threads[self].context, &block->scheduler);
}

inline void meet(Meeting& meeting) {
    const long before = meeting.held;
    const unsigned self = thread_index.x;
    if (++meeting.arrived == meeting.members) {
        meeting.arrived = 0, ++meeting.held, ++block->changes;
        return;
    }
    while (meeting.held == before) swapcontext(&block->threads[self].context, &block->scheduler);
}

inline void run_block(unsigned threads) {
    block->threads = std::vector<Thread>(threads), block->shown.assign(threads, 0), block->all = {int(threads)};
    block->warps.assign((threads + WARP - 1) / WARP, {});
    for (unsigned i = 0; i < threads; ++i) {
        Thread& thread = block->threads[i];
        ++block->warps[i / WARP].members;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data(), thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, enter, 0);
    }
    for (unsigned left = threads; left;) {
        const long before = block->changes;
        left = 0;
        for (unsigned i = 0; i < threads; ++i) {
            if (block->threads[i].ended) continue;
            thread_index.x = i;
            swapcontext(&block->scheduler, &block->threads[i].context);
            left += !block->threads[i].ended;
        }
        if (left && block->changes == before) fail("all that have not ended wait for others");
    }
}

// kernel<<<grid, threads>>>(arguments...)
template <class Kernel>
void launch(dim3 grid, unsigned threads, Kernel kernel) {
    if (!grid.x) fail("a launch of no blocks");
    launched_on = device;
    Block state;
    block = &state, grid_size.x = grid.x;
    state.body = [](void* kernel) { (*static_cast<Kernel*>(kernel))(); };
    state.arguments = &kernel;
    for (block_index.x = 0; block_index.x < grid.x; ++block_index.x) run_block(threads);
    block = nullptr;
}

}  // namespace emulated

// For tests: the current device, another one, and that of the last launch.
#define EMULATED_EXPORT extern "C" __attribute__((visibility("default"), used))
EMULATED_EXPORT int emulated_device() { return emulated::device; }
EMULATED_EXPORT void emulated_make_current(int device) { emulated::device = device; }
EMULATED_EXPORT int emulated_launched_on() { return emulated::launched_on; }

#define threadIdx emulated::thread_index
#define blockIdx emulated::block_index
#define gridDim emulated::grid_size

inline void __syncthreads() { emulated::meet(emulated::block->all); }

template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance) {
    using namespace emulated;
    const unsigned self = thread_index.x;
    Meeting& warp = block->warps[self / WARP];
    if (mask != ~0u || warp.members != WARP) fail("a shuffle that not all lanes of the warp take part in");
    block->shown[self] = value;
    meet(warp);
    const bool inside = self % WARP + distance < WARP;
    const T found = inside ? T(block->shown[self + distance]) : value;
    meet(warp);
    return found;
}

template <class T>
T atomicAdd(T* to, T value) {
    const T before = *to;
    *to = before + value;
    return before;
}

template <class T>
T atomicOr(T* to, T value) {
    const T before = *to;
    *to = before | value;
    return before;
}

inline cudaError_t cudaGetDevice(int* device) { return *device = emulated::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= emulated::DEVICES) return cudaErrorInvalidDevice;
    return emulated::device = device, cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = emulated::PROCESSORS, cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid device ordinal" : "no error"; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    return cudaSuccess;
}
