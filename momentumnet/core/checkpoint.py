"""Checkpoint of module calls: their saved tensors are dropped, an input is kept, and backward calls them again.

The same replay as in a stream (generators, autocast, buffers), for modules outside of one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.utils import _pytree as pytree

from momentumnet.arithmetic.fingerprint import fingerprint
from momentumnet.core import audit
from momentumnet.core.audit import Fingerprint
from momentumnet.core.ends import source_among
from momentumnet.errors import ReconstructionError
from momentumnet.recompute.arguments import version
from momentumnet.recompute.caches import Lent
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved_tensors import Collected, SavedTensors

# Private: those of register_module_forward_hook and register_module_forward_pre_hook, for all modules.
_GLOBAL_HOOKS = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)


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
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        return _Passage().add(name, module, function, args, kwargs, compared=True)


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
        self._ends = first, last
        self._last = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return CheckpointChain, self._ends  # a copy has not been called

    def call(
        self, name: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``function(*args, **kwargs)`` and return its output; raises what `Checkpoint.call` does."""
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        first, last = self._ends
        passage = _Passage() if name == first else self._passage_behind(args, kwargs)
        if passage is None and any(True for _ in module.children()):
            passage = _Passage()
        if passage is None:
            return function(*args, **kwargs)
        output = passage.add(name, module, function, args, kwargs, compared=name == last or not _is_known(module))
        single = isinstance(output, Tensor)
        self._last.link = (weakref.ref(output), version(output), weakref.ref(passage)) if single else None
        return output

    def _passage_behind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Passage | None:
        """The passage whose last output, unchanged, is all that these arguments are."""
        link = getattr(self._last, "link", None)
        if link is None or len(args) != 1 or kwargs:
            return None
        output, counter, passage = link
        return passage() if output() is args[0] and version(args[0]) == counter else None


@dataclass(frozen=True)
class _Link:
    """A call, where its saved tensors go, and the fingerprint of what it returned, if that is to be compared."""

    call: BlockCall
    saved: weakref.ref[SavedTensors]  # weak: the graph owns it, and it owns the passage
    fingerprint: list[Tensor] | None

    def check(self, output: Any) -> None:
        """Have the output compared with that of the first run, when this backward ends."""
        if self.fingerprint is None:
            return
        found = fingerprint(output)
        if [report.dtype for report in found] != [report.dtype for report in self.fingerprint]:
            raise self._differs()
        for before, after in zip(self.fingerprint, found, strict=True):
            audit.compare(audit.Comparison(Fingerprint(before), Fingerprint(after), self._differs))

    def _differs(self) -> ReconstructionError:
        return ReconstructionError(
            f"module {self.call.name!r} did not compute the same in backward as in forward, so its gradient would "
            "be wrong: it is not deterministic, or depends on something that changed in between. Convert with "
            "others='keep' if it has to stay so."
        )


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
    ) -> Any:
        """Make a call for the first time, without its saved tensors, and return its output."""
        lent = Lent(name, module, args, kwargs)
        args, kwargs = lent.args, lent.kwargs
        behind = bool(self._links)
        inputs = [(leaf, version(leaf)) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = args[0] if behind else self._given_again(leaf for leaf, _ in inputs)
        call = BlockCall(name, module, function, given, args, kwargs)
        saved = SavedTensors(name, self._refill)
        with saved.dropping():
            output = call.first(args, kwargs)
        lent.tell()
        self._links.append(_Link(call, weakref.ref(saved), fingerprint(output) if compared else None))
        if not behind and any(version(leaf) != counter for leaf, counter in inputs):
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
        found = []
        with torch.no_grad(), audit.errors_explained():
            output = None if self._source is None else self._source()
            for link in self._links:
                collected = Collected()
                with collected.collecting():
                    output = link.call.again(output)
                link.check(output)
                found.append((link.saved(), collected))
        for saved, collected in found:
            if saved is not None:
                saved.fill(collected)


def _is_known(module: nn.Module) -> bool:
    """Whether the module is a layer of torch.nn as it is there: it returns the same for the same input and draws."""
    hooked = module._forward_hooks or module._forward_pre_hooks or any(_GLOBAL_HOOKS)
    changed = hooked or "forward" in module.__dict__
    return type(module).__module__.startswith("torch.nn.modules.") and not changed
