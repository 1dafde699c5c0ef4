"""Parameters that a call moves itself: a teacher that is an average, weights that are normalised or set from data.

A recompute begins with their values before the call, as far as they are known, and leaves them where the call has left
them: an average is not taken twice.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from momentumnet.errors import ReconstructionError
from momentumnet.parameter_parts import is_flattened
from momentumnet.recompute.surroundings.generators import AS_IT_IS, bytes_on_host
from momentumnet.recompute.values.buffer_values import COPIED_ANYWAY
from momentumnet.recompute.values.counters import version
from momentumnet.recompute.values.looks import has_lost_its_memory

# By block, the numbers of those parameters that its calls move: their values are copied before the next one.
_MOVED: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()
_FSDP_MODULE = "_is_fsdp_managed_module"  # on each module in one that FSDP has wrapped
REPLACED_BY = "another nn.Parameter, load_state_dict(assign=True), an assignment to its .data, a move to another device"


@contextmanager
def requiring_gradients(parameters: Sequence[tuple[Tensor, bool]]) -> Iterator[None]:
    """Context of a recompute: parameters that were frozen or thawed since take a gradient or none, as in forward."""
    now = [(parameter, parameter.requires_grad) for parameter, _ in parameters]
    try:
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
        yield
    finally:
        for parameter, requires_grad in now:
            parameter.requires_grad_(requires_grad)


def plain_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The modules' parameters that lie in memory of their own, in order."""
    return [
        parameter
        for module in modules
        for parameter in module.__dict__["_parameters"].values()
        if type(parameter) is nn.Parameter and parameter.layout == torch.strided
    ]


def _shortened_when_used(modules: Iterable[nn.Module]) -> set[int]:
    """The numbers of weights whose rows an embedding scales down in place before it looks at them (max_norm)."""
    embeddings = [module for module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    owners = [module for module in embeddings if module.max_norm is not None]
    if not owners:
        return set()
    own = {id(owner._parameters.get("weight")) for owner in owners}
    return {number for number, parameter in enumerate(plain_parameters(modules)) if id(parameter) in own}


class MovedParameters:
    """What a call moves of its modules' parameters; to be made before its first run.

    The old value is known of one that an earlier call of the block has moved, and of an embedding's whose rows have a
    largest norm; of one that is assigned (``p.data =``) in the block's first call, or takes no gradient; and of a small
    one on the CPU that takes none.

    Args:
        block: which is called.
        modules: those of the block, and it itself, whose parameters may move.
    """

    def __init__(self, block: nn.Module, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._parameters = parameters = plain_parameters(modules)
        self._places = _places(parameters)
        is_first = block not in _MOVED
        self._known = known = _MOVED.setdefault(block, set())
        shortened = _shortened_when_used(modules)
        # By number: copies, and where the others lay.
        self._copies: dict[int, Tensor] = {}
        self._aliases: dict[int, Tensor] = {}
        for number, parameter in enumerate(parameters):
            is_small = not parameter.requires_grad and parameter.is_cpu and parameter.numel() <= COPIED_ANYWAY
            if is_small or number in known or number in shortened:
                self._copies[number] = parameter.detach().clone()
            elif is_first or not parameter.requires_grad:
                self._aliases[number] = parameter.detach()
        self._moved: list[tuple[nn.Parameter, Tensor | None]] = []
        self._numbers: set[int] = set()  # of those that have moved

    def forget_unmoved(self) -> list[nn.Parameter]:
        """The first run has ended; returns those that it has moved."""
        places = _places(self._parameters)
        if places != self._places or any(map(self._is_written, self._copies)):
            for number, (counter, pointer) in enumerate(zip(*self._places, strict=True)):
                is_moved = (places[0][number], places[1][number]) != (counter, pointer)
                if is_moved or (number in self._copies and self._is_written(number)):
                    self._note(number, counter, pointer)
        self._parameters, self._copies, self._aliases = [], {}, {}
        return [parameter for parameter, _ in self._moved]

    def _is_written(self, number: int) -> bool:
        """Of one that was copied, on the CPU: whether its values are others, also where no counter tells."""
        parameter, copy = self._parameters[number], self._copies[number]
        if not parameter.is_cpu or not parameter.is_contiguous() or type(copy) is not Tensor:  # of a FakeTensorMode
            return False
        return bytes_on_host(parameter) != bytes_on_host(copy)

    def _note(self, number: int, counter: int, pointer: int) -> None:
        parameter = self._parameters[number]
        if not pointer or has_lost_its_memory(parameter) or _is_managed(parameter):
            return
        self._known.add(number)
        value = self._copies.get(number)
        if value is None and version(parameter) == counter:
            value = self._aliases.get(number)
        self._moved.append((parameter, value))
        self._numbers.add(number)

    @property
    def can_be_put_back(self) -> bool:
        """Whether all values before the first run are known."""
        return all(value is not None for _, value in self._moved)

    def put_back(self) -> None:
        """As if the first run had not been."""
        for parameter, value in self._moved:
            if value is not None:
                parameter.data = value.clone()

    def check_unmoved(self, block: str) -> None:
        """To be asked in a recompute whose output nobody sees: are the others the very memory that the forward read?

        Raises:
            ReconstructionError: one is not.
        """
        if (parameter := self.replaced()) is not None:
            raise ReconstructionError(
                f"module {block!r}: of its parameters {parameter} was replaced between forward and backward "
                f"({REPLACED_BY}), so the gradient of that forward cannot be computed any more; do that after backward"
            )

    @property
    def replaced(self) -> Callable[[], str | None]:
        """Gives the name of a parameter that is not the memory any more that the forward read, quoted."""
        return functools.partial(_replaced, self._modules, self._places[1], self._numbers)

    def replayed(self) -> AbstractContextManager[None]:
        """Context of a recompute: parameters begin where the first run found them, and end where they stood."""
        return self._replayed() if self._moved else AS_IT_IS

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        # Others in their place: what the recompute saves and writes is no affair of theirs, nor of their counters'.
        others = {
            id(own): nn.Parameter((own.detach() if value is None else value).clone(), requires_grad=own.requires_grad)
            for own, value in self._moved
        }
        places = [
            (module._parameters, name, parameter)
            for module in self._modules
            for name, parameter in module._parameters.items()
            if id(parameter) in others
        ]
        try:
            for table, name, parameter in places:
                table[name] = others[id(parameter)]
            yield
        finally:
            for table, name, parameter in places:
                table[name] = parameter


def _is_managed(parameter: nn.Parameter) -> bool:
    """Whether FSDP1 or DeepSpeed gives it other memory while modules run; FSDP2 takes all memory away from its own."""
    return is_flattened(parameter) or hasattr(parameter, "ds_id")


def _name_of(parameter: nn.Parameter, modules: Sequence[nn.Module]) -> str:
    return next(name for name, found in modules[0].named_parameters() if found is parameter)


def _replaced(modules: Sequence[nn.Module], before: Sequence[int], moved: Collection[int]) -> str | None:
    """Which of the parameters that lay there has been replaced since, not by the call; "one" where there are others."""
    parameters = plain_parameters(modules)
    pointers = [parameter.data_ptr() for parameter in parameters]
    # FSDP2 takes the memory away from parameters between forward and backward, and gives others or more to them.
    if pointers == before or any(getattr(module, _FSDP_MODULE, False) for module in modules):
        return None
    if len(pointers) != len(before):
        return "one"
    changed = (n for n, pointer in enumerate(pointers) if pointer != before[n] and n not in moved)
    return next((repr(_name_of(parameters[number], modules)) for number in changed), None)


def _places(parameters: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Their in-place counters, and where they lie."""
    pointers = [parameter.data_ptr() for parameter in parameters]
    try:
        return [parameter._version for parameter in parameters], pointers
    except RuntimeError:  # tensors of inference mode have none
        return list(map(version, parameters)), pointers
