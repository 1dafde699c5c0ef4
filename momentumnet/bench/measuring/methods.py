"""The ways to train a network whose cost is compared."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from momentumnet.bench.measuring.compiled import BudgetedActivations, compile_each
from momentumnet.bench.networks.measured import Network
from momentumnet.conversion.conversion import convert

STORED, CHECKPOINT, CHECKPOINT_ROOT = "stored", "checkpoint", "checkpoint √n"
# The same once more: how far it is from the first is chance.
STORED_AGAIN = "stored, again"
OFFLOADED, HALF_KEPT = "offloaded", "compiled, half the activations"

# What names say of a conversion that keeps the modules outside the streams.
OTHERS_KEPT = ", others kept"

# What names say of a method whose blocks are compiled one by one.
COMPILED_BLOCKS = ", compiled blocks"

Build = Callable[[nn.Module, Tensor], nn.Module]
Copy = Callable[[nn.Module], nn.Module]


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


class Offloaded(nn.Module):
    """The network, with all that autograd saves in the host's memory between forward and backward."""

    def __init__(self, model: nn.Module, *, pinned: bool) -> None:
        super().__init__()
        self.model, self._pinned = model, pinned

    def forward(self, x: Tensor) -> Tensor:
        with save_on_cpu(pin_memory=self._pinned):
            output: Tensor = self.model(x)
        return output


def methods(
    network: Network,
    gammas: Sequence[Fraction],
    *,
    arithmetics: Sequence[str],
    keeping: bool = False,
    offloading: bool = False,
    compiling: bool = False,
) -> dict[str, Build]:
    """How to make the network's variants, by name, from the unconverted model and its input.

    Stored activations; ``torch.utils.checkpoint`` around every block, and around every √n of n blocks; converted at
    each gamma in each arithmetic, with the blocks outside the streams recomputed; with ``keeping``, in exact
    arithmetic also with those kept as they are. With ``offloading``, activations in the host's memory. With
    ``compiling``, all but these and the float arithmetic also with compiled blocks, and compiled as a whole in half
    of the activations (`compilation` must be open where they run). The variants share their parameters. Of a network
    whose blocks are not known, what needs them is left out.
    """
    known = bool(network.containers)
    named = {STORED: _stored, **(_checkpointing(network, twin) if known else {})}
    if offloading:
        named[OFFLOADED] = lambda model, x: Offloaded(model, pinned=x.is_cuda)
    for gamma in gammas:
        for arithmetic in arithmetics:
            named[momentum_name(gamma, arithmetic)] = converter(gamma, arithmetic)
        if keeping:
            named[momentum_name(gamma) + OTHERS_KEPT] = converter(gamma, "exact", others="keep")
    return {**named, **_compiled(network, gammas)} if compiling and known else named


def _stored(model: nn.Module, _: Tensor) -> nn.Module:
    return model


def _checkpointing(network: Network, duplicate: Copy) -> dict[str, Build]:
    return {
        name: lambda model, _, every=every: checkpointed(  # type: ignore[misc]
            model, network.containers, every=every, duplicate=duplicate
        )
        for name, every in ((CHECKPOINT, 1), (CHECKPOINT_ROOT, None))
    }


def _compiled(network: Network, gammas: Sequence[Fraction]) -> dict[str, Build]:
    """The blocks are compiled before they are checkpointed or converted: compiled code lies inside."""
    duplicate = partial(compiled_twin, containers=network.containers)
    builds: dict[str, Build] = {STORED: lambda model, _: duplicate(model), **_checkpointing(network, duplicate)}
    for gamma in gammas:
        builds[momentum_name(gamma)] = converter(gamma, "exact", duplicate=duplicate)
    named = {name + COMPILED_BLOCKS: build for name, build in builds.items()}
    named[HALF_KEPT] = lambda model, _: BudgetedActivations(twin(model), 0.5)
    return named


def momentum_name(gamma: Fraction, arithmetic: str = "exact") -> str:
    """How a converted network is called in tables and plots."""
    return f"momentum {gamma}" + ("" if arithmetic == "exact" else f" {arithmetic}")


def twin(model: nn.Module) -> nn.Module:
    """A copy with the same parameters, and buffers of its own."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def compiled_twin(model: nn.Module, containers: Sequence[str]) -> nn.Module:
    """A twin with compiled blocks."""
    model = twin(model)
    compile_each(blocks_in(model, containers))
    return model


def blocks_in(model: nn.Module, containers: Sequence[str]) -> list[nn.Module]:
    """The blocks of the containers, in the order in which they run."""
    return [block for path in containers for block in model.get_submodule(path).children()]


def converter(
    gamma: Fraction,
    arithmetic: str,
    *,
    backward: str = "auto",
    others: str = "checkpoint",
    duplicate: Copy = twin,
) -> Build:
    """Converts; by default with the blocks outside the streams checkpointed, as ``CHECKPOINT`` does it with them."""

    def build(model: nn.Module, x: Tensor) -> nn.Module:
        with warnings.catch_warnings():
            # The float arithmetic's warning of its error; here the error itself is measured.
            warnings.simplefilter("ignore")
            return convert(
                duplicate(model),
                x,
                gamma=gamma,
                arithmetic=arithmetic,
                backward=backward,
                others=others if backward != "stored" else "keep",
                inplace=True,
            )

    return build


def checkpointed(
    model: nn.Module, containers: Sequence[str], *, every: int | None, duplicate: Copy = twin
) -> nn.Module:
    """A twin whose blocks are recomputed in segments of ``every``, or of √n of its n blocks."""
    model = duplicate(model)
    blocks = blocks_in(model, containers)
    size = every or math.ceil(math.sqrt(len(blocks)))
    segments = [Segment(blocks[start : start + size]) for start in range(0, len(blocks), size)]
    for path in containers:
        # All segments go where the first blocks were: the containers run one after the other.
        kind = type(model.get_submodule(path))
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, kind(*segments) if kind is nn.Sequential else kind(segments))
        segments = []
    return model
