// The operations over a range of elements, for the instruction set that the compiler is told. The build compiles this file
// once for each (MN_LOOPS names the table), cpu.cpp picks one when the library is loaded. All is local to the file and no
// C++ header is included: an inline function shared with another copy could end up in the wrong instruction set.
#include "cpu_loops.h"

#include "cpu_adjoint.h"
#include "cpu_packing.h"
#include "cpu_parts.h"

#ifndef MN_LOOPS
#define MN_LOOPS portable_loops
#endif

namespace {

// Elements of one thread from which on a tensor does not stay in the caches anyway.
constexpr int64_t LARGE = int64_t(1) << 22;

// Whether the loops read y themselves, in the word's own float type, and subtract x in that type where there is a skip.
template <class Scalar>
bool reads_directly(const MnPlan& plan) {
    return plan.y_dtype == own_dtype<Scalar> && (plan.skip_dtype == MN_NO_SKIP || plan.skip_dtype == own_dtype<Scalar>);
}

// Calls run(tile, y, position) for each tile: y and position in the word's own float type, through buffers where the
// tensors have another one.
template <class Scalar, class Run>
MN_HD void for_each_tile(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Run run) {
    using Float = typename Scalar::Float;
    Float branches[TILE], positions[TILE];
    const Float scale = Constants<Scalar>::of(plan).scale;
    const bool direct_y = reads_directly<Scalar>(plan), direct_position = plan.position_dtype == own_dtype<Scalar>;
    const bool around = direct_position && end - begin >= LARGE && uintptr_t(tensors.position) % 64 == 0;
    const bool direct = (direct_y || !tensors.y) && (direct_position || !tensors.position);
    const int64_t length = direct ? end - begin : TILE;
    for (int64_t start = begin; start < end; start += length) {
        Tile<Scalar> tile(tensors, start, start + length < end ? start + length : end);
        tile.around = around;
        const Float* y = branches;
        Float* position = tensors.position ? positions : nullptr;
        if (tensors.y && direct_y) y = static_cast<const Float*>(tensors.y) + start;
        else if (tensors.y) branches_of(plan, tile, tensors.y, scale, branches);
        if (tensors.position && direct_position) position = static_cast<Float*>(tensors.position) + start;
        run(tile, y, position);
        if (tensors.position && !direct_position) {
            keep_positions(plan.position_dtype, tensors.position, positions, start, tile.size);
        }
    }
    if (around) wait_for_stores<Widest<Scalar>>();
}

template <class Scalar>
struct Range {
    using Float = typename Scalar::Float;

    static void step(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals) {
        const auto c = Constants<Scalar>::of(plan);
        decide(subtracts(plan), [&](auto skip) { decide(tensors.spilled != nullptr, [&](auto spills) {
            for_each_tile<Scalar>(plan, tensors, begin, end, [&](const auto& tile, const Float* y, Float* position) {
                in_parts<Scalar>(tile.size, [&](auto part, int64_t from, int64_t to) {
                    part.template step<skip.value, spills.value>(tile, y, position, from, to, c, totals);
                });
            });
        }); });
    }

    static void undo(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals) {
        const auto c = Constants<Scalar>::of(plan);
        const bool spills = tensors.spilled != nullptr, ahead = plan.ahead != 0;
        decide(subtracts(plan), [&](auto skip) { decide(spills, [&](auto spills) { decide(ahead, [&](auto ahead) {
            for_each_tile<Scalar>(plan, tensors, begin, end, [&](const auto& tile, const Float* y, Float* position) {
                in_parts<Scalar>(tile.size, [&](auto part, int64_t from, int64_t to) {
                    part.template undo<skip.value, spills.value, ahead.value>(tile, y, position, from, to, c, totals);
                });
            });
        }); }); });
    }

    static void rewind(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end) {
        const auto c = Constants<Scalar>::of(plan);
        for_each_tile<Scalar>(plan, tensors, begin, end, [&](const auto& tile, const Float*, Float* position) {
            in_parts<Scalar>(tile.size, [&](auto part, int64_t from, int64_t to) {
                part.rewind(tile, position, from, to, c);
            });
        });
    }

    static void start(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end) {
        const auto c = Constants<Scalar>::of(plan);
        for_each_tile<Scalar>(plan, tensors, begin, end, [&](const auto& tile, const Float* y, Float*) {
            in_parts<Scalar>(tile.size, [&](auto part, int64_t from, int64_t to) { part.start(tile, y, from, to, c); });
        });
    }

    static void position(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end) {
        const auto c = Constants<Scalar>::of(plan);
        for_each_tile<Scalar>(plan, tensors, begin, end, [&](const auto& tile, const Float*, Float* position) {
            in_parts<Scalar>(tile.size, [&](auto part, int64_t from, int64_t to) { part.position(tile, position, from, to, c); });
        });
    }

    static void output(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end) {
        const auto c = Constants<Scalar>::of(plan);
        for_each_tile<Scalar>(plan, tensors, begin, end, [&](const auto& tile, const Float*, Float* position) {
            in_parts<Scalar>(tile.size, [&](auto part, int64_t from, int64_t to) { part.output(tile, position, from, to, c); });
        });
    }

    static void checksum(const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals) {
        const Tile<Scalar> tile(tensors, begin, end);
        in_parts<Scalar>(tile.size, [&](auto part, int64_t from, int64_t to) { part.checksum(tile, from, to, totals); });
    }

private:
    // Where y goes through a buffer, x is subtracted on the way.
    static bool subtracts(const MnPlan& plan) {
        return reads_directly<Scalar>(plan) && plan.skip_dtype != MN_NO_SKIP;
    }
};

void step(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals) {
    with_word(plan, [&](auto word) { Range<decltype(word)>::step(plan, tensors, begin, end, totals); });
}

void undo(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals) {
    with_word(plan, [&](auto word) { Range<decltype(word)>::undo(plan, tensors, begin, end, totals); });
}

void rewind(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals&) {
    with_word(plan, [&](auto word) { Range<decltype(word)>::rewind(plan, tensors, begin, end); });
}

void start(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals&) {
    with_word(plan, [&](auto word) { Range<decltype(word)>::start(plan, tensors, begin, end); });
}

void position(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals&) {
    with_word(plan, [&](auto word) { Range<decltype(word)>::position(plan, tensors, begin, end); });
}

void output(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals&) {
    with_word(plan, [&](auto word) { Range<decltype(word)>::output(plan, tensors, begin, end); });
}

void checksum(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals) {
    with_word(plan, [&](auto word) { Range<decltype(word)>::checksum(tensors, begin, end, totals); });
}

}  // namespace

extern const Loops MN_LOOPS = {step, undo, rewind, checksum, start, position, output, pack, unpack, reach, adjoint};
