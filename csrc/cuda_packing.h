// Packing on CUDA.
#pragma once
#include "cuda_launch.h"
#include "packing.h"

namespace {

// One warp to a block, one lane to a column, so that each access of the warp is to 32 words in a row.
struct Column {
    int64_t first_value, first_word;
    int stride, left;  // columns of the block; elements from the first one on

    __device__ static Column of(int64_t block, int64_t size, int width, int lane) {
        const int64_t rest = size - block * BLOCK;
        const int left = int(rest < BLOCK ? rest : BLOCK);
        return {block * BLOCK + lane, block * COLUMNS * width + lane, int(columns_of(left)), left - lane};
    }
    __device__ bool holds(int row) const { return row * stride < left; }
};

// Calls run(column) for this lane's column of each block that is its warp's.
template <class Run>
__device__ void for_each_column(int64_t size, int width, Run run) {
    const int lane = threadIdx.x % 32;
    const int64_t thread = int64_t(blockIdx.x) * THREADS + threadIdx.x, step = int64_t(gridDim.x) * THREADS / 32;
    for (int64_t block = thread / 32; block * BLOCK < size; block += step) {
        const Column at = Column::of(block, size, width, lane);
        if (lane < at.stride) run(at);
    }
}

template <class Place>
__global__ void __launch_bounds__(THREADS) pack(MnField field, int64_t size, Place plane, uint32_t* words) {
    for_each_column(size, field.width, [=](const Column& at) {
        pack_columns<1>(
            field.width,
            [=](int row, int) { return at.holds(row) ? plane.load(at.first_value + row * at.stride) : 0u; },
            [=](int index, int, uint32_t word) { words[at.first_word + index * at.stride] = word; });
    });
}

template <class Place>
__global__ void __launch_bounds__(THREADS) unpack(MnField field, int64_t size, Place plane, const uint32_t* words) {
    for_each_column(size, field.width, [=](const Column& at) {
        unpack_columns<1>(
            field, [=](int index, int) { return words[at.first_word + index * at.stride]; },
            [=](int row, int, uint32_t number) {
                if (at.holds(row)) plane.keep(at.first_value + row * at.stride, number);
            });
    });
}

template <class Place>
__global__ void __launch_bounds__(THREADS) reach(int64_t size, Place plane, uint32_t* report) {
    uint32_t found = 0;
    const int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x, stride = int64_t(gridDim.x) * THREADS;
    for (int64_t i = first; i < size; i += stride) found |= reach_of(plane.load(i));
    for (int distance = 16; distance; distance /= 2) found |= __shfl_down_sync(~0u, found, distance);
    if (threadIdx.x % 32 == 0 && found) atomicOr(report, found);
}

// A lane to each column.
int64_t packing_threads(int64_t size) { return (size + BLOCK - 1) / BLOCK * COLUMNS; }

}  // namespace
