// The adjoint of a step (arithmetic/adjoint.py) at one element, each operation rounded by itself as PyTorch's are.
#pragma once
#include "floats.h"
#include "interface.h"

namespace {

template <class Float>
struct Gradients {
    Float branch, velocity, position;

    MN_HD static Gradients of(Float x, Float v, Float gamma, Float weight) {
        const Float total = x + v, branch = total * weight;
        return {branch, total * gamma, x - branch};
    }
};

// Numbers of one type in memory, and the type in which they are computed.
template <int32_t dtype>
struct Stored {
    using Raw = uint16_t;
    using Float = float;
    MN_HD static float from(uint16_t raw) { return dtype == MN_BFLOAT16 ? from_bfloat16(raw) : from_float16(raw); }
    MN_HD static uint16_t to(float value) { return dtype == MN_BFLOAT16 ? to_bfloat16(value) : to_float16(value); }
};

template <class Value>
struct StoredAsItIs {
    using Raw = Value;
    using Float = Value;
    MN_HD static Value from(Value raw) { return raw; }
    MN_HD static Value to(Value value) { return value; }
};

template <> struct Stored<MN_FLOAT32> : StoredAsItIs<float> {};
template <> struct Stored<MN_FLOAT64> : StoredAsItIs<double> {};

// Calls run with the types of the gradients, as types: those of x, and those of v.
template <class Run>
auto with_types_of(const MnAdjoint& adjoint, Run run) {
    const bool wide = adjoint.velocity_dtype == MN_FLOAT32;
    switch (adjoint.dtype) {
        case MN_FLOAT64: return run(Stored<MN_FLOAT64>(), Stored<MN_FLOAT64>());
        case MN_BFLOAT16: return wide ? run(Stored<MN_BFLOAT16>(), Stored<MN_FLOAT32>())
                                      : run(Stored<MN_BFLOAT16>(), Stored<MN_BFLOAT16>());
        case MN_FLOAT16: return wide ? run(Stored<MN_FLOAT16>(), Stored<MN_FLOAT32>())
                                     : run(Stored<MN_FLOAT16>(), Stored<MN_FLOAT16>());
        default: return run(Stored<MN_FLOAT32>(), Stored<MN_FLOAT32>());
    }
}

}  // namespace
