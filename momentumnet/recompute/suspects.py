"""What may have made a recompute another one than its first run: words for an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from momentumnet.listing import quoted
from momentumnet.recompute.arguments.arguments import parameter_names
from momentumnet.recompute.attributes.left_attributes import left_by_a_call
from momentumnet.recompute.attributes.moved_parameters import REPLACED_BY

# The threads in which blocks have been called, to name them where a block that draws is not reconstructed.
_THREADS: set[int] = set()


def note_thread() -> None:
    """A block is called in this thread."""
    _THREADS.add(threading.get_ident())


def hook_count(module: nn.Module) -> int:
    """How many forward hooks and forward pre-hooks the module has."""
    table = module.__dict__
    return len(table["_forward_hooks"]) + len(table["_forward_pre_hooks"])


@dataclass(frozen=True)
class Suspects:
    """What is known of a call that may have made its recompute another one. It holds none of the call's tensors.

    Attributes:
        name: the block's dotted name.
        module: the block.
        changed: position or keyword, and type, of each argument object that the first run changed.
        draws: whether the call drew random numbers.
        hooks: by module of the call, how many forward hooks it had then.
        replaced: gives the name of a parameter that has been replaced since, quoted, or None.
    """

    name: str
    module: nn.Module
    changed: Sequence[tuple[int | str, str]]
    draws: bool
    hooks: Sequence[tuple[nn.Module, int]]
    replaced: Callable[[], str | None]

    def sentences(self) -> list[str]:
        """In words, without a full stop."""
        names = [f"argument {self._name_of(key)!r} ({kind})" for key, kind in self.changed]
        found = []
        if names:
            found.append(
                f"the first run changed its {' and '.join(names)}, which refuses to be copied, so that the recompute "
                "was given it as it is now. Let its class be copied (copy.copy), or leave it as it is in training"
            )
        if names := self._hooked_otherwise():
            found.append(
                f"forward hooks of {quoted(names)} have been added or removed since its forward, and hooks belong to "
                "what is recomputed: change them after the backward"
            )
        if parameter := self.replaced():
            found.append(
                f"of its parameters {parameter} has been replaced since its forward ({REPLACED_BY}): do that after the "
                "backward"
            )
        if self.draws and len(_THREADS) > 1:
            found.append(
                "the block draws random numbers and blocks have run in several threads: threads share torch's "
                "generators, so what one draws is missing in another. Train in a process each, or one after the other"
            )
        return found

    def _hooked_otherwise(self) -> list[str]:
        """Names of the modules that have more or fewer forward hooks than the call had found."""
        changed = {module for module, count in self.hooks if hook_count(module) != count}
        return [name for name, module in self.module.named_modules(prefix=self.name) if module in changed]

    @property
    def moves_statistics(self) -> bool:
        """Whether norms in the block move running statistics, which recomputes are given where its code reads them."""
        norms = [module for module in self.module.modules() if isinstance(module, _NormBase)]
        return any(norm.training and norm.running_mean is not None for norm in norms)

    def attributes_of_a_pass(self) -> list[str]:
        """Names of attributes of the block that hold what a call has computed: the next call may begin with it."""
        return [
            f"{name}.{attribute}" if name else attribute
            for name, module in self.module.named_modules(prefix=self.name)
            for attribute in left_by_a_call(module)
        ]

    def _name_of(self, key: int | str) -> str:
        if isinstance(key, str):
            return key
        names = parameter_names(self.module)
        return names[key] if key < len(names) else f"number {key}"
