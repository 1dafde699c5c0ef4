// What one instruction set offers: the operations over a range of elements.
#pragma once
#include <stdint.h>

#include "interface.h"

struct Totals {
    uint64_t magnitudes;  // OR
    uint64_t checksum;    // sum
};

// From element `begin` to `end`, exclusive; adds to the totals.
using Loop = void (*)(const MnPlan& plan, const MnTensors& tensors, int64_t begin, int64_t end, Totals& totals);

struct Loops {
    Loop step, undo, rewind, checksum;
};

extern const Loops portable_loops, avx2_loops, avx512_loops;
