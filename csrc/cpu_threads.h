// A range of elements shared among threads.
#pragma once
#include <stdint.h>

#include <system_error>
#include <thread>
#include <vector>

namespace {

// Elements: whole cache lines of every tensor, that of bytes included, so that no two threads write to one.
constexpr int64_t CACHE_LINE = 64;

// Of the OpenMP library that PyTorch has loaded: a second one would bring threads of its own that fight with its.
struct OpenMp {
    using Region = void (*)(void*);
    using Parallel = void (*)(Region, void*, unsigned threads, unsigned flags);
    using Query = int (*)();
    Parallel parallel = nullptr;
    Query thread = nullptr, threads = nullptr;
};

OpenMp openmp;

template <class Work>
struct Job {
    const Work& work;
    int64_t size, unit;

    void share(int64_t thread, int64_t threads) const {
        const int64_t units = (size + unit - 1) / unit;
        const int64_t begin = units * thread / threads * unit, end = units * (thread + 1) / threads * unit;
        if (begin < end) work(begin, end < size ? end : size);
    }
    static void share_of_this_thread(void* job) { static_cast<const Job*>(job)->share(openmp.thread(), openmp.threads()); }
};

template <class Work>
void run_threads(const Job<Work>& job, int64_t count) {
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

// Calls work(begin, end) in each thread for its share, which begins at a multiple of `unit`.
template <class Work>
void share(int64_t size, int64_t unit, int threads, const Work& work) {
    Job<Work> job{work, size, unit};
    if (threads < 2) job.share(0, 1);
    else if (openmp.parallel) openmp.parallel(Job<Work>::share_of_this_thread, &job, unsigned(threads), 0);
    else run_threads(job, threads);
}

}  // namespace
