// What all kernels of the CUDA library share: accesses of four elements, the device, the grid.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <atomic>

namespace {

constexpr int THREADS = 256, BLOCKS_PER_PROCESSOR = 8;

// Four values in one access, or in two of 16 bytes.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
    T at[4];
};

template <class T>
__device__ __forceinline__ Four<T>& four(void* data, int64_t group) { return static_cast<Four<T>*>(data)[group]; }

template <class T>
__device__ __forceinline__ const Four<T>& four(const void* data, int64_t group) {
    return static_cast<const Four<T>*>(data)[group];
}

// Makes a device current, and gives the former one back.
class Device {
public:
    // Not in the list of initialisers: `former`, which is declared behind `status`, would be made 0 once it is known.
    explicit Device(int device) {
        status = cudaGetDevice(&former);
        if (status == cudaSuccess && former != device) status = cudaSetDevice(device);
        moved = status == cudaSuccess && former != device;
    }
    ~Device() {
        if (moved) cudaSetDevice(former);
    }
    cudaError_t status;

private:
    int former = 0;
    bool moved = false;
};

bool is_aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// How many processors a device has: asked once, as a launch is to cost the host little.
cudaError_t count_processors(int device, int& processors) {
    constexpr int REMEMBERED = 64;
    static std::atomic<int> known[REMEMBERED];  // 0: not asked yet
    const bool remembers = 0 <= device && device < REMEMBERED;
    processors = remembers ? known[device].load(std::memory_order_relaxed) : 0;
    if (processors) return cudaSuccess;
    const cudaError_t status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (status == cudaSuccess && remembers) known[device].store(processors, std::memory_order_relaxed);
    return status;
}

// Calls run(grid), which launches a kernel for `work` threads or fewer.
template <class Run>
cudaError_t launch_grid(int64_t work, int device, Run run) {
    int processors = 1;
    const cudaError_t status = count_processors(device, processors);
    if (status != cudaSuccess) return status;
    const int64_t blocks = (work + THREADS - 1) / THREADS, most = int64_t(processors) * BLOCKS_PER_PROCESSOR;
    run(dim3(unsigned(blocks < most ? blocks : most)));
    return cudaGetLastError();
}

// The status, which is forgotten here: the next launch would report it once more.
int32_t finished(cudaError_t status) {
    if (status != cudaSuccess) cudaGetLastError();
    return status;
}

// Launches a kernel for `work` threads or fewer on a device; nothing where there is no work.
template <class Run>
int32_t run_on(int32_t device, int64_t work, Run run) {
    const Device current(device);
    if (current.status != cudaSuccess || work == 0) return finished(current.status);
    return finished(launch_grid(work, device, run));
}

}  // namespace
