"""The values of a call's saved tensors: as much of them as it takes to see that a recompute saves the same.

What the stream's own checksum sees needs no second look: a block's output and what it returns beside it are compared,
and floats with a gradient reach one of them. Other tensors do not. An index or a mask that differs may leave every
output as it is, and make the gradient wrong. So, of what autograd saves,

- what the call was given (parameters, buffers, arguments, the stream) has to be the same by name and place;
- integers, booleans and floats without a gradient are compared whole, where Python code has handed them to the
  operation. What an operation keeps for itself (a pooling's indices, a dropout's mask) is a function of what it got and
  of torch's generators: small integers are compared whole, of many a sample; floats are not looked at, as some kernels
  leave room in them that nobody has written to;
- of the last floats with a gradient a sample of values is compared: enough to see that all are others, where the output
  does not tell because a factor behind them is zero (a gate at its start) or too small for the stream to resolve. Of
  the very last one all values are, where a recompute ends with it, before there is an output.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function as autograd_function
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.recompute.saved.origins import Origins, Place
from momentumnet.recompute.values.looks import (
    SMALL,
    Kind,
    Look,
    Views,
    has_lost_its_memory,
    kind_of,
    sample_of,
    twin_without_memory,
)

# Floats with a gradient of which a sample is taken: the last ones, on which what came before has had its effect.
SAMPLED = 4
_NOT, _MKLDNN = Look.NOT, torch._mkldnn  # type: ignore[attr-defined]
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class SavedValues:
    """What is known of the values that one call has saved.

    Args:
        origins: the tensors that the call is given in its first run; asked once, and only if something is saved.
        exact: whether the recompute gets its input bit for bit; else integers alone are compared, by their norm.
        saved: called with the number of tensors that are saved by now.

    Attributes:
        kinds: shapes and dtypes of the saved tensors.
        looks: how each is looked at; or the place of one that the call was given.
        given: by their numbers, the places of those that the call was given.
        made: of the floats with a gradient that the call has computed, the operation and its number; with ``saved``.
        reports: what tells the values.
    """

    def __init__(
        self, origins: Callable[[], Origins], *, exact: bool, saved: Callable[[int], None] | None = None
    ) -> None:
        self.exact, self._saved = exact, saved
        self.begin(origins)

    def begin(self, origins: Callable[[], Origins]) -> None:
        """A first run begins: its values count from now on."""
        self.kinds: list[Kind] = []
        self.looks: list[Look | Place] = []
        self.given: dict[int, Place] = {}
        self.made: list[tuple[str, int]] = []
        self.reports: list[Tensor] = []
        self._views: Views | None = Views(exact=self.exact)
        self._last: deque[tuple[int, Tensor]] = deque(maxlen=SAMPLED)
        self._counters: list[tuple[int, Tensor, int]] = []
        self._find_origins: Callable[[], Origins] | None = origins
        self._origins: Origins | None = None
        self._seen: list[tuple[int, Look]] = []  # all that are looked at; known at the end

    def note(self, tensor: Tensor, references: int) -> None:
        """A tensor is saved in the first run; so many references to it there are in the hook that is given it."""
        kind, number = kind_of(tensor), len(self.kinds)
        self.kinds.append(kind)
        if self._saved is not None:
            self._saved(number + 1)
        look = self._look_at(tensor, references)
        self.looks.append(look)
        if isinstance(look, Place):
            self.given[number] = look
        elif self._views is None:
            return
        elif look is not _NOT:
            self._views.add(number, tensor.detach(), look)
            self._counters.append((number, twin_without_memory(tensor), tensor._version))
        elif len(kind[0]) == 1:
            for statistics in self._running_statistics():
                self.looks[statistics] = Look.NOT
                self._views.forget(statistics)

    def _running_statistics(self) -> range:
        """Which of the last ones are running statistics that no module holds as buffers; the very last is 1-D.

        A batch norm in training saves (x, running mean, running variance, weight if any, mean, deviation). It moves the
        running ones and its gradient does not read them.
        """
        kind, end = self.kinds[-1], len(self.looks)
        if not kind[1].is_floating_point or self.looks[-2:] != 2 * [Look.NOT]:
            return range(0)
        start = end - 4 if self.looks[-3:-2] == [Look.WHOLE] else end - 5
        alike = start > 0 and self.kinds[start:] == (end - start) * [kind]
        found = alike and self.looks[start : start + 2] == 2 * [Look.WHOLE]
        return range(start, start + 2) if found else range(0)

    @property
    def is_open(self) -> bool:
        """Whether the first run has not ended; until `close`."""
        return self._views is not None

    @property
    def has_computed_floats(self) -> bool:
        """Whether floats with a gradient were saved that the call has computed itself; until `close`."""
        return bool(self._last)

    def close(self, *, last_whole: bool = False) -> None:
        """The first run is over.

        Args:
            last_whole: look at all values of the last float with a gradient, as nobody will see what follows from it.
        """
        if self._views is not None:
            for place, (number, tensor) in enumerate(self._last, start=1):
                is_whole = last_whole and place == len(self._last)
                look = Look.WHOLE if is_whole else sample_of(tensor)
                self.looks[number] = Look.NOT if has_lost_its_memory(tensor) else look
                if self.looks[number] is look:
                    self._views.add(number, tensor.detach(), look)
            # What is overwritten later is refused where backward may ask for it. Elsewhere its values are of no use: a
            # recompute may be left before that, and large ones are looked at when they are saved.
            overwritten = [number for number, twin, counter in self._counters if twin._version != counter]
            for number in (*self._views.without_memory(), *overwritten):
                self.looks[number] = Look.NOT
                self._views.forget(number)
            self.reports = self._views.reports()
            self._seen = [
                (number, look) for number, look in enumerate(self.looks) if look is not _NOT and isinstance(look, Look)
            ]
        self._last.clear()
        self._counters.clear()
        self._views = self._find_origins = self._origins = None

    def reports_of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The reports of other tensors, looked at in the same way."""
        views = Views(exact=self.exact)
        for number, look in self._seen:
            views.add(number, tensors[number], look)
        return views.reports()

    def _look_at(self, tensor: Tensor, references: int) -> Look | Place:
        # Some stand for others (in a transform of torch.func), or lie in a layout of a library's own.
        if self._find_origins is None or _is_wrapped(tensor) or tensor.layout is _MKLDNN:
            return _NOT
        if self._origins is None:
            self._origins = self._find_origins()
        if tensor.requires_grad:
            place = self._origins.starting_at(tensor)
            if place is None and self.exact:
                self._last.append((len(self.looks), tensor))
                if self._saved is not None and tensor.grad_fn is not None:
                    self.made.append((tensor.grad_fn.name(), tensor.grad_fn._sequence_nr()))
            return _NOT if place is None else place
        integers = not (tensor.is_floating_point() or tensor.is_complex())
        held = references > _references_of_own_results()
        if not held and not integers:
            return Look.NOT
        place = self._origins.place_of(tensor)
        if place is not None:
            return place
        if not self.exact:
            return Look.WHOLE if integers and held else Look.NOT
        small = tensor.numel() * tensor.element_size() <= SMALL
        if held:
            # What a function written in Python makes for its own backward (compiled code is one) is like its output.
            is_whole = integers or small or not _is_saved_by_python_function()
            return Look.WHOLE if is_whole else sample_of(tensor)
        if _is_scratch(tensor):
            return Look.NOT
        return Look.WHOLE if small else sample_of(tensor)


def _is_scratch(tensor: Tensor) -> bool:
    """Whether it may hold what nobody wrote: seeds of a fused attention that drew nothing, cuDNN's reserved bytes."""
    seeds = not tensor.dim() or (tensor.numel() <= 2 and _is_saved_by_python_function())
    return seeds or tensor.dtype in (torch.uint64, torch.uint8)


def _is_saved_by_python_function() -> bool:
    """Whether a `torch.autograd.Function` saves; to be called below `SavedValues.note`."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_filename == autograd_function.__file__


class _Probe:
    def __init__(self) -> None:
        self.counts: list[int] = []

    def note(self, tensor: Tensor) -> None:
        self.counts.append(sys.getrefcount(tensor))


@functools.cache
def _references_of_own_results() -> int:
    """How many references a hook counts of a tensor that no Python code holds: of the mean in a layer norm."""
    probe = _Probe()
    with torch.inference_mode(False), torch.enable_grad(), saved_tensors_hooks(probe.note, _nothing_to_open):
        x = torch.ones(1, 2, requires_grad=True)
        torch.nn.functional.layer_norm(x, (2,))
    return min(probe.counts)


def _nothing_to_open(packed: Any) -> Any:
    """The graph of a run that is made for its values alone is not run through."""
    raise NotImplementedError
