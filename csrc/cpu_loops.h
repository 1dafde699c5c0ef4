// What one instruction set offers: the operations over a range of elements.
#pragma once
#include <stdint.h>

#include "interface.h"

struct Totals {
    uint64_t magnitudes;  // OR
    uint64_t checksum;    // sum
};

struct MnGradients {
    const void *x, *v;
    void *branch, *velocity, *position;
};

// From element `begin` to `end`, exclusive; adds to the totals.
using Loop = void (*)(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals);

// `begin` is that of a block.
using PackingLoop = void (*)(const MnField& field, uint32_t* first, uint32_t* second, uint32_t* words, int64_t begin,
                             int64_t end);
using ReachLoop = uint32_t (*)(const MnField& field, uint32_t* first, uint32_t* second, int64_t begin, int64_t end);
using AdjointLoop = void (*)(const MnAdjoint& adjoint, const MnGradients& gradients, int64_t begin, int64_t end);

struct Loops {
    Loop step, undo, rewind, checksum, start, position, output;
    PackingLoop pack, unpack;
    ReachLoop reach;
    AdjointLoop adjoint;
};

extern const Loops portable_loops, avx2_loops, avx512_loops;
