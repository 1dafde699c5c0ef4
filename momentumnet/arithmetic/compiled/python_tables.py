"""Tables of Python's, as the attributes of modules are: what stands in them, looked at together.

By the CPU library where it is there (csrc/tables.cpp), which is handed functions of the running Python's stable
interface; without, by loops of Python's own in C. Every call of a block looks at all its attributes four times, and
what this takes is the host's alone.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import sys
from itertools import chain
from typing import Any

from momentumnet.arithmetic.compiled import libraries

Table = dict[str, Any]
# (name, value, name, value, ...)
Entries = tuple[Any, ...]

# In the order of `Python` in csrc/tables.cpp.
_FUNCTIONS = (
    "PyDict_Next",
    "PyDict_Size",
    "PyList_Size",
    "PyList_GetItem",
    "PyTuple_New",
    "PyTuple_SetItem",
    "PyTuple_Size",
    "PyTuple_GetItem",
    "PyObject_Type",
    "Py_IncRef",
    "Py_DecRef",
)
_object = ctypes.py_object


def entries_of(tables: list[Table]) -> Entries:
    """All names and values, table by table; past what a table's own class does when it is asked."""
    native = _library()
    if native is not None:
        found: Entries = native.mn_entries(tables)
        return found
    return tuple(chain.from_iterable(chain.from_iterable(map(dict.items, tables))))


def hold(tables: list[Table], entries: Entries) -> bool:
    """Whether they are what stands in the tables by now: the same objects, in the same order."""
    native = _library()
    if native is not None:
        return bool(native.mn_hold(tables, entries))
    return are_same(entries_of(tables), entries)


def kinds_of(entries: Entries) -> Entries:
    """The names, and the classes of the values."""
    kinds = map(type, entries[1::2])
    return tuple(chain.from_iterable(zip(entries[::2], kinds, strict=True)))


def are_of(entries: Entries, kinds: Entries) -> bool:
    """Whether `kinds_of` the entries are these."""
    native = _library()
    if native is not None:
        return bool(native.mn_are_of(entries, kinds))
    return are_same(kinds_of(entries), kinds)


def are_same(first: Entries, second: Entries) -> bool:
    """Whether they are the same objects."""
    native = _library()
    if native is not None:
        return bool(native.mn_are_same(first, second))
    return len(first) == len(second) and all(map(operator.is_, first, second))


@functools.cache
def _library() -> ctypes.PyDLL | None:
    """The CPU library, called with Python's lock held; None where that is not there, or the library is not."""
    found = libraries.cpu().library
    # A Python without that lock has other rules for who may look at a table, and others than CPython another interface.
    is_locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    if found is None or sys.implementation.name != "cpython" or not is_locked:
        return None
    library = ctypes.PyDLL(found._name)
    functions = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in _FUNCTIONS]
    library.mn_set_python((ctypes.c_void_p * len(functions))(*functions))
    library.mn_entries.argtypes, library.mn_entries.restype = (_object,), _object
    for name in ("mn_hold", "mn_are_of", "mn_are_same"):
        function = getattr(library, name)
        function.argtypes, function.restype = (_object, _object), ctypes.c_int32
    return library
