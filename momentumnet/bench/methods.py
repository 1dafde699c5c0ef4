"""The ways to train a network whose cost is compared."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from momentumnet.bench.networks import Network
from momentumnet.convert import convert, plan
from momentumnet.memory import measure_memory

STORED, CHECKPOINT, CHECKPOINT_ROOT = "stored", "checkpoint", "checkpoint √n"

# What names say of a conversion that keeps more than it must: the modules outside the streams, or the last blocks.
OTHERS_KEPT, LAST_KEPT = ", others kept", ", last kept"

Build = Callable[[nn.Module, Tensor], nn.Module]


class Segment(nn.Module):
    """Blocks in a row whose activations PyTorch's checkpointing computes again together."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, **options: Any) -> Any:
        return checkpoint(self._run, x, use_reentrant=False, **options)

    def _run(self, x: Tensor, **options: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, **options)
        return x


def methods(
    network: Network, gammas: Sequence[Fraction], *, arithmetics: Sequence[str], keeping: bool = False
) -> dict[str, Build]:
    """How to make the network's variants, by name, from the unconverted model and its input.

    Stored activations; ``torch.utils.checkpoint`` around every block, and around every √n of n blocks; converted at
    each gamma in each arithmetic, with the blocks outside the streams recomputed; with ``keeping``, in exact arithmetic
    also with those kept as they are, and with the last blocks kept, in as many bytes as checkpointing every block holds
    more. The variants share their parameters.
    """
    named: dict[str, Build] = {
        STORED: lambda model, _: model,
        CHECKPOINT: lambda model, _: checkpointed(model, network.containers, every=1),
        CHECKPOINT_ROOT: lambda model, _: checkpointed(model, network.containers, every=None),
    }
    for gamma in gammas:
        for arithmetic in arithmetics:
            named[momentum_name(gamma, arithmetic)] = converter(gamma, arithmetic)
        if keeping:
            named[momentum_name(gamma) + OTHERS_KEPT] = converter(gamma, "exact", others="keep")
            named[momentum_name(gamma) + LAST_KEPT] = _as_much_as_checkpointed(network, gamma)
    return named


def momentum_name(gamma: Fraction, arithmetic: str = "exact") -> str:
    """How a converted network is called in tables and plots."""
    return f"momentum {gamma}" + ("" if arithmetic == "exact" else f" {arithmetic}")


def converter(
    gamma: Fraction, arithmetic: str, *, backward: str = "reversible", others: str = "checkpoint", spare: int = 0
) -> Build:
    """Converts; by default with the blocks outside the streams checkpointed, as ``CHECKPOINT`` does it with them."""

    def build(model: nn.Module, x: Tensor) -> nn.Module:
        with warnings.catch_warnings():
            # The float arithmetic's warning of its error; here the error itself is measured.
            warnings.simplefilter("ignore")
            return convert(
                twin(model),
                x,
                gamma=gamma,
                arithmetic=arithmetic,
                backward=backward,
                others=others if backward == "reversible" else "keep",
                spare=spare,
                inplace=True,
            )

    return build


def _as_much_as_checkpointed(network: Network, gamma: Fraction) -> Build:
    """Converts, and keeps the last blocks until the network holds as much as where every block is checkpointed."""

    def build(model: nn.Module, x: Tensor) -> nn.Module:
        reference = checkpointed(model, network.containers, every=1)
        held = measure_memory(lambda: reference(x)).saved_bytes
        least = plan(model, x, gamma=gamma, others="checkpoint").saved_after
        return converter(gamma, "exact", spare=max(0, held - least))(model, x)

    return build


def twin(model: nn.Module) -> nn.Module:
    """A copy with the same parameters, and buffers of its own."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def checkpointed(model: nn.Module, containers: Sequence[str], *, every: int | None) -> nn.Module:
    """A twin whose blocks are recomputed in segments of ``every``, or of √n of its n blocks."""
    model = twin(model)
    blocks = [block for path in containers for block in model.get_submodule(path).children()]
    size = every or math.ceil(math.sqrt(len(blocks)))
    segments = [Segment(blocks[start : start + size]) for start in range(0, len(blocks), size)]
    for path in containers:
        # All segments go where the first blocks were: the containers run one after the other.
        kind = type(model.get_submodule(path))
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, kind(*segments) if kind is nn.Sequential else kind(segments))
        segments = []
    return model
