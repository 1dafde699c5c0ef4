"""What code around units has a name for while they run: local variables, and arguments of the modules around.

Nobody saves it, and it is there: ``x = self.up(x)`` stays while ``self.join(torch.cat([skip, x]))`` runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from momentumnet.core.tensors import transforms
from momentumnet.planner.profiles.unit import Key
from momentumnet.streams.blocks.nested import stream_output, tensors_in
from momentumnet.streams.tracing.calls import Trace, storage_key

# A call of a module: its number in the pass, and the module's name.
Made = tuple[int, str]


@dataclass
class Names:
    """What calls have returned that is alive when a unit begins, in a pass of which autograd keeps nothing.

    Attributes:
        at: by the name of a module and the number of its call, the calls whose output is alive then, those of one
            storage together, with its bytes.
    """

    at: dict[tuple[str, int], list[tuple[list[Made], int]]] = field(default_factory=dict)

    def watch(self, model: nn.Module, firsts: set[str], pauses: Callable[[], bool], stack: ExitStack) -> None:
        """Look at the calls of a pass; ``firsts`` are the names of the modules that units begin with."""
        names = {module: name for name, module in model.named_modules()}
        constants = {storage_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        made: dict[Made, weakref.ref[torch.UntypedStorage]] = {}
        running: list[Made] = []
        times: dict[str, int] = {}
        count = 0

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal count
            if pauses() or transforms.inside() is not None:
                return
            name = names[module]
            running.append((count, name))
            count += 1
            if name in firsts:
                time = times[name] = times.get(name, -1) + 1
                own = {storage_key(tensor) for tensor in tensors_in([args, kwargs])} | constants
                self.at[name, time] = _alive(made, own)

        def leave(module: nn.Module, _: object, output: Any) -> None:
            if pauses() or transforms.inside() is not None:
                return
            while running and running[-1][1] != names[module]:
                running.pop()
            call, tensor = running.pop() if running else None, stream_output(output)
            if call is not None and tensor is not None and storage_key(tensor) is not None:
                made[call] = weakref.ref(tensor.untyped_storage())

        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)

    def of_units(self, trace: Trace, units: Sequence[Sequence[str]], sizes: dict[Key, int]) -> list[frozenset[Key]]:
        """By unit, the storages that have a name while it runs; of those that nobody saves, the sizes are entered."""
        keys = {(call.index, call.name): call.made for call in trace.root.walk()}
        times: dict[str, int] = {}
        own: dict[tuple[Made, ...], Key] = {}
        found = []
        for unit in units:
            time = times[unit[0]] = times.get(unit[0], -1) + 1
            named = set()
            for made, size in self.at.get((unit[0], time), ()):
                known = next((key for key in map(keys.get, made) if key is not None), None)
                if known is None and made[0] in keys:
                    known = own.setdefault((made[0],), min(sizes, default=0) - 1)
                    sizes[known] = size
                if known is not None:
                    named.add(known)
            found.append(frozenset(named))
        return found


def _alive(made: dict[Made, weakref.ref[torch.UntypedStorage]], known: set[Key | None]) -> list[tuple[list[Made], int]]:
    found: dict[Key, tuple[list[Made], int]] = {}
    for call, reference in list(made.items()):
        storage = reference()
        if storage is None:
            del made[call]
        elif storage._cdata not in known:
            found.setdefault(storage._cdata, ([], storage.nbytes()))[0].append(call)
    return list(found.values())


def beside_glue(named: Sequence[Set[Key]], glue: Sequence[tuple[int, frozenset[Key]]]) -> tuple[frozenset[Key], ...]:
    """By unit what has a name, but for what glue keeps by then."""
    return tuple(
        frozenset(keys).difference(*(kept for place, kept in glue if place <= index))
        for index, keys in enumerate(named)
    )
