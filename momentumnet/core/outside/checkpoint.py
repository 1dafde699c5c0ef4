"""Checkpoint of module calls: their saved tensors are dropped, an input is kept, and backward calls them again.

The same replay as in a stream (generators, autocast, buffers), for modules outside of one.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.arithmetic.fingerprint import fingerprint
from momentumnet.core.checks import audit
from momentumnet.core.outside.ends import source_among
from momentumnet.core.rewind import failures
from momentumnet.core.rewind.early_end import EarlyEnd, again_until, has_hooks
from momentumnet.core.rewind.failures import Failures
from momentumnet.core.tensors.inference import gradients_on
from momentumnet.core.tensors.transforms import at_work, outside
from momentumnet.errors import ReconstructionError
from momentumnet.recompute.arguments.caches import Lent
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved.collected_tensors import Collected
from momentumnet.recompute.saved.saved_tensors import SavedTensors
from momentumnet.recompute.saved.saved_values import SavedValues
from momentumnet.recompute.values.counters import version


class Checkpoint:
    """Calls modules so that their activations are recomputed in backward, each from its own arguments."""

    def call(
        self, name: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``function(*args, **kwargs)`` and return its output.

        Raises:
            ReconstructionError: the module overwrites one of its inputs, in forward; or, in backward, it does not
                compute again what it computed in forward.
        """
        if not gradients_on() or at_work() is not None:
            return function(*args, **kwargs)
        return _Passage().add(name, module, function, args, kwargs, compared=True, last=True)


class CheckpointChain:
    """The checkpoint of modules that are called one after the other, each with what the one before returned.

    Only what the first one takes is kept; those behind it are recomputed from there. Each call tells by the tensor that
    it is given whether it stands behind the last one: where something came between, layers are called as they are, and
    a composite module is recomputed from its own arguments.
    What a recompute returns is compared at the chain's end, and behind each module that is no layer of torch.nn.

    Args:
        first: name of the module that begins.
        last: name of the module that ends.
    """

    def __init__(self, first: str, last: str) -> None:
        self.ends = first, last
        self._last = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return CheckpointChain, self.ends  # a copy has not been called

    def call(
        self, name: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``function(*args, **kwargs)`` and return its output; raises what `Checkpoint.call` does."""
        if not gradients_on() or at_work() is not None:
            return function(*args, **kwargs)
        first, last = self.ends
        passage = _Passage() if name == first else self._passage_behind(args, kwargs)
        if passage is None and any(True for _ in module.children()):
            passage = _Passage()
        if passage is None:
            return function(*args, **kwargs)
        compared = name == last or not _is_known(module)
        output = passage.add(name, module, function, args, kwargs, compared=compared, last=name == last)
        goes_on = name != last and isinstance(output, Tensor)
        self._last.link = _Behind(output, passage) if goes_on else None
        return output

    def _passage_behind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Passage | None:
        """The passage whose last output, unchanged, is all that these arguments are."""
        link: _Behind | None = getattr(self._last, "link", None)
        return None if link is None or len(args) != 1 or kwargs else link.passage_of(args[0])


class _Behind:
    """Where a chain stands behind a call: the passage, and the output that carries it.

    A graph owns the passage; where the layers so far are frozen there is none yet, and it lives as long as the output.
    """

    def __init__(self, output: Tensor, passage: _Passage) -> None:
        self._counter, self._passage = version(output), weakref.ref(passage)
        self._owned = None if output.requires_grad else passage
        self._output = weakref.ref(output, self._let_go)

    def _let_go(self, _: object) -> None:
        self._owned = None

    def passage_of(self, tensor: Tensor) -> _Passage | None:
        """The passage, if the tensor is that output, unchanged."""
        return self._passage() if self._output() is tensor and version(tensor) == self._counter else None


@dataclass(frozen=True)
class _Link:
    """A call, where its saved tensors go, what they were, and the fingerprint of its output, if that is compared.

    At its ``end``, if nobody is given what it returns, it may be left as soon as it has saved what it saved in its
    first run.
    """

    call: BlockCall
    saved: weakref.ref[SavedTensors]  # weak: the graph owns it, and it owns the passage
    values: SavedValues
    fingerprint: list[Tensor] | None
    end: EarlyEnd | None

    def again(self, given: Tensor | None) -> tuple[Any, Callable[[], None]]:
        """What the call returns this time, compared with that of the first run; and what hands over what it saves."""
        errors = Failures(self.call.suspects)
        output, collected = again_until(self.call, given, errors, self.end, self.values.given)
        collected.settle()
        if self.fingerprint is not None:
            failures.compare(self.fingerprint, fingerprint(output), errors.output)
        return output, functools.partial(self._fill, collected, errors)

    def _fill(self, collected: Collected, errors: Failures) -> None:
        """Hand over what was saved, if somebody is waiting."""
        saved = self.saved()
        if saved is not None:
            reports = saved.fill(collected, errors.differ)
            failures.compare(self.values.reports, reports, errors.saved_values)
        collected.let_go()


class _Passage:
    """Calls that are recomputed together: the first from its arguments, the others from what was returned before.

    Of the first one's arguments, what a stream returned is not kept: it is computed again from the stream's state.
    """

    def __init__(self) -> None:
        self._links: list[_Link] = []
        self._source: Callable[[], Tensor] | None = None

    def add(
        self,
        name: str,
        module: nn.Module,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        compared: bool,
        last: bool,
    ) -> Any:
        """Make a call for the first time, without its saved tensors, and return its output.

        Args:
            name: of the module.
            module: it.
            function: what to call.
            args: its positional arguments.
            kwargs: its keyword arguments.
            compared: whether a recompute is to return what this call does.
            last: whether nobody is given what a recompute returns.
        """
        lent = Lent(name, module, args, kwargs)
        args, kwargs = lent.args, lent.kwargs
        behind = bool(self._links)  # what it is given is what was returned before
        leaves = () if behind else pytree.tree_leaves((args, kwargs))
        inputs = [(leaf, version(leaf)) for leaf in leaves if isinstance(leaf, Tensor)]
        given = args[0] if behind else self._given_again(leaf for leaf, _ in inputs)
        call = BlockCall(name, module, function, given, args, kwargs)
        end = EarlyEnd(call.modules) if last else None
        origins = functools.partial(call.origins, given)
        values = SavedValues(origins, exact=True, saved=None if end is None else end.note)
        saved = SavedTensors(name, self._refill, values)
        with saved.dropping():
            output = call.first(args, kwargs)
        lent.tell()
        if end is not None:
            end.first_run_ends(call, values)
        ends_early = end is not None and end.allowed
        values.close(last_whole=ends_early)
        seen = fingerprint(output) if compared and not ends_early else None
        self._links.append(_Link(call, weakref.ref(saved), values, seen, end))
        if any(version(leaf) != counter for leaf, counter in inputs):
            raise ReconstructionError(
                f"module {name!r} overwrites its own input in place, so it cannot be recomputed from it; use the "
                "out-of-place operation (inplace=False) at its start, or convert with others='keep'"
            )
        return output

    def _given_again(self, inputs: Iterable[Tensor]) -> Tensor | None:
        """The one of the first call's inputs that need not be kept."""
        end = source_among(inputs)
        if end is None:
            return None
        tensor, self._source = end
        return tensor

    def _refill(self, _: SavedTensors) -> None:
        fills = []
        with outside(), torch.no_grad(), audit.errors_explained():
            output = None if self._source is None else self._source()
            for link in self._links:
                output, fill = link.again(output)
                fills.append(fill)
            for fill in fills:
                fill()


def _is_known(module: nn.Module) -> bool:
    """Whether the module is a layer of torch.nn as it is there: it returns the same for the same input and draws."""
    return type(module).__module__.startswith("torch.nn.modules.") and not has_hooks(module)
