// Integers packed to the bits that their values need: the layout of momentumnet/arithmetic/packing.py, bit for bit.
//
// A block is 32 rows of integers. Each column is packed by itself, its 32 fields of `width` bits one behind the other into `width`
// words; so a vector, or a warp, packs as many columns at once as it has lanes, and all of them shift alike.
#pragma once
#include "planes.h"

namespace {

constexpr int ROWS = 32, COLUMNS = 32;
constexpr int64_t BLOCK = ROWS * COLUMNS;

// Columns of the last block, which is cut off after `size` elements.
MN_HD int64_t columns_of(int64_t size) { return (size + ROWS - 1) / ROWS; }

// Some columns of a block: load(row, column) gives an integer, keep(index, column, word) takes a packed word.
template <int columns, class Load, class Keep>
MN_HD void pack_columns(int width, Load load, Keep keep) {
    const uint32_t mask = ~uint32_t(0) >> (32 - width);
    uint32_t open[columns] = {};  // the words that are being filled
    int filled = 0, index = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int row = 0; row < ROWS; ++row) {
        uint32_t fields[columns];
        for (int column = 0; column < columns; ++column) {
            fields[column] = load(row, column) & mask;
            open[column] |= fields[column] << filled;
        }
        filled += width;
        if (filled < 32) continue;
        filled -= 32;
        for (int column = 0; column < columns; ++column) {
            keep(index, column, open[column]);
            open[column] = fields[column] >> 1 >> (width - filled - 1);  // in two, since a shift by 32 is not defined
        }
        ++index;
    }
}

// The inverse: load(index, column) gives a packed word, keep(row, column, value) takes an integer.
template <int columns, class Load, class Keep>
MN_HD void unpack_columns(const MnField field, Load load, Keep keep) {
    const int width = field.width, above = 32 - width;
    const bool is_signed = field.is_signed;
    const auto extended = [=](uint32_t field) {
        const uint32_t top = field << above;
        return is_signed ? uint32_t(int32_t(top) >> above) : top >> above;
    };
    uint32_t open[columns] = {};
    int used = 32, index = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int row = 0; row < ROWS; ++row, used += width) {
        if (used + width <= 32) {
            for (int column = 0; column < columns; ++column) keep(row, column, extended(open[column] >> used));
            continue;
        }
        for (int column = 0; column < columns; ++column) {
            const uint32_t next = load(index, column);
            keep(row, column, extended((open[column] >> 1 >> (used - 1)) | next << (32 - used)));
            open[column] = next;
        }
        used -= 32;
        ++index;
    }
}

}  // namespace
