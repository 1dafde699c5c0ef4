// What stands in tables of Python's (the attributes of modules), looked at without a loop of Python's.
//
// Of Python nothing is known here but the functions that mn_set_python hands over, all of its stable interface. They are
// called by a thread that holds its lock (ctypes.PyDLL), and none of them runs code of Python's: no table changes meanwhile.
#include "interface.h"

#include <stddef.h>

namespace {

using Object = void*;

struct Python {
    int (*next)(Object table, ptrdiff_t* place, Object* name, Object* value);
    ptrdiff_t (*table_size)(Object);
    ptrdiff_t (*list_size)(Object);
    Object (*list_item)(Object, ptrdiff_t);  // which stays the list's
    Object (*new_tuple)(ptrdiff_t);
    int (*set_item)(Object, ptrdiff_t, Object);  // which becomes the tuple's
    ptrdiff_t (*tuple_size)(Object);
    Object (*item)(Object, ptrdiff_t);
    Object (*type)(Object);
    void (*hold)(Object);
    void (*let_go)(Object);
};

Python python;

// Calls `use(name, value)` for each entry of each table, in order, as long as it returns true.
template <typename Use>
bool each(Object tables, Use use) {
    const ptrdiff_t count = python.list_size(tables);
    for (ptrdiff_t number = 0; number < count; ++number) {
        Object table = python.list_item(tables, number), name, value;
        for (ptrdiff_t place = 0; python.next(table, &place, &name, &value);) {
            if (!use(name, value)) return false;
        }
    }
    return true;
}

}  // namespace

MN_EXPORT void mn_set_python(void* const* functions) {
    // Object and function pointers are of one size on every platform that loads shared libraries by name.
    static_assert(sizeof(Python) == 11 * sizeof(void*), "a function is missing");
    auto* own = reinterpret_cast<unsigned char*>(&python);
    auto* given = reinterpret_cast<const unsigned char*>(functions);
    for (size_t byte = 0; byte < sizeof(Python); ++byte) own[byte] = given[byte];
}

// A tuple of the names and values in a list of dicts: (name, value, name, value, ...); null behind an error of Python's.
MN_EXPORT void* mn_entries(void* tables) {
    ptrdiff_t count = 0;
    for (ptrdiff_t number = python.list_size(tables); number-- > 0;) {
        count += python.table_size(python.list_item(tables, number));
    }
    Object entries = python.new_tuple(2 * count);
    if (!entries) return nullptr;
    ptrdiff_t place = 0;
    each(tables, [&](Object name, Object value) {
        python.hold(name);
        python.hold(value);
        python.set_item(entries, place++, name);
        python.set_item(entries, place++, value);
        return true;
    });
    return entries;
}

// Whether the dicts hold the very objects of `entries`, in this order.
MN_EXPORT int32_t mn_hold(void* tables, void* entries) {
    const ptrdiff_t size = python.tuple_size(entries);
    ptrdiff_t place = 0;
    const bool same = each(tables, [&](Object name, Object value) {
        if (place + 2 > size) return false;
        const bool as = python.item(entries, place) == name && python.item(entries, place + 1) == value;
        place += 2;
        return as;
    });
    return same && place == size;
}

// Whether `entries` have the names, and values of the very classes, in `kinds`: (name, class, name, class, ...).
MN_EXPORT int32_t mn_are_of(void* entries, void* kinds) {
    const ptrdiff_t size = python.tuple_size(entries);
    if (python.tuple_size(kinds) != size) return 0;
    for (ptrdiff_t place = 0; place + 1 < size; place += 2) {
        if (python.item(entries, place) != python.item(kinds, place)) return 0;
        Object kind = python.type(python.item(entries, place + 1));
        python.let_go(kind);  // the value holds it
        if (kind != python.item(kinds, place + 1)) return 0;
    }
    return 1;
}

// Whether two tuples hold the very same objects.
MN_EXPORT int32_t mn_are_same(void* first, void* second) {
    const ptrdiff_t size = python.tuple_size(first);
    if (python.tuple_size(second) != size) return 0;
    for (ptrdiff_t place = 0; place < size; ++place) {
        if (python.item(first, place) != python.item(second, place)) return 0;
    }
    return 1;
}
