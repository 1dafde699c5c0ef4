// The CPU library: picks an instruction set, shares the elements among threads, adds up the report.
#include <stdint.h>
#include <string.h>

#include <atomic>

#include "cpu_loops.h"
#include "cpu_threads.h"
#include "look.h"
#include "packing.h"

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

void write_report(const MnPlan& plan, const Totals& totals, void* report) {
    if (!report) return;
    const uint64_t words[2] = {totals.magnitudes, totals.checksum};
    if (plan.word_bits < 64) {
        const uint32_t low[2] = {uint32_t(words[0]), uint32_t(words[1])};
        memcpy(report, low, sizeof low);
    } else {
        memcpy(report, words, sizeof words);
    }
}

int32_t run(Loop loop, const MnPlan* plan, int64_t size, int threads, const MnTensors& tensors) {
    std::atomic<uint64_t> magnitudes{0}, checksum{0};
    share(size, CACHE_LINE, threads, [&](int64_t begin, int64_t end) {
        Totals totals{0, 0};
        loop(*plan, tensors, begin, end, totals);
        magnitudes |= totals.magnitudes;
        checksum += totals.checksum;
    });
    write_report(*plan, {magnitudes, checksum}, tensors.report);
    return 0;
}

int32_t run(PackingLoop loop, const MnField* field, int64_t size, int threads, uint32_t* first, uint32_t* second,
            uint32_t* words) {
    share(size, BLOCK, threads, [&](int64_t begin, int64_t end) { loop(*field, first, second, words, begin, end); });
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
    openmp = {reinterpret_cast<OpenMp::Parallel>(parallel), reinterpret_cast<OpenMp::Query>(thread),
              reinterpret_cast<OpenMp::Query>(threads)};
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

int32_t mn_start(const MnPlan* plan, int64_t size, int32_t threads, void*, void* x, void* v, void* s, const void* y) {
    return run(loops().start, plan, size, threads, {x, v, s, y, nullptr, nullptr, nullptr});
}

int32_t mn_position(const MnPlan* plan, int64_t size, int32_t threads, void*, void* x, void* position) {
    return run(loops().position, plan, size, threads, {x, nullptr, nullptr, nullptr, position, nullptr, nullptr});
}

int32_t mn_output(const MnPlan* plan, int64_t size, int32_t threads, void*, void* x, void* v, void* position) {
    return run(loops().output, plan, size, threads, {x, v, nullptr, nullptr, position, nullptr, nullptr});
}

int32_t mn_reach(const MnField* field, int64_t size, int32_t threads, void*, uint32_t* first, uint32_t* second,
                 uint32_t* report) {
    std::atomic<uint32_t> found{0};
    const ReachLoop loop = loops().reach;
    share(size, CACHE_LINE, threads, [&](int64_t begin, int64_t end) { found |= loop(*field, first, second, begin, end); });
    *report |= found;
    return 0;
}

int32_t mn_pack(const MnField* field, int64_t size, int32_t threads, void*, uint32_t* first, uint32_t* second,
                uint32_t* words) {
    return run(loops().pack, field, size, threads, first, second, words);
}

int32_t mn_unpack(const MnField* field, int64_t size, int32_t threads, void*, uint32_t* first, uint32_t* second,
                  uint32_t* words) {
    return run(loops().unpack, field, size, threads, first, second, words);
}

int32_t mn_adjoint(const MnAdjoint* adjoint, int64_t size, int32_t threads, void*, const void* grad_x, const void* grad_v,
                   void* grad_branch, void* grad_velocity, void* grad_position) {
    const MnGradients gradients{grad_x, grad_v, grad_branch, grad_velocity, grad_position};
    const AdjointLoop loop = loops().adjoint;
    share(size, CACHE_LINE, threads, [&](int64_t begin, int64_t end) { loop(*adjoint, gradients, begin, end); });
    return 0;
}

int32_t mn_look(const MnLook* look, int64_t pieces, int32_t, void*, int64_t* report) {
    report[0] = 0, report[1] = int64_t(look_at(*look, int(pieces), 0, 1));
    return 0;
}
