// A short run of elements, and the conversions of its branches and positions from and to the tensors' types.
#pragma once
#include "cpu_cases.h"
#include "cpu_loops.h"
#include "step.h"

namespace {

// Values in another type than the word's own pass through a buffer of this many elements, which stays in the first cache.
constexpr int64_t TILE = 1024;

template <class Scalar>
struct Tile {
    using Number = typename Scalar::Unsigned;

    Number *x, *v;
    typename Scalar::Store* s;
    uint8_t* spilled;
    int64_t begin, size;  // its place in the tensors
    bool around = false;  // whether positions are written past the caches

    Tile(const MnTensors& tensors, int64_t begin, int64_t end)
        : x(at<Number>(tensors.x, begin)), v(at<Number>(tensors.v, begin)), s(at<typename Scalar::Store>(tensors.s, begin)),
          spilled(at<uint8_t>(tensors.spilled, begin)), begin(begin), size(end - begin) {}

private:
    template <class T>
    static T* at(void* data, int64_t begin) { return data ? static_cast<T*>(data) + begin : nullptr; }
};

template <class Scalar>
constexpr int32_t own_dtype = Scalar::bits == 32 ? MN_FLOAT32 : MN_FLOAT64;

// The branches in the word's float type. The types are constants, so that a loop holds one conversion and no choice.
template <class Scalar, int32_t y_dtype, int32_t skip_dtype>
void convert_branches(const Tile<Scalar>& tile, const void* y, typename Scalar::Float scale,
                      typename Scalar::Float* MN_RESTRICT branches) {
    constexpr bool wide = y_dtype == MN_FLOAT64 || skip_dtype == MN_FLOAT64;
    for (int64_t i = 0; i < tile.size; ++i) {
        const auto position = Arithmetic<Scalar>::to_float(x_of<Scalar>(tile.x[i]), scale);
        if constexpr (wide) {
            branches[i] = branch_of(load_double(y_dtype, y, tile.begin + i), skip_dtype, true, position);
        } else {
            branches[i] = branch_of(load_float(y_dtype, y, tile.begin + i), skip_dtype, false, position);
        }
    }
}

template <class Scalar, int32_t y_dtype>
void convert_branches_from(int32_t skip_dtype, const Tile<Scalar>& tile, const void* y, typename Scalar::Float scale,
                           typename Scalar::Float* branches) {
    switch (skip_dtype) {
        case MN_NO_SKIP: return convert_branches<Scalar, y_dtype, MN_NO_SKIP>(tile, y, scale, branches);
        case MN_FLOAT32: return convert_branches<Scalar, y_dtype, MN_FLOAT32>(tile, y, scale, branches);
        case MN_BFLOAT16: return convert_branches<Scalar, y_dtype, MN_BFLOAT16>(tile, y, scale, branches);
        case MN_FLOAT16: return convert_branches<Scalar, y_dtype, MN_FLOAT16>(tile, y, scale, branches);
        default: return convert_branches<Scalar, y_dtype, MN_FLOAT64>(tile, y, scale, branches);
    }
}

template <class Scalar>
void branches_of(const MnPlan& plan, const Tile<Scalar>& tile, const void* y, typename Scalar::Float scale,
                 typename Scalar::Float* branches) {
    const int32_t skip = plan.skip_dtype;
    switch (plan.y_dtype) {
        case MN_FLOAT32: return convert_branches_from<Scalar, MN_FLOAT32>(skip, tile, y, scale, branches);
        case MN_BFLOAT16: return convert_branches_from<Scalar, MN_BFLOAT16>(skip, tile, y, scale, branches);
        case MN_FLOAT16: return convert_branches_from<Scalar, MN_FLOAT16>(skip, tile, y, scale, branches);
        default: return convert_branches_from<Scalar, MN_FLOAT64>(skip, tile, y, scale, branches);
    }
}

template <int32_t dtype, class Float>
void keep_as(void* data, const Float* MN_RESTRICT values, int64_t begin, int64_t size) {
    for (int64_t i = 0; i < size; ++i) store(dtype, data, begin + i, values[i]);
}

template <class Float>
void keep_positions(int32_t dtype, void* data, const Float* values, int64_t begin, int64_t size) {
    switch (dtype) {
        case MN_FLOAT32: return keep_as<MN_FLOAT32>(data, values, begin, size);
        case MN_BFLOAT16: return keep_as<MN_BFLOAT16>(data, values, begin, size);
        case MN_FLOAT16: return keep_as<MN_FLOAT16>(data, values, begin, size);
        default: return keep_as<MN_FLOAT64>(data, values, begin, size);
    }
}

}  // namespace
