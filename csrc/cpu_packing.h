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

template <class Place>
void pack_block(const MnField& field, const Place& plane, int64_t begin, uint32_t* words) {
    pack_columns<COLUMNS>(
        field.width, [=](int row, int column) { return plane.load(begin + row * COLUMNS + column); },
        [=](int index, int column, uint32_t word) { words[index * COLUMNS + column] = word; });
}

template <class Place>
void unpack_block(const MnField& field, const Place& plane, int64_t begin, const uint32_t* words) {
    unpack_columns<COLUMNS>(
        field, [=](int index, int column) { return words[index * COLUMNS + column]; },
        [=](int row, int column, uint32_t number) { plane.keep(begin + row * COLUMNS + column, number); });
}

// The last block, cut off: what is there of its columns goes through a whole block of memory.
template <class Place>
void pack_rest(const MnField& field, const Place& plane, int64_t begin, int64_t size, uint32_t* words) {
    const int64_t columns = columns_of(size);
    uint32_t rest[BLOCK], values[BLOCK] = {}, packed[BLOCK];
    for (int64_t i = 0; i < size; ++i) rest[i] = plane.load(begin + i);
    copy_rows(rest, columns, values, COLUMNS, columns, size);
    pack_block(field, Plane<MN_WHOLE>{values, nullptr}, 0, packed);
    copy_rows(packed, COLUMNS, words, columns, columns, columns * field.width);
}

template <class Place>
void unpack_rest(const MnField& field, const Place& plane, int64_t begin, int64_t size, const uint32_t* words) {
    const int64_t columns = columns_of(size);
    uint32_t rest[BLOCK], values[BLOCK], packed[BLOCK] = {};
    copy_rows(words, columns, packed, COLUMNS, columns, columns * field.width);
    unpack_block(field, Plane<MN_WHOLE>{values, nullptr}, 0, packed);
    copy_rows(values, COLUMNS, rest, columns, columns, size);
    for (int64_t i = 0; i < size; ++i) plane.keep(begin + i, rest[i]);
}

void pack(const MnField& field, uint32_t* first, uint32_t* second, uint32_t* words, int64_t begin, int64_t end) {
    with_plane(field, first, second, [=, &field](const auto& plane) {
        uint32_t* to = words + begin / ROWS * field.width;
        int64_t at = begin;
        for (; end - at >= BLOCK; at += BLOCK, to += COLUMNS * field.width) pack_block(field, plane, at, to);
        if (at < end) pack_rest(field, plane, at, end - at, to);
    });
}

uint32_t reach(const MnField& field, uint32_t* first, uint32_t* second, int64_t begin, int64_t end) {
    uint32_t found = 0;
    with_plane(field, first, second, [&](const auto& plane) {
        for (int64_t i = begin; i < end; ++i) found |= reach_of(plane.load(i));
    });
    return found;
}

void unpack(const MnField& field, uint32_t* first, uint32_t* second, uint32_t* words, int64_t begin, int64_t end) {
    with_plane(field, first, second, [=, &field](const auto& plane) {
        const uint32_t* from = words + begin / ROWS * field.width;
        int64_t at = begin;
        for (; end - at >= BLOCK; at += BLOCK, from += COLUMNS * field.width) unpack_block(field, plane, at, from);
        if (at < end) unpack_rest(field, plane, at, end - at, from);
    });
}

}  // namespace
