// bfloat16, float16 and float64 beside float32: conversions as PyTorch makes them, from integer operations alone, so that
// every compiler turns them into vector code and every device gives the same bits.
#pragma once
#include <string.h>

#include "arithmetic.h"
#include "interface.h"

namespace {

MN_HD uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

MN_HD float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

MN_HD float from_bfloat16(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

MN_HD uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // half to even
    return uint16_t(value == value ? nearest : 0x7FC0);
}

MN_HD float from_float16(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7FFF) << 13;
    // Subnormals: the fraction as the low bits of 2^-14, less 2^-14.
    const uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - float_of(113u << 23));
    const uint32_t normal = magnitude + ((127u - 15u) << 23);
    const uint32_t special = magnitude | 0x7F800000u;
    const uint32_t finite = magnitude < (1u << 23) ? subnormal : normal;
    return float_of((uint32_t(half & 0x8000) << 16) | (magnitude < (31u << 23) ? finite : special));
}

MN_HD uint16_t to_float16(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
    // Below 2^-14 the addition of 1/2 does the rounding: its last bit is float16's smallest.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
    const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    return uint16_t(((bits >> 16) & 0x8000u) | (magnitude < (143u << 23) ? finite : special));
}

MN_HD float load_float(int32_t dtype, const void* data, int64_t i) {
    if (dtype == MN_BFLOAT16) return from_bfloat16(static_cast<const uint16_t*>(data)[i]);
    if (dtype == MN_FLOAT16) return from_float16(static_cast<const uint16_t*>(data)[i]);
    return static_cast<const float*>(data)[i];
}

MN_HD double load_double(int32_t dtype, const void* data, int64_t i) {
    return dtype == MN_FLOAT64 ? static_cast<const double*>(data)[i] : double(load_float(dtype, data, i));
}

// Float64 goes to the half types by way of float32, as in PyTorch.
template <class Float>
MN_HD void store(int32_t dtype, void* data, int64_t i, Float value) {
    if (dtype == MN_BFLOAT16) static_cast<uint16_t*>(data)[i] = to_bfloat16(float(value));
    else if (dtype == MN_FLOAT16) static_cast<uint16_t*>(data)[i] = to_float16(float(value));
    else if (dtype == MN_FLOAT64) static_cast<double*>(data)[i] = double(value);
    else static_cast<float*>(data)[i] = float(value);
}

MN_HD float round_float(int32_t dtype, float value) {
    if (dtype == MN_BFLOAT16) return from_bfloat16(to_bfloat16(value));
    if (dtype == MN_FLOAT16) return from_float16(to_float16(value));
    return value;
}

}  // namespace
