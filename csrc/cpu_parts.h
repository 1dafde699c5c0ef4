// The loops over the elements of a tile, for a word of any width.
#pragma once
#include "cpu_tile.h"
#include "lanes.h"

namespace {

// One word of a tensor, from anywhere in memory.
template <class T>
MN_HD T load(const void* data) {
    T value;
    memcpy(&value, data, sizeof value);
    return value;
}

template <class T>
MN_HD void keep(void* data, T value) { memcpy(data, &value, sizeof value); }

template <class Word>
MN_HD typename Word::Unsigned load_bytes(const uint8_t* bytes) {
    if constexpr (Word::width == 1) return *bytes;
    else return Word::load_bytes(bytes);
}

template <class Word>
MN_HD void keep_bytes(uint8_t* bytes, typename Word::Unsigned value) {
    if constexpr (Word::width == 1) *bytes = uint8_t(value);
    else Word::store_bytes(bytes, value);
}

// The store's word from element i on; 0 where it lies beside x and v.
template <class Word>
MN_HD typename Word::Unsigned load_store(const typename Word::Scalar::Store* s, int64_t i) {
    if constexpr (Word::Scalar::is_joint) return typename Word::Unsigned{};
    else if constexpr (Word::width == 1) return s[i];
    else if constexpr (sizeof *s == 2) return Word::load_halves(s + i);
    else return load<typename Word::Unsigned>(s + i);
}

template <class Word>
MN_HD void keep_store(typename Word::Scalar::Store* s, int64_t i, typename Word::Unsigned value) {
    if constexpr (Word::Scalar::is_joint) return;
    else if constexpr (Word::width == 1) s[i] = typename Word::Scalar::Store(value);
    else if constexpr (sizeof *s == 2) Word::store_halves(s + i, value);
    else keep(s + i, value);
}

// Asks for the memory of words to come: the hardware stops looking ahead at the end of each page. Once in 64 bytes.
template <class Word, class... Data>
MN_HD void fetch_ahead(int64_t i, const Data*... data) {
    if constexpr (Word::width > 1) {
        constexpr int64_t distance = 256;
        if (i % 16 == 0) (__builtin_prefetch(data + i + distance), ...);
    }
}

// `around`: past the caches, where a tensor is larger than they are: memory need not be read before it is written then.
template <class Word>
MN_HD void keep_position(typename Word::Scalar::Float* data, typename Word::Float value, bool around) {
    if constexpr (Word::width > 1) {
        if (around) return Word::store_around_caches(data, value);
    }
    keep(data, value);
}

// Such writes are seen by other threads only after this.
template <class Word>
void wait_for_stores() {
    if constexpr (Word::width > 1) Word::wait_for_stores();
}

// The report of the elements that one word has passed over.
template <class Word>
struct Sums {
    using Unsigned = typename Word::Unsigned;
    using Number = typename Word::Scalar::Unsigned;
    Unsigned magnitudes{}, checksum{}, place;

    explicit Sums(int64_t first) {
        Number places[Word::width];
        for (int lane = 0; lane < Word::width; ++lane) places[lane] = Number(first + lane) * Arithmetic<Word>::stride;
        place = load<Unsigned>(places);
    }
    MN_HD void add(const Element<Word>& e) {
        checksum += Arithmetic<Word>::mix(e.x, e.v, e.s, place);
        place += Number(Word::width) * Arithmetic<Word>::stride;
    }
    void into(Totals& totals) const {
        Number lanes[2][Word::width];
        keep(lanes[0], magnitudes), keep(lanes[1], checksum);
        for (int lane = 0; lane < Word::width; ++lane) {
            totals.magnitudes |= lanes[0][lane];
            totals.checksum += lanes[1][lane];
        }
    }
};

// The loops below take elements begin to end of a tile; `y` and `position` are in the word's float type. Undo and rewind may
// be called without a position.
template <class Word>
struct Part {
    using Scalar = typename Word::Scalar;
    using Number = typename Scalar::Unsigned;
    using Store = typename Scalar::Store;
    using Real = typename Scalar::Float;
    using Unsigned = typename Word::Unsigned;
    using Float = typename Word::Float;
    using M = Momentum<Word>;
    using C = Constants<Scalar>;

    MN_HD static Element<Word> load_element(const Number* x, const Number* v, const Store* s, int64_t i) {
        return opened<Word>({load<Unsigned>(x + i), load<Unsigned>(v + i), load_store<Word>(s, i)});
    }

    template <class... Data>
    MN_HD static void fetch(int64_t i, const Number* x, const Number* v, const Store* s, const Data*... data) {
        if constexpr (Scalar::is_joint) fetch_ahead<Word>(i, x, v, data...);
        else fetch_ahead<Word>(i, x, v, s, data...);
    }

    // The scaled branch: of y itself, or of y less x where the block has a skip.
    template <bool skip>
    MN_HD static Float branch(const Real* y, Unsigned x, const C& c) {
        const Float value = load<Float>(y);
        return (skip ? value - M::to_float(x, c.scale) : value) * c.factor;
    }

    template <bool skip, bool spills>
    static void step(const Tile<Scalar> tile, const Real* MN_RESTRICT y, Real* MN_RESTRICT position, int64_t begin,
                     int64_t end, const C c, Totals& totals) {
        Number *MN_RESTRICT x = tile.x, *MN_RESTRICT v = tile.v;
        Store* MN_RESTRICT s = tile.s;
        uint8_t* MN_RESTRICT spilled = tile.spilled;
        Sums<Word> sums(tile.begin + begin);
        for (int64_t i = begin; i < end; i += Word::width) {
            fetch(i, x, v, s, y);
            Element<Word> e = load_element(x, v, s, i);
            const Unsigned byte = M::template step<spills>(e, branch<skip>(y + i, e.x, c), sums.magnitudes, c);
            if (spills) keep_bytes<Word>(spilled + i, byte);
            const Element<Word> kept = closed(e);
            keep(x + i, kept.x), keep(v + i, kept.v), keep_store<Word>(s, i, kept.s);
            keep_position<Word>(position + i, M::to_float(e.x, c.scale), tile.around);
            sums.add(e);
        }
        sums.into(totals);
    }

    template <bool skip, bool spills, bool ahead>
    static void undo(const Tile<Scalar> tile, const Real* MN_RESTRICT y, Real* MN_RESTRICT position, int64_t begin,
                     int64_t end, const C c, Totals& totals) {
        Number *MN_RESTRICT x = tile.x, *MN_RESTRICT v = tile.v;
        Store* MN_RESTRICT s = tile.s;
        const uint8_t* MN_RESTRICT spilled = tile.spilled;
        Sums<Word> sums(tile.begin + begin);
        for (int64_t i = begin; i < end; i += Word::width) {
            fetch(i, x, v, s, y);
            Element<Word> e = load_element(x, v, s, i);
            const Unsigned byte = spills ? load_bytes<Word>(spilled + i) : Unsigned{};
            M::template undo<spills>(e, branch<skip>(y + i, e.x, c), byte, c);
            sums.add(e);
            if (ahead) M::rewind(e, c);
            const Element<Word> kept = closed(e);
            keep(v + i, kept.v), keep_store<Word>(s, i, kept.s);
            if (ahead || Scalar::is_joint) keep(x + i, kept.x);
            if (ahead && position) keep_position<Word>(position + i, M::to_float(e.x, c.scale), tile.around);
        }
        sums.into(totals);
    }

    static void rewind(const Tile<Scalar> tile, Real* MN_RESTRICT position, int64_t begin, int64_t end, const C c) {
        Number* MN_RESTRICT x = tile.x;
        const Number* MN_RESTRICT v = tile.v;
        const Store* MN_RESTRICT s = tile.s;
        for (int64_t i = begin; i < end; i += Word::width) {
            fetch(i, x, v, s);
            Element<Word> e = load_element(x, v, s, i);
            M::rewind(e, c);
            keep(x + i, closed(e).x);
            if (position) keep_position<Word>(position + i, M::to_float(e.x, c.scale), tile.around);
        }
    }

    static void start(const Tile<Scalar> tile, const Real* MN_RESTRICT y, int64_t begin, int64_t end, const C c) {
        Number *MN_RESTRICT x = tile.x, *MN_RESTRICT v = tile.v;
        Store* MN_RESTRICT s = tile.s;
        for (int64_t i = begin; i < end; i += Word::width) {
            fetch_ahead<Word>(i, y);
            Unsigned overflow{};  // is found beside
            const Element<Word> kept = closed<Word>({M::to_fixed(load<Float>(y + i) * c.factor, overflow), Unsigned{}, Unsigned{}});
            keep(x + i, kept.x), keep(v + i, kept.v), keep_store<Word>(s, i, kept.s);
        }
    }

    static void position(const Tile<Scalar> tile, Real* MN_RESTRICT position, int64_t begin, int64_t end, const C c) {
        const Number* MN_RESTRICT x = tile.x;
        for (int64_t i = begin; i < end; i += Word::width) {
            fetch_ahead<Word>(i, x);
            keep_position<Word>(position + i, M::to_float(x_of<Word>(load<Unsigned>(x + i)), c.scale), tile.around);
        }
    }

    static void output(const Tile<Scalar> tile, Real* MN_RESTRICT position, int64_t begin, int64_t end, const C c) {
        const Number *MN_RESTRICT x = tile.x, *MN_RESTRICT v = tile.v;
        for (int64_t i = begin; i < end; i += Word::width) {
            fetch_ahead<Word>(i, x, v);
            const Element<Word> e = opened<Word>({load<Unsigned>(x + i), load<Unsigned>(v + i), Unsigned{}});
            const Float velocity = M::to_float(e.v, c.scale) * c.factor;
            keep_position<Word>(position + i, M::to_float(e.x, c.scale) + velocity, tile.around);
        }
    }

    static void checksum(const Tile<Scalar> tile, int64_t begin, int64_t end, Totals& totals) {
        Sums<Word> sums(tile.begin + begin);
        for (int64_t i = begin; i < end; i += Word::width) {
            sums.add(load_element(tile.x, tile.v, tile.s, i));
        }
        sums.into(totals);
    }
};

#ifdef MN_HAS_LANES
template <class Scalar> struct WidestOf { using type = Scalar; };
template <int kept, class Store>
struct WidestOf<WordOf32<kept, Store>> { using type = Lanes32<WordOf32<kept, Store>>; };
template <class Scalar> using Widest = typename WidestOf<Scalar>::type;
#else
template <class Scalar> using Widest = Scalar;
#endif

// Calls run(Part, begin, end) for what fills the widest word, then for the rest.
template <class Scalar, class Run>
MN_HD void in_parts(int64_t size, Run run) {
    using Wide = Widest<Scalar>;
    const int64_t whole = size - size % Wide::width;
    if (whole) run(Part<Wide>(), int64_t(0), whole);
    if (whole < size) run(Part<Scalar>(), whole, size);
}

}  // namespace
