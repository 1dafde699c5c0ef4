// Where x, v and s lie while a stream moves: momentumnet/arithmetic/planes.py.
#pragma once
#include "arithmetic.h"
#include "interface.h"

namespace {

template <class Word>
struct Element {
    typename Word::Unsigned x, v, s;
};

// Words that are narrower than their integer have x, v and s of 24, 24 and 16 bits one behind the other in two words of 32
// bits, which the pointers to x and v lead to; there is none to s then.
template <class Unsigned, class Signed>
struct TwoWords {
    MN_HD static Unsigned x(Unsigned first) { return (Unsigned)((Signed)first >> 8); }
    MN_HD static Unsigned v(Unsigned first, Unsigned second) {
        return (Unsigned)((Signed)(first << 24) >> 8) | second >> 16;
    }
    MN_HD static Unsigned s(Unsigned second) { return second & 0xFFFFu; }
    MN_HD static Unsigned first(Unsigned x, Unsigned v) { return x << 8 | (v >> 16 & 0xFFu); }
    MN_HD static Unsigned second(Unsigned v, Unsigned s) { return v << 16 | s; }
};

template <class Word>
using TwoWordsOf = TwoWords<typename Word::Unsigned, typename Word::Signed>;

// x of what its pointer leads to.
template <class Word>
MN_HD typename Word::Unsigned x_of(typename Word::Unsigned first) {
    if constexpr (Word::Scalar::is_joint) return TwoWordsOf<Word>::x(first);
    else return first;
}

// An element from what lies in memory, and what lies there for it.
template <class Word>
MN_HD Element<Word> opened(const Element<Word>& kept) {
    using Two = TwoWordsOf<Word>;
    if constexpr (Word::Scalar::is_joint) return {Two::x(kept.x), Two::v(kept.x, kept.v), Two::s(kept.v)};
    else return kept;
}

template <class Word>
MN_HD Element<Word> closed(const Element<Word>& e) {
    using Two = TwoWordsOf<Word>;
    if constexpr (Word::Scalar::is_joint) return {Two::first(e.x, e.v), Two::second(e.v, e.s), e.s};
    else return e;
}

// One of x, v and s alone: read as an int32, and written without a change to the others.
template <int32_t plane>
struct Plane {
    using Two = TwoWords<uint32_t, int32_t>;

    uint32_t *first, *second;  // the two words for v where it is joint, else `first` alone

    MN_HD uint32_t load(int64_t i) const {
        if constexpr (plane == MN_SHORT_STORE) return reinterpret_cast<const uint16_t*>(first)[i];
        else if constexpr (plane == MN_JOINT_X) return Two::x(first[i]);
        else if constexpr (plane == MN_JOINT_V) return Two::v(first[i], second[i]);
        else if constexpr (plane == MN_JOINT_STORE) return Two::s(first[i]);
        else return first[i];
    }
    MN_HD void keep(int64_t i, uint32_t value) const {
        if constexpr (plane == MN_SHORT_STORE) reinterpret_cast<uint16_t*>(first)[i] = uint16_t(value);
        else if constexpr (plane == MN_JOINT_X) first[i] = value << 8 | (first[i] & 0xFFu);
        else if constexpr (plane == MN_JOINT_V) {
            first[i] = (first[i] & ~0xFFu) | (value >> 16 & 0xFFu);
            second[i] = value << 16 | (second[i] & 0xFFFFu);
        } else if constexpr (plane == MN_JOINT_STORE) first[i] = (first[i] & ~0xFFFFu) | (value & 0xFFFFu);
        else first[i] = value;
    }
};

// The bits up to the highest one of the magnitude of an int32, and its sign as the top one: an OR over many tells in how few
// bits all of them fit.
MN_HD uint32_t reach_of(uint32_t value) { return (value ^ uint32_t(int32_t(value) >> 31)) | (value & 0x80000000u); }

// Calls run(plane) with the plane of a field.
template <class Run>
auto with_plane(const MnField& field, uint32_t* first, uint32_t* second, Run run) {
    switch (field.plane) {
        case MN_SHORT_STORE: return run(Plane<MN_SHORT_STORE>{first, second});
        case MN_JOINT_X: return run(Plane<MN_JOINT_X>{first, second});
        case MN_JOINT_V: return run(Plane<MN_JOINT_V>{first, second});
        case MN_JOINT_STORE: return run(Plane<MN_JOINT_STORE>{first, second});
        default: return run(Plane<MN_WHOLE>{first, second});
    }
}

}  // namespace
