"""A grammar of residual networks for the fuzz test: what stands in a block, what calls the blocks, how a step is made.

A network is described by names alone (`Net`), so that a case that fails prints what is needed to build it again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.contract.operations import HOSTILE, IN_PLACE, OPERATIONS, ROWS, WIDTH, linear

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


SKIPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + h": lambda x, h: x + h,
    "h + x": lambda x, h: h + x,
    "x + h / 2": lambda x, h: x + 0.5 * h,
    "h.add_(x)": lambda x, h: h.add_(x),
    "x.add_(h)": lambda x, h: x.add_(h),
    "relu(x + h)": lambda x, h: F.relu(x + h),
    "tanh(x + h)": lambda x, h: torch.tanh(x + h),
    "layer_norm(x + h)": lambda x, h: F.layer_norm(x + h, (WIDTH,)),
}
SIDES = ("none", "loss", "none in tuple", "number", "dict", "own generator")
PARENTS = ("loop", "taps", "kwargs", "behind another", "object", "list", "drop", "between", "no grad first")
STEPS = ("plain", "two forwards", "retained", "accumulated", "eval between", "inputs", "second order", "autocast")


@dataclass(frozen=True)
class Block:
    """A block: operations on its branch, its skip, what it returns beside the stream, whether its weights are tied."""

    operations: tuple[str, ...]
    skip: str = "x + h"
    side: str = "none"
    tied: bool = False


@dataclass(frozen=True)
class Net:
    """A network: its blocks in order, and what calls them."""

    blocks: tuple[Block, ...]
    parent: str = "loop"
    dtype: str = "float32"
    seed: int = 0

    @property
    def uses_values_between(self) -> bool:
        """Whether its loss hangs on what a block returns beside what the next one takes."""
        return self.parent == "taps" or any(block.side in ("loss", "dict", "own generator") for block in self.blocks)


@dataclass(frozen=True)
class Step:
    """A training step: what is done in it, and how large its batch is."""

    kind: str = "plain"
    magnitude: float = 1.0


class FuzzBlock(nn.Module):
    """A residual block as a `Block` describes it."""

    def __init__(self, spec: Block, tied: nn.Module) -> None:
        super().__init__()
        operations = {**OPERATIONS, **HOSTILE}
        self.operations = nn.ModuleList([operations[name]() for name in spec.operations])
        self.tied = tied if spec.tied else None
        self.spec = spec
        self.source = torch.Generator().manual_seed(7) if spec.side == "own generator" else None

    def forward(self, x: Tensor, extra: Tensor, notes: Any = None) -> Any:
        h = x
        for operation in self.operations:
            h = operation(h, x, extra)
        if notes is not None:
            h = _noted(notes, h)
        if self.tied is not None:
            h = torch.tanh(self.tied(h))
        side: Any = None
        if self.spec.side == "own generator":
            side = (h * torch.rand(h.shape, generator=self.source).to(h.dtype)).float().square().mean()
        elif self.spec.side in ("loss", "dict"):
            side = h.float().square().mean()
        elif self.spec.side == "number":
            side = 3
        out = SKIPS[self.spec.skip](x, h)
        if self.spec.side == "dict":
            return {"out": out, "loss": side}
        return out if self.spec.side == "none" else (out, side)


class FuzzNet(nn.Module):
    """A stem, the blocks, a head; returns the output and what is added to the loss."""

    def __init__(self, spec: Net) -> None:
        super().__init__()
        tied = linear()
        self.stem = linear()
        self.blocks = nn.ModuleList([FuzzBlock(block, tied) for block in spec.blocks])
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))
        self.spec, self.calls = spec, 0

    def forward(self, x: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        parent, losses = self.spec.parent, torch.zeros(())
        self.calls += self.training
        x = self.stem(x)
        notes = {"object": (SimpleNamespace(keys=[]),), "list": ([],)}.get(parent, ())
        for index, block in enumerate(self.blocks):
            if parent == "drop" and self.training and index == 1 and self.calls % 2:
                continue
            if parent == "between" and index == 1:
                x = x.add_(0.5) if self.spec.seed % 2 else x * 1.5
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (parent == "no grad first" and index == 0)):
                returned = _CALLS.get(parent, _plainly)(block, x, extra, *notes)
            x, loss = _parted(returned)
            if loss is not None:
                losses = losses + loss
            if parent == "taps":
                losses = losses + x.float().tanh().mean()
        return self.head(x), losses


def _plainly(block: nn.Module, *args: Any) -> Any:
    return block(*args)


_CALLS: dict[str, Callable[..., Any]] = {
    "kwargs": lambda block, x, extra: block(x, extra=extra),
    "behind another": lambda block, x, extra: block(extra=extra, x=x),
}


def _noted(notes: Any, h: Tensor) -> Tensor:
    """The branch with what the block before has left in an object or a list, where it is left for the next one."""
    keys = notes if isinstance(notes, list) else notes.keys
    before = keys[-1:]
    keys.append(torch.tanh(h))
    return h + before[0] if before else h


def _parted(returned: Any) -> tuple[Tensor, Tensor | None]:
    """The stream, and the loss beside it."""
    if isinstance(returned, dict):
        return returned["out"], returned["loss"]
    if isinstance(returned, tuple):
        return returned[0], returned[1] if isinstance(returned[1], Tensor) else None
    return returned, None


def build(spec: Net) -> FuzzNet:
    """The network, in training mode; the same weights each time."""
    torch.manual_seed(spec.seed)
    random.seed(spec.seed)
    return FuzzNet(spec).to(DTYPES[spec.dtype]).train()


def inputs(spec: Net, step: int, magnitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """A batch and the further argument, which needs a gradient."""
    source = torch.Generator().manual_seed(1000 * spec.seed + step)
    x, extra = (torch.randn(ROWS, WIDTH, generator=source) for _ in range(2))
    dtype = DTYPES[spec.dtype]
    return (magnitude * x).to(dtype), extra.to(dtype).requires_grad_()


@st.composite
def blocks(draw: st.DrawFn, *, hostile: bool) -> Block:
    """Blocks; ``hostile`` ones may be impossible to make again, or overwrite their input."""
    names = [*OPERATIONS, *(10 * [*HOSTILE] if hostile else ())]
    operations = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    if not hostile and operations[0] in IN_PLACE:
        operations.insert(0, "linear")
    skips = [skip for skip in SKIPS if hostile or skip != "x.add_(h)"]
    skip = draw(st.sampled_from(["x + h", *skips]))
    return Block(tuple(operations), skip, tied=draw(st.booleans()))


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Networks of two to ten blocks of one to three kinds: what they return is the same for all."""
    hostile = draw(st.integers(0, 9)) == 9
    side = draw(st.sampled_from(["none", "none", *SIDES]))
    kinds = draw(st.lists(blocks(hostile=hostile), min_size=1, max_size=3))
    kinds = [Block(kind.operations, kind.skip, side, kind.tied) for kind in kinds]
    order = draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=10).map(tuple))
    parent = draw(st.sampled_from(["loop", "loop", *PARENTS]))
    return Net(order, parent, draw(st.sampled_from(["float32", *DTYPES])), draw(st.integers(0, 9)))


def steps() -> st.SearchStrategy[tuple[Step, ...]]:
    """A few training steps; values may grow and shrink from one to the next."""
    step = st.builds(Step, st.sampled_from(STEPS), st.sampled_from([1.0, 1.0, 0.01, 30.0, 3000.0]))
    return st.lists(step, min_size=1, max_size=4).map(tuple)


@dataclass(frozen=True)
class Case:
    """A network, how it is converted, and how it is trained."""

    net: Net
    options: dict[str, Any]
    steps: tuple[Step, ...]

    @property
    def is_float(self) -> bool:
        return self.options.get("arithmetic") == "float"


# What the plain inverse cannot follow: it loses digits that are multiplied, and those that decide between two ways; and
# what it does not notice, because it compares norms to 1 %.
_TOO_MUCH_FOR_FLOATS = {
    *("times 300", "times 1e-3", "outlier", "largest first", "largest of pairs", "read", "nested stream"),
    *HOSTILE,
}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Networks with options of `momentumnet.convert`; ``by_hand`` stands for streams that are named."""
    net, options = draw(nets()), draw(_options())
    by_hand = draw(st.booleans()) and draw(st.booleans())
    if by_hand:
        options = {name: value for name, value in options.items() if name not in ("others", "spare")} | {
            "by_hand": True
        }
    if "spare" in options:  # chooses these, and gamma unless it is given
        options = {name: value for name, value in options.items() if name not in ("others", "backward")}
        options.setdefault("gamma", 0.125)
    case = Case(net, options, draw(steps()))
    used = {name for block in net.blocks for name in block.operations}
    lost = options.get("gamma", 0.125) ** -len(net.blocks)
    if case.is_float and (net.dtype == "bfloat16" or used & _TOO_MUCH_FOR_FLOATS or lost > 1e3):
        del options["arithmetic"]
    elif case.is_float:
        case = Case(net, options, tuple(Step(step.kind) for step in case.steps))
    return case


def _options() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "gamma": st.sampled_from([1 / 128, 0.25, 0.5, 0.9, 127 / 128]),
            "others": st.just("checkpoint"),
            "spare": st.sampled_from([500, 3000]),
            "initial_velocity": st.just("branch"),
            "final_velocity": st.just("drop"),
            "arithmetic": st.just("float"),
            "backward": st.sampled_from(["checkpointed", "auto"]),
        },
    )
