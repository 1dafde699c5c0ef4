"""The parameters of a call: what its recompute has to find as its forward has left it."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.errors import ConversionError, ReconstructionError
from momentumnet.recompute.arguments.arguments import kept
from momentumnet.recompute.values.counters import version


class Parameters:
    """Those of the modules of one call, none of them kept alive.

    Args:
        block: the call's name, for errors.
        owners: the modules.

    Attributes:
        swapped: plain tensors that `torch.func.functional_call` or FSDP1 has put in the places of parameters, and takes
            out again.

    Raises:
        ConversionError: DeepSpeed keeps a part of each.
    """

    def __init__(self, block: str, owners: Sequence[nn.Module]) -> None:
        self._found: list[tuple[weakref.ref[Tensor], str, int, torch.dtype, bool]] = []
        self.swapped: list[tuple[nn.Module, str, Any]] = []
        aliases: dict[int, Tensor] = {}
        for owner in owners:
            values: Iterable[tuple[str, Tensor | None]] = owner._parameters.items()
            for name, parameter in values:
                if parameter is None:
                    continue
                self._found.append(
                    (weakref.ref(parameter), name, version(parameter), parameter.dtype, parameter.requires_grad)
                )
                if not isinstance(parameter, nn.Parameter):
                    self.swapped.append((owner, name, kept(parameter, aliases)))
        if self._found and hasattr(self._found[0][0](), "ds_id"):
            raise _partitioned(block)

    def expect(self, moved: Collection[nn.Parameter]) -> None:
        """These parameters are to stay as the call itself has left them."""
        if not moved:
            return
        left = {id(parameter): (version(parameter), parameter.dtype) for parameter in moved}
        self._found = [
            (reference, name, *left.get(id(reference()), (counter, dtype)), requires_grad)
            for reference, name, counter, dtype, requires_grad in self._found
        ]

    @contextmanager
    def of_forward(self) -> Iterator[None]:
        """Inside, those that were swapped stand in their places again."""
        owners = {id(owner): owner for owner, _, _ in self.swapped}.values()
        outside = [(owner, dict(owner._parameters)) for owner in owners]  # FSDP1 has taken some out since
        try:
            for owner, name, tensor in self.swapped:
                owner._parameters[name] = tensor
            yield
        finally:
            for owner, parameters in outside:
                owner._parameters.clear()
                owner._parameters.update(parameters)

    def check_unchanged(self, block: str) -> list[tuple[Tensor, bool]]:
        """Returns those of which requires_grad alone has changed since, and what it was.

        Raises:
            ReconstructionError: another type, or a change in place.
        """
        toggled: list[tuple[Tensor, bool]] = []
        for reference, name, counter, dtype, requires_grad in self._found:
            parameter = reference()
            if parameter is None:
                continue
            if parameter.dtype != dtype:  # through .data, which counts as no change in place
                raise ReconstructionError(
                    f"block {block!r}: parameter {name!r} was {dtype} in its forward and is {parameter.dtype} now; "
                    "change the type of the model (.to, .double, .half) after backward"
                )
            if version(parameter) != counter:
                raise ReconstructionError(
                    f"block {block!r}: parameter {name!r} was changed between forward and backward, so the "
                    "gradient of that forward cannot be computed any more; step the optimizer after backward"
                )
            if parameter.requires_grad != requires_grad:
                toggled.append((parameter, requires_grad))
        return toggled


def _partitioned(block: str) -> ConversionError:
    """The error for DeepSpeed's parameters, which it lets go of when a recompute's forward ends."""
    return ConversionError(
        f"the parameters of block {block!r} are partitioned by DeepSpeed's ZeRO stage 3, which lets go of them "
        "between the block's recompute and its gradient. Use stage 1 or 2; or FSDP2 (fully_shard), which shards "
        "parameters too"
    )
