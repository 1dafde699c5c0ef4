"""What ``torch.compile`` makes of a network: its blocks one by one, or the whole in a budget of activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
import torch._functorch.config
from torch import Tensor, nn

# What the compiler raises where it cannot compile; no public name covers it.
COMPILE_ERRORS: tuple[type[Exception], ...] = (torch._dynamo.exc.TorchDynamoException,)

# Graphs of one block class: a ResNet's bottleneck has eight shapes, with and without a gradient of its input.
_GRAPHS = 64


class BudgetedActivations(nn.Module):
    """A network compiled as a whole, which keeps a share of the activations and computes the others again.

    Args:
        model: The network; compiled in place.
        share: Of what the compiled network would keep without a budget.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.model, self._share = model, share
        model.compile(dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        # The first call compiles, and so may any later one. There is no public name for the budget.
        with torch._functorch.config.patch(activation_memory_budget=self._share):
            output: Tensor = self.model(x)
        return output


def compile_each(blocks: Iterable[nn.Module]) -> None:
    """Compiles every block in place, for the shapes that it gets; equal blocks share their code."""
    for block in blocks:
        block.compile(dynamic=False)


@contextmanager
def compilation() -> Iterator[None]:
    """Room for the graphs of all methods of a network, which are forgotten at the end.

    Beyond PyTorch's limit of 8 a block would run uncompiled, with no more than a warning.
    """
    # The name that all versions know; later ones call it recompile_limit too.
    with torch._dynamo.config.patch(cache_size_limit=_GRAPHS):
        try:
            yield
        finally:
            torch._dynamo.reset()
