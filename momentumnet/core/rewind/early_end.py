"""Which recomputes end as soon as they have saved what the first run saved: what would follow, nobody is given.

Code that is not run any more may have had something to put right, and values that it would have shown are not compared.
So the first recompute of a module along a path of its code runs to its end, is compared with the forward there, and is
looked at: later ones are left early only where nothing has changed between the last saved tensor and the end, neither
parameters nor the default dtype (buffers and attributes are put back after every recompute), and where all that was
saved has gone into the last float, all values of which are compared. And each forward looks whether parameters or hooks
are others at its end than when the last tensor was saved, as it may be in some steps only.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules import module as all_modules

from momentumnet.arithmetic.fingerprint import fingerprint
from momentumnet.core.checks import audit
from momentumnet.core.checks.audit import Comparison, Fingerprint
from momentumnet.core.rewind.failures import Failures
from momentumnet.recompute.attributes.moved_parameters import plain_parameters
from momentumnet.recompute.attributes.standing import without_scripts
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved.collected_tensors import Collected
from momentumnet.recompute.saved.origins import Place
from momentumnet.recompute.saved.saved_values import SavedValues
from momentumnet.recompute.surroundings.uncompiled import is_compiled
from momentumnet.recompute.suspects import hook_count

# Private: those of register_module_forward_hook and register_module_forward_pre_hook, for all modules.
_GLOBAL_HOOKS = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)

# What tells one path through a module's code from another: its mode, how many tensors it saves, and which operations
# have made the floats among them, at which place in the graph.
_Path = tuple[bool, int, tuple[tuple[str, int], ...]]


class _Known:
    """What is known of a module: which paths may be left early, and how many tensors its calls save."""

    def __init__(self) -> None:
        self.paths: dict[_Path, bool] = {}
        self.counts: set[int] = set()


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def has_hooks(module: nn.Module) -> bool:
    """Whether something else is called where the module is: a hook, or a ``forward`` of this object's own."""
    hooks = module._forward_hooks or module._forward_pre_hooks or any(_GLOBAL_HOOKS)
    return bool(hooks) or "forward" in vars(module)


class EarlyEnd:
    """What there is to know of the end of one call; to be made before its first run.

    It holds nothing that the call was given: comparisons wait for the end of the backward with it.

    Args:
        modules: the call's, the first of which is called.

    Attributes:
        count: of the tensors that it has saved.
        allowed: whether its recomputes are left as soon as all is saved; what is found out later is for later calls.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._known = _KNOWN.setdefault(modules[0], _Known())
        self._seen: tuple[int, Standing] | None = None
        self._path: _Path = (False, 0, ())
        self.count, self.allowed, self._possible = 0, False, False

    def note(self, count: int) -> None:
        """The first run has saved so many tensors: maybe all."""
        if count in self._known.counts:
            self._seen = count, self.standing()

    def first_run_ends(self, call: BlockCall, values: SavedValues) -> None:
        """The ``call`` has returned; ``values`` of what it has saved are not closed yet."""
        self.count, made = len(values.kinds), values.made
        self._known.counts.add(self.count)
        first = made[0][1] if made else 0
        path = tuple((name, number - first) for name, number in made)
        self._path = self._modules[0].training, self.count, path
        # Not where nothing was saved whose values tell that it is the same, where a stream inside or a hook waits for
        # the end, or a compiler has the code.
        unseen = not any(has_hooks(module) or is_compiled(module) for module in self._modules)
        self._possible = unseen and values.has_computed_floats and not call.holds_streams
        count, standing = self._seen or (None, None)
        seen = standing if count == self.count else None  # at the last of them
        self._seen = None
        self._possible &= seen is None or seen.is_as(self.standing())
        self.allowed = self._possible and seen is not None and self._known.paths.get(self._path, False)

    def trial(self) -> Trial | None:
        """What looks at a recompute that runs to its end; None where there is nothing to be found out."""
        return Trial(self) if self._possible and self._path not in self._known.paths else None

    def found(self, *, allowed: bool) -> None:
        """A trial has ended."""
        self._known.paths[self._path] = allowed

    def standing(self) -> Standing:
        """What code behind the last saved tensor might change."""
        return Standing(self._modules)


class Standing:
    """What nobody puts back behind a recompute, at one moment: the default dtype, hooks, and parameters.

    Of parameters what is known without a look at their values.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.parameters = plain_parameters(without_scripts(modules))
        self._told = (
            torch.get_default_dtype(),
            list(map(hook_count, modules)),
            [parameter.data_ptr() for parameter in self.parameters],
            [parameter.requires_grad for parameter in self.parameters],
        )

    def is_as(self, other: Standing) -> bool:
        """Whether all is the same."""
        return self._told == other._told

    def reports(self) -> list[Tensor]:
        """What tells the values of parameters."""
        return fingerprint([parameter.detach() for parameter in self.parameters])


class Trial:
    """Looks at a recompute that runs to its end: could it have been left as soon as all was saved?"""

    def __init__(self, end: EarlyEnd) -> None:
        self._end, self._count = end, 0
        self._nodes: list[Node] = []
        self._before: tuple[Standing, list[Tensor]] | None = None

    def note(self, tensor: Tensor, place: Place | None) -> None:
        """A tensor is saved, which the call was given at ``place``."""
        self._count += 1
        if place is None and tensor.grad_fn is not None:
            self._nodes.append(tensor.grad_fn)
        if self._count == self._end.count:
            standing = self._end.standing()
            self._before = standing, standing.reports()

    def conclude(self) -> None:
        """The recompute has ended."""
        before, after = self._before, self._end.standing()
        allowed = self._count == self._end.count and before is not None and before[0].is_as(after)
        allowed = allowed and self._is_covered()
        self._end.found(allowed=allowed)
        for first, second in zip(before[1], after.reports(), strict=True) if allowed and before else ():
            # Seen when the backward ends. Nothing is wrong then: this recompute was not left.
            changed = functools.partial(self._end.found, allowed=False)
            audit.compare(Comparison(Fingerprint(first), Fingerprint(second), changed))
        self._nodes.clear()  # they hold what the recompute was given

    def _is_covered(self) -> bool:
        """Whether the last float was made of all others."""
        if not self._nodes:
            return False
        wanted = set(self._nodes)
        first = min(node._sequence_nr() for node in wanted)  # what is older was not made by this call
        pending, seen = [self._nodes[-1]], {self._nodes[-1]}
        while pending and not wanted <= seen:
            node = pending.pop()
            following = {before for before, _ in node.next_functions if before is not None} - seen
            following = {before for before in following if before._sequence_nr() >= first}
            seen |= following
            pending.extend(following)
        return wanted <= seen


def again_until(
    call: BlockCall, x: Tensor | None, errors: Failures, end: EarlyEnd | None, given: Collection[int]
) -> tuple[Any, Collected]:
    """Make a call again.

    Args:
        call: the call.
        x: what is handed in anew.
        errors: explain what it raises.
        end: what there is to know of its end; None where its output is needed.
        given: the numbers of what it saves that it was given in its first run.

    Returns:
        Its output, None of one that has ended before, and what it has saved.
    """
    trial = None if end is None else end.trial()
    enough = end.count if end is not None and end.allowed else None
    note = None if trial is None else trial.note
    collected = Collected(call.name, lambda: call.origins(x), given=given, enough=enough, note=note)
    output = None
    with errors.explained(), collected.until_enough(), collected.collecting():
        output = call.again(x, unseen=enough is not None)
        if trial is not None:
            trial.conclude()
    return output, collected
