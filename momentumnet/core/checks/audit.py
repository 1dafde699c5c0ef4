"""Whether backward has reconstructed what forward computed: noted on the device, read once, when the backward ends.

Reading a value of a CUDA tensor waits for all that is queued in front of it. So the comparisons of a backward are
collected, and looked at together in its final callback, which raises before the gradients reach whoever called
backward.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import Variable

from momentumnet.arithmetic.reports import has_values, read
from momentumnet.core.checks import ledger
from momentumnet.errors import ReconstructionError, StateRangeError
from momentumnet.out_of_memory import is_out_of_memory


@dataclass(frozen=True)
class Fingerprint:
    """What tells a state from another: a report, unread, and the scale of its integers.

    Attributes:
        report: two values; the second one counts, or where there is a tolerance both do, as norms.
        exponent: the scale, known without reading.
        tolerance: how far norms may lie apart, relative to the larger one; None where every bit counts.
    """

    report: Tensor
    exponent: int = 0
    tolerance: float | None = None

    def differs(self, other: Fingerprint) -> Tensor:
        """One boolean on the device."""
        if self.tolerance is None:
            return self.report[1] != other.report[1]
        size = torch.maximum(self.report.amax(), other.report.amax())
        return ~((self.report - other.report).abs() <= self.tolerance * size).all()  # so that NaN differs


@dataclass(frozen=True)
class Comparison:
    """Two fingerprints that have to be equal, and what makes the error if they are not (None where that is none)."""

    expected: Fingerprint
    found: Fingerprint
    error: Callable[[], ReconstructionError | None]

    def failed(self) -> None:
        """They differ.

        Raises:
            ReconstructionError: the error.
        """
        error = self.error()
        if error is not None:
            raise error


class Check(Protocol):
    """A forward that has not been looked at."""

    def close(self) -> None:
        """Look at it; raises StateRangeError."""


class Audit:
    """The comparisons of one backward, and the forwards that are looked at with them."""

    def __init__(self) -> None:
        self._open: list[Comparison] = []
        self._checks: dict[int, Check] = {}

    def add(self, comparison: Comparison) -> None:
        """Have it looked at by `close`."""
        self._open.append(comparison)

    def look_at(self, check: Check) -> None:
        """Have `close` close it."""
        self._checks[id(check)] = check

    def close(self) -> None:
        """Look at all that is open, in one read for each device.

        Raises:
            ReconstructionError: a state is not what it was in forward; of several, the first that was seen.
            StateRangeError: values outgrew their scale in a forward that was not looked at.
        """
        checks, self._checks = self._checks, {}
        comparisons, self._open = self._open, []
        readable = [comparison for comparison in comparisons if has_values(comparison.expected.report)]
        for comparison in comparisons:
            if not has_values(comparison.expected.report):
                ledger.note(comparison.expected.differs(comparison.found))
        # Behind this one read, what the checks look at is there, too. A forward that went wrong is why a state differs.
        differences = _read(readable)
        for check in checks.values():
            check.close()
        for comparison, differs in zip(readable, differences, strict=True):
            if differs:
                comparison.failed()


def _read(comparisons: list[Comparison]) -> list[bool]:
    """Whether the fingerprints of each differ."""
    groups: dict[tuple[torch.device, torch.dtype, bool], list[int]] = {}
    for index, comparison in enumerate(comparisons):
        report, exact = comparison.expected.report, comparison.expected.tolerance is None
        groups.setdefault((report.device, report.dtype, exact), []).append(index)
    found = [False] * len(comparisons)
    for device in dict.fromkeys(device for device, _, _ in groups):
        own = {key: indices for key, indices in groups.items() if key[0] == device}
        flags = read(torch.cat([_flags([comparisons[index] for index in indices]) for indices in own.values()]))
        for index, differs in zip(itertools.chain(*own.values()), flags, strict=True):
            found[index] = differs
    return found


def _flags(comparisons: list[Comparison]) -> Tensor:
    """The same on the device, for comparisons of one kind."""
    if comparisons[0].expected.tolerance is not None:
        return torch.stack([comparison.expected.differs(comparison.found) for comparison in comparisons])
    expected = torch.stack([comparison.expected.report for comparison in comparisons])
    found = torch.stack([comparison.found.report for comparison in comparisons])
    return (expected != found)[:, 1]


# The audit of each backward under way, by the number of its graph task. The final callback owns it, so that it goes
# with a backward that fails.
_AUDITS: weakref.WeakValueDictionary[int, Audit] = weakref.WeakValueDictionary()


def compare(comparison: Comparison) -> None:
    """Have two fingerprints compared when this backward ends; at once where none is under way.

    Raises:
        ReconstructionError: they differ, where that is known already.
    """
    if comparison.expected.exponent != comparison.found.exponent:
        comparison.failed()
    audit, is_open = _current()
    audit.add(comparison)
    if not is_open:
        audit.close()


def look_at(check: Check) -> None:
    """Have a forward looked at when this backward ends; at once where none is under way.

    Raises:
        StateRangeError: it went wrong, where that is known already.
    """
    audit, is_open = _current()
    audit.look_at(check)
    if not is_open:
        audit.close()


def _current() -> tuple[Audit, bool]:
    """The audit of this backward, and whether one is under way."""
    task = torch._C._current_graph_task_id()
    audit = _AUDITS.get(task)
    if audit is None:
        audit = Audit()
        if task != -1:
            _AUDITS[task] = audit
            Variable._execution_engine.queue_callback(audit.close)
    return audit, task != -1


@contextmanager
def errors_explained() -> Iterator[None]:
    """An exception inside may come from a state that is wrong already: if one is, that is the error to raise.

    Raises:
        ReconstructionError: as `Audit.close`.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        audit = _AUDITS.get(torch._C._current_graph_task_id())
        if audit is not None:
            try:
                audit.close()
            except (ReconstructionError, StateRangeError) as cause:
                raise cause from error.__cause__ or error
        raise
