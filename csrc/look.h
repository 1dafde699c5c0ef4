// Values that are looked at: some elements of a few pieces of memory, of any type, in one number.
#pragma once
#include "arithmetic.h"
#include "interface.h"

namespace {

// The bits of an element as an integer without a sign.
MN_HD uint64_t bits_at(const void* data, int32_t bytes, int64_t i) {
    switch (bytes) {
        case 1: return static_cast<const uint8_t*>(data)[i];
        case 2: return static_cast<const uint16_t*>(data)[i];
        case 4: return static_cast<const uint32_t*>(data)[i];
        default: return static_cast<const uint64_t*>(data)[i];
    }
}

// The part of the checksum (fixed_point.checksum, v being the piece's number) of every `step`-th element from `first` on.
MN_HD uint64_t look_at(const MnLook& look, int pieces, int first, int step) {
    uint64_t sum = 0, before = 0;
    for (int piece = 0; piece < pieces; ++piece) {
        for (int i = first; i < look.count[piece]; i += step) {
            const uint64_t value = bits_at(look.data[piece], look.bytes[piece], i * look.stride[piece]);
            sum += Arithmetic<Word64>::mix(value, piece, 0, (before + i) * Arithmetic<Word64>::stride);
        }
        before += look.count[piece];
    }
    return sum;
}

}  // namespace
