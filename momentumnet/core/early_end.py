"""Which recomputes end as soon as they have saved what the first run saved: what would follow, nobody is given.

Code that is not run any more may have had something to put right, and values that it would have shown are not compared.
So the first recompute of a module runs to its end, is compared with the forward there, and is looked at: later ones are
left early only where nothing has changed between the last saved tensor and the end, neither parameters nor the default
dtype (buffers and attributes are put back after every recompute), and where all that was saved has gone into the last
float, all values of which are compared.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules import module as all_modules

from momentumnet.arithmetic.fingerprint import fingerprint
from momentumnet.core import audit
from momentumnet.core.audit import Comparison, Fingerprint
from momentumnet.core.failures import Failures
from momentumnet.recompute.origins import Place
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved_tensors import Collected, Enough
from momentumnet.recompute.saved_values import SavedValues
from momentumnet.recompute.uncompiled import is_compiled

# Private: those of register_module_forward_hook and register_module_forward_pre_hook, for all modules.
_GLOBAL_HOOKS = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)

# By module, and by its mode and the number of tensors that a call saves, whether such calls may be left early.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[bool, int], bool]] = weakref.WeakKeyDictionary()


def has_hooks(module: nn.Module) -> bool:
    """Whether something else is called where the module is: a hook, or a ``forward`` of this object's own."""
    hooks = module._forward_hooks or module._forward_pre_hooks or any(_GLOBAL_HOOKS)
    return bool(hooks) or "forward" in vars(module)


class EarlyEnd:
    """What there is to know of the end of one call; to be made when its first run has returned.

    Args:
        call: the call.
        values: of what it has saved, not closed yet.

    Attributes:
        count: of the tensors that it has saved.
        allowed: whether its recomputes are left as soon as all is saved; what is found out later is for later calls.
    """

    def __init__(self, call: BlockCall, values: SavedValues) -> None:
        self._module, self._modules = call.modules[0], call.modules
        self.count = len(values.kinds)
        self._known = _KNOWN.setdefault(self._module, {})
        self._key = (self._module.training, self.count)
        # Not where nothing was saved whose values tell that it is the same, where a stream inside or a hook waits for
        # the end, or a compiler has the code.
        unseen = not any(has_hooks(module) or is_compiled(module) for module in call.modules)
        self._possible = unseen and values.has_computed_floats and not call.holds_streams
        self.allowed = self._possible and self._known.get(self._key, False)

    def trial(self) -> Trial | None:
        """What looks at a recompute that runs to its end; None where there is nothing to be found out."""
        return Trial(self) if self._possible and self._key not in self._known else None

    def found(self, *, allowed: bool) -> None:
        """A trial has ended."""
        self._known[self._key] = allowed

    def standing(self) -> Standing:
        """What code behind the last saved tensor might change."""
        parameters = [
            parameter
            for module in self._modules
            for parameter in module._parameters.values()
            if type(parameter) is nn.Parameter and parameter.layout == torch.strided
        ]
        return Standing(parameters)


class Standing:
    """Parameters and the default dtype at one moment; the values of parameters are told by ``reports``."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.told = torch.get_default_dtype(), [parameter.untyped_storage()._cdata for parameter in parameters]
        self.reports = fingerprint([parameter.detach() for parameter in parameters])


class Trial:
    """Looks at a recompute that runs to its end: could it have been left as soon as all was saved?"""

    def __init__(self, end: EarlyEnd) -> None:
        self._end, self._count = end, 0
        self._nodes: list[Node] = []
        self._standing: Standing | None = None

    def note(self, tensor: Tensor, place: Place | None) -> None:
        """A tensor is saved, which the call was given at ``place``."""
        self._count += 1
        if place is None and tensor.grad_fn is not None:
            self._nodes.append(tensor.grad_fn)
        if self._count == self._end.count:
            self._standing = self._end.standing()

    def conclude(self) -> None:
        """The recompute has ended."""
        before, after = self._standing, self._end.standing()
        allowed = self._count == self._end.count and before is not None and before.told == after.told
        allowed = allowed and self._is_covered()
        self._end.found(allowed=allowed)
        for first, second in zip(before.reports, after.reports, strict=True) if allowed and before else ():
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


def again_until(call: BlockCall, x: Tensor | None, errors: Failures, end: EarlyEnd | None) -> tuple[Any, Collected]:
    """Make a call again.

    Args:
        call: the call.
        x: what is handed in anew.
        errors: explain what it raises.
        end: what there is to know of its end; None where its output is needed.

    Returns:
        Its output, None of one that has ended before, and what it has saved.
    """
    trial = None if end is None else end.trial()
    enough = end.count if end is not None and end.allowed else None
    note = None if trial is None else trial.note
    collected = Collected(call.name, lambda: call.origins(x), enough=enough, note=note)
    output = None
    with suppress(Enough), errors.explained(), collected.collecting():
        output = call.again(x)
        if trial is not None:
            trial.conclude()
    return output, collected
