// The CPU library: picks an instruction set, shares the elements among threads, adds up the report.
#include <stdint.h>
#include <string.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu_loops.h"

namespace {

struct Variant {
    const char* name;
    const Loops* loops;
    bool (*runs_here)();
};

bool always() { return true; }
#ifdef MN_HAS_AVX2
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#endif
#ifdef MN_HAS_AVX512
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first.
const Variant variants[] = {
#ifdef MN_HAS_AVX512
    {"avx512", &avx512_loops, has_avx512},
#endif
#ifdef MN_HAS_AVX2
    {"avx2", &avx2_loops, has_avx2},
#endif
    {"portable", &portable_loops, always},
};

const Variant* best() {
    const Variant* variant = variants;
    while (!variant->runs_here()) ++variant;
    return variant;
}

std::atomic<const Variant*> chosen{best()};

// Of the OpenMP library that PyTorch has loaded: a second one would bring threads of its own that fight with its.
using ParallelRegion = void (*)(void*);
using Parallel = void (*)(ParallelRegion, void*, unsigned threads, unsigned flags);
using Query = int (*)();
Parallel openmp_parallel = nullptr;
Query openmp_thread = nullptr, openmp_threads = nullptr;

struct Job {
    Loop loop;
    const MnPlan& plan;
    const MnTensors& tensors;
    int64_t size;
    std::atomic<uint64_t> magnitudes{0}, checksum{0};

    void share(int64_t thread, int64_t threads) {
        // Whole cache lines of every tensor, the bytes included, so that no two threads write to one.
        const int64_t lines = (size + 63) / 64;
        const int64_t begin = lines * thread / threads * 64, end = lines * (thread + 1) / threads * 64;
        Totals totals{0, 0};
        if (begin < end) loop(plan, tensors, begin, end < size ? end : size, totals);
        magnitudes |= totals.magnitudes;
        checksum += totals.checksum;
    }
};

void share_of_this_thread(void* job) { static_cast<Job*>(job)->share(openmp_thread(), openmp_threads()); }

void run_threads(Job& job, int64_t count) {
    std::vector<std::thread> threads;
    int64_t next = 1;
    try {
        for (; next < count; ++next) threads.emplace_back([&job, next, count] { job.share(next, count); });
    } catch (const std::system_error&) {
        // No more threads to be had: this one does their shares.
    }
    job.share(0, count);
    for (; next < count; ++next) job.share(next, count);
    for (auto& thread : threads) thread.join();
}

void write_report(const Job& job) {
    if (!job.tensors.report) return;
    const uint64_t words[2] = {job.magnitudes, job.checksum};
    if (job.plan.word_bits == 32) {
        const uint32_t low[2] = {uint32_t(words[0]), uint32_t(words[1])};
        memcpy(job.tensors.report, low, sizeof low);
    } else {
        memcpy(job.tensors.report, words, sizeof words);
    }
}

int32_t run(Loop loop, const MnPlan* plan, int64_t size, int threads, const MnTensors& tensors) {
    Job job{loop, *plan, tensors, size};
    if (threads < 2) job.share(0, 1);
    else if (openmp_parallel) openmp_parallel(share_of_this_thread, &job, unsigned(threads), 0);
    else run_threads(job, threads);
    write_report(job);
    return 0;
}

const Loops& loops() { return *chosen.load()->loops; }

}  // namespace

int32_t mn_abi() { return MN_ABI; }

const char* mn_error(int32_t) { return "unknown error"; }

// The instruction set in use; and to take another one, 0 where this machine or this library does not have it.
MN_EXPORT const char* mn_variant() { return chosen.load()->name; }

MN_EXPORT int32_t mn_select_variant(const char* name) {
    for (const Variant& variant : variants) {
        if (strcmp(variant.name, name) == 0 && variant.runs_here()) {
            chosen = &variant;
            return 1;
        }
    }
    return 0;
}

// GOMP_parallel, omp_get_thread_num and omp_get_num_threads; without them std::thread is used.
MN_EXPORT void mn_set_openmp(void* parallel, void* thread, void* threads) {
    openmp_thread = reinterpret_cast<Query>(thread);
    openmp_threads = reinterpret_cast<Query>(threads);
    openmp_parallel = reinterpret_cast<Parallel>(parallel);
}

int32_t mn_step(const MnPlan* plan, int64_t size, int32_t threads, void*, void* x, void* v, void* s, const void* y,
                void* position, uint8_t* spilled, void* report) {
    return run(loops().step, plan, size, threads, {x, v, s, y, position, spilled, report});
}

int32_t mn_undo(const MnPlan* plan, int64_t size, int32_t threads, void*, void* x, void* v, void* s, const void* y,
                void* position, uint8_t* spilled, void* report) {
    return run(loops().undo, plan, size, threads, {x, v, s, y, position, spilled, report});
}

int32_t mn_rewind(const MnPlan* plan, int64_t size, int32_t threads, void*, void* x, void* v, void* s, void* position) {
    return run(loops().rewind, plan, size, threads, {x, v, s, nullptr, position, nullptr, nullptr});
}

int32_t mn_checksum(const MnPlan* plan, int64_t size, int32_t threads, void*, void* x, void* v, void* s, void* report) {
    return run(loops().checksum, plan, size, threads, {x, v, s, nullptr, nullptr, nullptr, report});
}
