// Exact multiplication by n/d on integers: the formulas of momentumnet/arithmetic/fixed_point.py, bit for bit.
//
// Written once for a word, which is one integer (host and device) or a vector of them (lanes.h). Words are unsigned, so that
// every operation wraps; where the sign counts, it is taken from the top bit.
#pragma once
#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define MN_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define MN_HD __forceinline
#else
#define MN_HD inline __attribute__((always_inline))
#endif

// Without a name, because files are compiled once for each instruction set: no two copies may ever be merged.
namespace {

// floor(t / divisor) for 0 <= t < 2^31 by a multiplication: vector units cannot divide integers.
struct Reciprocal {
    uint32_t multiplier, shift;

    static Reciprocal of(int64_t divisor) {
        uint32_t shift = 0;
        while ((int64_t(1) << shift) < divisor) ++shift;
        return {uint32_t((uint64_t(1) << (31 + shift)) / uint64_t(divisor) + 1), shift};
    }
};

// The same for 64 bits, where a multiply-high does not vectorise either.
struct PlainDivisor {
    uint64_t divisor;

    static PlainDivisor of(int64_t divisor) { return {uint64_t(divisor)}; }
};

// An int32 of which the low `kept` bits are those of x and v; `Store_` is what holds s in memory.
template <int kept, class Store_>
struct WordOf32 {
    using Unsigned = uint32_t;
    using Signed = int32_t;
    using Float = float;  // in which values are scaled and rounded
    using Store = Store_;
    using Divisor = Reciprocal;
    using Scalar = WordOf32;
    static constexpr int bits = 32, kept_bits = kept, width = 1;
    static constexpr bool is_joint = kept < bits;  // x, v and s lie in two words (planes.h)
    static constexpr float limit = float(uint32_t(1) << (kept - 2));  // magnitudes from here on count as overflow

    MN_HD static uint32_t quotient(uint32_t t, const Reciprocal& by) {
        return uint32_t((uint64_t(t + t) * by.multiplier) >> 32) >> by.shift;
    }
    MN_HD static float from_integer(uint32_t value) { return float(int32_t(value)); }
    MN_HD static uint32_t nearest_integer(float value) { return uint32_t(int32_t(rintf(value))); }
    // Within +-limit; NaN becomes 0.
    MN_HD static float saturated(float value) {
        value = value == value ? value : 0.0f;
        value = value < limit ? value : limit;
        return value > -limit ? value : -limit;
    }
    MN_HD static bool is_beyond(float value) { return !(fabsf(value) < limit); }
};

using Word32 = WordOf32<32, uint32_t>;
using Word32Short = WordOf32<32, uint16_t>;
using Word24 = WordOf32<24, uint16_t>;

struct Word64 {
    using Unsigned = uint64_t;
    using Signed = int64_t;
    using Float = double;
    using Store = uint64_t;
    using Divisor = PlainDivisor;
    using Scalar = Word64;
    static constexpr int bits = 64, kept_bits = 64, width = 1;
    static constexpr bool is_joint = false;
    static constexpr double limit = 4611686018427387904.0;  // 2^62

    MN_HD static uint64_t quotient(uint64_t t, const PlainDivisor& by) { return t / by.divisor; }
    MN_HD static double from_integer(uint64_t value) { return double(int64_t(value)); }
    MN_HD static uint64_t nearest_integer(double value) { return uint64_t(int64_t(rint(value))); }
    MN_HD static double saturated(double value) {
        value = value == value ? value : 0.0;
        value = value < limit ? value : limit;
        return value > -limit ? value : -limit;
    }
    MN_HD static bool is_beyond(double value) { return !(fabs(value) < limit); }
};

template <class Word>
struct Arithmetic {
    using Unsigned = typename Word::Unsigned;
    using Signed = typename Word::Signed;
    using Float = typename Word::Float;
    using Divisor = typename Word::Divisor;
    using Number = typename Word::Scalar::Unsigned;  // one integer, whatever the word
    static constexpr int bits = Word::bits, kept_bits = Word::Scalar::kept_bits;
    static constexpr Number overflow_bit = Number(1) << (kept_bits - 2);

    MN_HD static Unsigned shift_signed(Unsigned value, int by) { return (Unsigned)((Signed)value >> by); }

    // The integer that is left of a value in the bits that are kept: two's complement.
    MN_HD static Unsigned wrapped(Unsigned value) {
        return kept_bits == bits ? value : shift_signed(value << (bits - kept_bits), bits - kept_bits);
    }

    // All ones where the value is negative.
    MN_HD static Unsigned sign(Unsigned value) { return shift_signed(value, bits - 1); }

    MN_HD static Unsigned floor_divide(Unsigned value, const Divisor& divisor) {
        const Unsigned negative = sign(value);
        return Word::quotient(value ^ negative, divisor) ^ negative;
    }

    // The same for the store's part of a value. It is negative only where the state is not what forward left.
    MN_HD static Unsigned floor_divide_store(Unsigned value, const Divisor& divisor) {
        if constexpr (Word::width > 1) {
            if (!Word::any_negative(value)) return Word::quotient(value, divisor);
        }
        return floor_divide(value, divisor);
    }

    // The nearest integer, half to even; saturated at +-limit, NaN becomes 0. Where that changes a value, or it is the limit
    // itself, the overflow bit is set.
    MN_HD static Unsigned to_fixed(Float product, Unsigned& overflow) {
        if constexpr (Word::width > 1) {
            const auto beyond = Word::beyond(product);
            if (!Word::any_negative(beyond)) return Word::nearest_integer(product);
            overflow |= beyond & overflow_bit;
        } else {
            overflow |= Word::is_beyond(product) ? overflow_bit : 0;
        }
        return Word::nearest_integer(Word::saturated(product));
    }

    MN_HD static Float to_float(Unsigned value, typename Word::Scalar::Float scale) {
        return Word::from_integer(value) * scale;
    }

    // Bits that are set up to the highest bit of the magnitude; an OR over many tells the largest one's.
    MN_HD static Unsigned magnitude_bits(Unsigned value) { return value ^ sign(value); }

    // 1 where the store's fraction s/bound rounds up; threshold = (bound - 1) / 2.
    MN_HD static Unsigned carry(Unsigned s, Number threshold) { return (threshold - s) >> (bits - 1); }

    // One element's part of the checksum (fixed_point.checksum), a bijection in each of x, v and s; `place` is the
    // element's position times `stride`.
    static constexpr Number stride = 0x1E3779B1;
    MN_HD static Unsigned mix(Unsigned x, Unsigned v, Unsigned s, Unsigned place) {
        constexpr int shift = bits / 2 - 1;
        Unsigned mixed = x * Number(0x27D4EB2F) + v * Number(0x165667B1) + s + place;
        mixed = (mixed ^ (mixed >> shift)) * Number(0x2C1B3C6D);
        return mixed ^ (mixed >> shift);
    }
};

}  // namespace
