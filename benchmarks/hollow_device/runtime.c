// A CUDA runtime without a device, to be preloaded in front of the real one (libcudart of CUDA 13).
//
// PyTorch's dispatcher, caching allocator, streams and events, and the kernels of csrc/cuda.cu, run on it as they are.
// Memory of the device is mapped and never touched; a kernel that is launched does nothing. What is left of a training
// step is what it asks of the device: bytes, launches, copies, waits.
// Only what such a step calls stands here. CUDA graphs do not.

#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// The device that it passes for: PyTorch chooses kernels and grids by these.
enum { COMPUTE_MAJOR = 9, COMPUTE_MINOR = 0, MULTIPROCESSORS = 132, WARP = 32, LARGEST_GRID = 2147483647 };
enum { THREADS_OF_A_BLOCK = 1024, THREADS_OF_A_MULTIPROCESSOR = 2048, BLOCKS_OF_A_MULTIPROCESSOR = 8 };
enum { SHARED_MEMORY = 49152, SHARED_MEMORY_AT_MOST = 232448 };
enum { CUDA_VERSION_SHOWN = 13000, PAGE = 4096 };
static const size_t TOTAL_MEMORY = 80ull << 30;

// ---------------------------------------------------------------- what is counted

static long launches, copies_to_host, waits;

void hollow_counts(long* counts) {
    counts[0] = launches;
    counts[1] = copies_to_host;
    counts[2] = waits;
}

// Called by the products of blas.c, which are a kernel each.
void hollow_launch(void) { __atomic_add_fetch(&launches, 1, __ATOMIC_RELAXED); }

// The device comes to what it was asked for only when somebody waits for that: `asked` counts the events that were
// recorded, on whatever stream, `done` the last one that was waited for.
static long asked, done;

struct event {
    long recorded;
};

static cudaError_t waited(void) {
    done = asked;
    __atomic_add_fetch(&waits, 1, __ATOMIC_RELAXED);
    return cudaSuccess;
}

// ---------------------------------------------------------------- the device

static __thread int current_device;

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDA_VERSION_SHOWN;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* found, int device) {
    *found = (struct cudaDeviceProp){
        .name = "hollow device, sized as an H100",
        .major = COMPUTE_MAJOR,
        .minor = COMPUTE_MINOR,
        .multiProcessorCount = MULTIPROCESSORS,
        .totalGlobalMem = TOTAL_MEMORY,
        .warpSize = WARP,
        .maxThreadsPerBlock = THREADS_OF_A_BLOCK,
        .maxThreadsPerMultiProcessor = THREADS_OF_A_MULTIPROCESSOR,
        .maxThreadsDim = {THREADS_OF_A_BLOCK, THREADS_OF_A_BLOCK, 64},
        .maxGridSize = {LARGEST_GRID, 65535, 65535},
        .regsPerBlock = 65536,
        .sharedMemPerBlock = SHARED_MEMORY,
        .sharedMemPerBlockOptin = SHARED_MEMORY_AT_MOST,
        .sharedMemPerMultiprocessor = 233472,
        .l2CacheSize = 50 << 20,
        .textureAlignment = 512,
    };
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = MULTIPROCESSORS; break;
        case cudaDevAttrComputeCapabilityMajor: *value = COMPUTE_MAJOR; break;
        case cudaDevAttrComputeCapabilityMinor: *value = COMPUTE_MINOR; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = THREADS_OF_A_BLOCK; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS_OF_A_MULTIPROCESSOR; break;
        case cudaDevAttrMaxGridDimX: *value = LARGEST_GRID; break;
        case cudaDevAttrWarpSize: *value = WARP; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_MEMORY; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_MEMORY_AT_MOST; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult* result
) {
    *function = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return "the hollow device has no such function"; }
const char* cudaGetErrorName(cudaError_t error) { return "hollow"; }

// ---------------------------------------------------------------- memory

// A page in front of the memory holds its size.
cudaError_t cudaMalloc(void** memory, size_t size) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char* mapped = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapped == MAP_FAILED) return cudaErrorMemoryAllocation;
    *(size_t*)mapped = size + PAGE;
    *memory = mapped + PAGE;
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    if (memory) {
        char* mapped = (char*)memory - PAGE;
        munmap(mapped, *(size_t*)mapped);
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* unused, size_t* total) {
    *unused = *total = TOTAL_MEMORY;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t size, unsigned flags) {
    return posix_memalign(memory, PAGE, size) ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t size) { return cudaHostAlloc(memory, size, 0); }

cudaError_t cudaFreeHost(void* memory) {
    free(memory);
    return cudaSuccess;
}

// The device holds no values: nothing is copied there, and what is read back is zero.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind == cudaMemcpyHostToHost) memcpy(to, from, size);
    if (kind == cudaMemcpyDeviceToHost) {
        memset(to, 0, size);
        __atomic_add_fetch(&copies_to_host, 1, __ATOMIC_RELAXED);
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
    cudaMemcpyAsync(to, from, size, kind, NULL);
    return waited();
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t size, cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaMemset(void* memory, int value, size_t size) { return cudaSuccess; }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* found, const void* memory) {
    *found = (struct cudaPointerAttributes){.type = cudaMemoryTypeDevice};
    return cudaSuccess;
}

// ---------------------------------------------------------------- streams and events

// Streams are numbers: all that is queued is done in order.
static void* next_handle(void) {
    static long last = 0x1000;
    return (void*)__atomic_add_fetch(&last, 16, __ATOMIC_RELAXED);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = next_handle();
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
    *priority = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph,
    const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges, size_t* count
) {
    return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    *event = calloc(1, sizeof(struct event));
    return *event ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return cudaSuccess; }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    ((struct event*)event)->recorded = ++asked;
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return ((struct event*)event)->recorded <= done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (cudaEventQuery(event) == cudaErrorNotReady) {
        long recorded = ((struct event*)event)->recorded;
        waited();
        done = recorded;
    }
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waited(); }
cudaError_t cudaDeviceSynchronize(void) { return waited(); }

// ---------------------------------------------------------------- kernels

cudaError_t cudaLaunchKernel(
    const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream
) {
    hollow_launch();
    return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
    hollow_launch();
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads, size_t shared) {
    *blocks = BLOCKS_OF_A_MULTIPROCESSOR;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void* kernel, int threads, size_t shared, unsigned flags
) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* found, const void* kernel) {
    *found = (struct cudaFuncAttributes){
        .maxThreadsPerBlock = THREADS_OF_A_BLOCK,
        .numRegs = 32,
        .binaryVersion = 10 * COMPUTE_MAJOR + COMPUTE_MINOR,
        .ptxVersion = 10 * COMPUTE_MAJOR + COMPUTE_MINOR,
    };
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, enum cudaFuncAttribute attribute, int value) {
    return cudaSuccess;
}

// What nvcc makes of `kernel<<<grid, block>>>(...)`, and of the code that a library holds for the device.

static __thread struct {
    dim3 grid, block;
    size_t shared;
    void* stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* stream) {
    configuration.grid = grid;
    configuration.block = block;
    configuration.shared = shared;
    configuration.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared = configuration.shared;
    *(void**)stream = configuration.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream
) {
    hollow_launch();
    return cudaSuccess;
}

void** __cudaRegisterFatBinary(void* binary) {
    static void* handle;
    return &handle;
}

void __cudaRegisterFatBinaryEnd(void** handle) {}
void __cudaUnregisterFatBinary(void** handle) {}

void __cudaRegisterFunction(
    void** handle, const char* host, char* device, const char* name, int limit, void* thread, void* block,
    void* block_size, void* grid_size, int* warp
) {}

void __cudaRegisterVar(
    void** handle, char* host, char* device, const char* name, int external, size_t size, int constant, int global
) {}
