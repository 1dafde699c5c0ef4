"""What a container holds: kept while a call may change it, compared, and put back."""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from momentumnet.recompute.values.objects import Contents, contents_of, put

# Of a longer list, a record of all steps, the last entries are looked at.
MOST_ENTRIES, _LAST = 1024, 256
_DICTS = (dict, OrderedDict, defaultdict, Counter)

Replace = Callable[[Any], Any]


class Entries(NamedTuple):
    """A container, and what it holds: values, beside them the keys of a dict, in front of them other ones of a list."""

    container: Any
    keys: list[Any]
    values: list[Any]
    start: int = 0

    @classmethod
    def of(cls, container: Any) -> Entries:
        if type(container) in _DICTS:
            return cls(container, list(container.keys()), list(container.values()))
        if type(container) is list and len(container) > MOST_ENTRIES:
            start = len(container) - _LAST
            return cls(container, [], container[start:], start)
        return cls(container, [], list(container))

    @property
    def is_as(self) -> bool:
        """Whether it holds the same objects still."""
        if len(self.container) != self.start + len(self.values):
            return False
        now = self.container[self.start :] if self.start else self.container
        if type(self.container) not in _DICTS:
            return all(map(operator.is_, now, self.values))
        return all(map(operator.is_, now, self.keys)) and all(map(operator.is_, now.values(), self.values))

    def put_back(self, replace: Replace) -> None:
        """Have it hold them again, but for what stands in the place of some."""
        container, values = self.container, [replace(value) for value in self.values]
        if type(container) is list:
            container[self.start :] = values
            return
        container.clear()
        if type(container) in _DICTS:
            for key, value in zip(self.keys, values, strict=True):
                container[key] = value
        elif type(container) is deque:
            container.extend(values)
        else:
            container.update(values)


class Whole(NamedTuple):
    """A container of a class of its own, which may have attributes, too."""

    container: Any
    contents: Contents

    @property
    def values(self) -> list[Any]:
        """All that it holds."""
        return list(self.contents.values())

    @property
    def is_as(self) -> bool:
        """Whether it holds the same objects still."""
        return self.contents.is_same(contents_of(self.container))

    def put_back(self, replace: Replace) -> None:
        """Have it hold them again, but for what stands in the place of some."""
        put(self.container, self.contents.replaced(replace))
