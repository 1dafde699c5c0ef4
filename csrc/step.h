// The momentum step and its inverse at one word: the whole rule, once, for host and device.
#pragma once
#include "floats.h"
#include "planes.h"

namespace {

// What a plan comes down to for one integer type.
template <class Scalar>
struct Constants {
    using Number = typename Scalar::Unsigned;
    using Float = typename Scalar::Float;
    using Divisor = typename Scalar::Divisor;

    Number n, d, bound, next_bound, offset;
    Number previous_threshold, next_threshold;  // of `carry`, before and after the step
    Divisor by_n, by_d, by_bound, by_next_bound;
    Float factor, scale;

    static Constants of(const MnPlan& plan) {
        return {
            Number(plan.n), Number(plan.d), Number(plan.bound), Number(plan.next_bound), Number(plan.offset),
            Number((plan.previous_bound - 1) / 2), Number((plan.next_bound - 1) / 2),
            Divisor::of(plan.n), Divisor::of(plan.d), Divisor::of(plan.bound), Divisor::of(plan.next_bound),
            Float(plan.factor), Float(ldexp(1.0, -int(plan.exponent))),
        };
    }
};

template <class Word>
struct Momentum : Arithmetic<Word> {
    using Base = Arithmetic<Word>;
    using Unsigned = typename Word::Unsigned;
    using Float = typename Word::Float;
    using C = Constants<typename Word::Scalar>;
    using E = Element<Word>;

    // Takes the scaled branch; returns the store's low byte, which `spills` puts aside. The magnitudes are those of what
    // was to be kept, before it wraps around.
    template <bool spills>
    MN_HD static Unsigned step(E& e, Float branch, Unsigned& magnitudes, const C& c) {
        const Unsigned byte = e.s & 255u;
        const Unsigned s = spills ? Base::shift_signed(e.s, 8) : e.s;
        const Unsigned q = Base::floor_divide(e.v, c.by_d);
        const Unsigned t = (e.v - q * c.d) * c.bound + s + c.offset;
        const Unsigned b = Base::floor_divide_store(t, c.by_next_bound);
        e.s = t - b * c.next_bound;
        const Unsigned v = q * c.n + b + Base::to_fixed(branch, magnitudes);
        e.v = Base::wrapped(v);
        const Unsigned x = e.x + e.v + Base::carry(e.s, c.next_threshold);
        e.x = Base::wrapped(x);
        magnitudes |= Base::magnitude_bits(v) | Base::magnitude_bits(x);
        return byte;
    }

    // Takes v and s back, with the byte put aside; x has been taken back already.
    template <bool spills>
    MN_HD static void undo(E& e, Float branch, Unsigned byte, const C& c) {
        Unsigned overflow{};  // was reported by the step
        const Unsigned v = Base::wrapped(e.v - Base::to_fixed(branch, overflow));
        const Unsigned q = Base::floor_divide(v, c.by_n);
        const Unsigned t = (v - q * c.n) * c.next_bound + e.s - c.offset;
        const Unsigned r = Base::floor_divide_store(t, c.by_bound);
        const Unsigned s = t - r * c.bound;
        e.s = spills ? (s << 8) | byte : s;
        e.v = Base::wrapped(q * c.d + r);
    }

    // Takes x back to the input of the block that led to this v and s.
    MN_HD static void rewind(E& e, const C& c) {
        e.x = Base::wrapped(e.x - (e.v + Base::carry(e.s, c.previous_threshold)));
    }
};

// Calls run(word) with the word of a plan.
template <class Run>
auto with_word(const MnPlan& plan, Run run) {
    if (plan.word_bits == 64) return run(Word64());
    if (plan.word_bits == 24) return run(Word24());
    return plan.store_bits == 16 ? run(Word32Short()) : run(Word32());
}

// f = y - x in the type to which PyTorch promotes the two, or y itself where the block has no skip; `position` is x before it
// was rounded to the type in which the block saw it. `wide`: one of the two is float64.
template <class Float, class Loaded>
MN_HD Float branch_of(Loaded y, int32_t skip_dtype, bool wide, Float position) {
    if (skip_dtype == MN_NO_SKIP) return Float(y);
    if (skip_dtype == MN_FLOAT64) return Float(double(y) - double(position));
    const float seen = round_float(skip_dtype, float(position));
    return wide ? Float(double(y) - double(seen)) : Float(float(y) - seen);
}

}  // namespace
