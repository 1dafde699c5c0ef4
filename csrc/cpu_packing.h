// Packing over a range of elements that begins with a whole block. Compilers vectorise the loops over the columns of a block.
#pragma once
#include <string.h>

#include "packing.h"

namespace {

// Rows of `columns` words, `size` words in all, from where they lie `stride` apart to where they lie `to_stride` apart.
void copy_rows(const uint32_t* from, int64_t stride, uint32_t* to, int64_t to_stride, int64_t columns, int64_t size) {
    for (; size > 0; size -= columns, from += stride, to += to_stride) {
        memcpy(to, from, sizeof *to * size_t(columns < size ? columns : size));
    }
}

void pack_block(const MnField& field, const uint32_t* value, uint32_t* words) {
    pack_columns<COLUMNS>(
        field.width, [=](int row, int column) { return value[row * COLUMNS + column]; },
        [=](int index, int column, uint32_t word) { words[index * COLUMNS + column] = word; });
}

void unpack_block(const MnField& field, uint32_t* value, const uint32_t* words) {
    unpack_columns<COLUMNS>(
        field, [=](int index, int column) { return words[index * COLUMNS + column]; },
        [=](int row, int column, uint32_t number) { value[row * COLUMNS + column] = number; });
}

void pack(const MnField& field, uint32_t* value, uint32_t* words, int64_t begin, int64_t end) {
    value += begin, words += begin / ROWS * field.width;
    int64_t left = end - begin;
    for (; left >= BLOCK; left -= BLOCK, value += BLOCK, words += COLUMNS * field.width) pack_block(field, value, words);
    if (!left) return;
    // The columns that are cut off, through a whole block.
    const int64_t columns = columns_of(left);
    uint32_t values[BLOCK] = {}, packed[BLOCK];
    copy_rows(value, columns, values, COLUMNS, columns, left);
    pack_block(field, values, packed);
    copy_rows(packed, COLUMNS, words, columns, columns, columns * field.width);
}

void unpack(const MnField& field, uint32_t* value, uint32_t* words, int64_t begin, int64_t end) {
    value += begin, words += begin / ROWS * field.width;
    int64_t left = end - begin;
    for (; left >= BLOCK; left -= BLOCK, value += BLOCK, words += COLUMNS * field.width) unpack_block(field, value, words);
    if (!left) return;
    const int64_t columns = columns_of(left);
    uint32_t values[BLOCK], packed[BLOCK] = {};
    copy_rows(words, columns, packed, COLUMNS, columns, columns * field.width);
    unpack_block(field, values, packed);
    copy_rows(values, COLUMNS, value, columns, columns, left);
}

}  // namespace
