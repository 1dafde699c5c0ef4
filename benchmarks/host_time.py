"""What a block costs the host: the engine beside checkpointing, and beside the least that a reversible step can do.

python benchmarks/host_time.py --output benchmarks/results

A pre-norm encoder of 24 layers of width 8, so small that all its time is the host's. The two "least" rows undo steps
with the engine's own kernels and integers, and do nothing else: nothing is checked, no argument, buffer or random
number is kept, no error is explained. One drops saved tensors by hooks, as the engine and non-reentrant checkpointing
do; the other is a function of autograd that differentiates inside of its backward, as reentrant checkpointing does.
What they take is what no engine of this kind that is written in Python goes below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.bench.measuring.timing import interleaved_seconds
from momentumnet.bench.measuring.training_step import TrainingStep, gradient_error
from momentumnet.bench.networks.measured import NETWORKS
from momentumnet.bench.reporting.results import Results
from momentumnet.bench.reporting.tables import Table, write_markdown
from momentumnet.core.rules.momentum import Momentum
from momentumnet.core.state.exact_state import ExactState

NETWORK = "encoder-24-narrow"
RULE = Momentum(Fraction(1, 8))
WEIGHT = 1 - RULE.gamma
# As the engine takes it for this network; any scale that holds the values costs the same.
EXPONENT, BITS = 20, 29

Way = Callable[[Iterable[nn.Module], Tensor], Tensor]


class Walked(nn.Module):
    """The network's blocks, called one after the other in some way."""

    def __init__(self, blocks: Iterable[nn.Module], way: Way) -> None:
        super().__init__()
        self.blocks, self._way = nn.ModuleList(blocks), way

    def forward(self, x: Tensor) -> Tensor:
        return self._way(self.blocks, x)


class Steps:
    """A state, and what its steps need to be undone."""

    def __init__(self, x: Tensor) -> None:
        options: dict[str, Any] = {"word": fp.word_for(x.dtype), "careful": False}
        self.state = ExactState(x, None, RULE.gamma, EXPONENT, "stream", BITS, **options)
        self._undos: list[Any] = []

    def make(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The next x, and what carries the gradient of the next v."""
        self._undos.append(self.state.step(Branch(y.detach(), x.detach()), WEIGHT))
        return self.state.position(x.dtype), torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)

    def input(self) -> Tensor:
        """That of the last block, as a leaf."""
        return self.state.previous_position(self._undos[-1], torch.float32).requires_grad_()

    def undo(self, y: Tensor, x: Tensor) -> None:
        """Take the last step back."""
        last = self._undos.pop()
        self.state.undo(last, Branch(y.detach(), x.detach()), WEIGHT, ahead=bool(self._undos))


def adjoint(grad_x: Tensor, grad_v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y, v and x."""
    grad_v = torch.zeros_like(grad_x) if grad_v is None else grad_v
    return RULE.adjoint(grad_x, grad_v, float(WEIGHT), branch_is_output=False, overwrite=True)


class Moved(torch.autograd.Function):
    """(block output y, x, v) -> (x, v) after the step."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, v: Tensor | None, steps: Steps) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.has_velocity = v is not None
        return steps.make(y, x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_v: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_velocity, grad_position = adjoint(grad_x, grad_v)
        return grad_y, grad_position, grad_velocity if ctx.has_velocity else None, None


class Hooked:
    """A block whose saved tensors are dropped, and computed again for the first one that is asked for."""

    def __init__(self, block: nn.Module, steps: Steps) -> None:
        self._block, self._steps, self._count = block, steps, 0
        self._tensors: list[Tensor] = []

    def drop(self, _: Tensor) -> tuple[Hooked, int]:
        self._count += 1
        return self, self._count - 1

    def refill(self) -> None:
        x = self._steps.input()
        with torch.enable_grad(), saved_tensors_hooks(self._collect, _never):
            y = self._block(x)
        self._steps.undo(y, x)

    def _collect(self, tensor: Tensor) -> None:
        self._tensors.append(tensor.detach())

    @staticmethod
    def open(place: tuple[Hooked, int]) -> Tensor:
        own, number = place
        if not own._tensors:
            own.refill()
        return own._tensors[number]


def _never(_: None) -> Tensor:
    raise NotImplementedError("the graph of a recompute is not run through")


def least_by_hooks(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    steps, v = Steps(x), None
    for block in blocks:
        hooked = Hooked(block, steps)
        with saved_tensors_hooks(hooked.drop, Hooked.open):
            y = block(x)
        x, v = Moved.apply(y, x, v, steps)
    return x


class Whole(torch.autograd.Function):
    """(x, v, parameters) -> (x, v) behind a block."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor | None, steps: Steps, block: nn.Module, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.steps, ctx.block, ctx.parameters, ctx.has_velocity = steps, block, parameters, v is not None
        with torch.enable_grad():  # without, PyTorch picks other kernels, whose last bits differ
            y = block(x.detach().requires_grad_())
        return steps.make(y, x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_v: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_velocity, grad_position = adjoint(grad_x, grad_v)
        x = ctx.steps.input()
        with torch.enable_grad():
            y = ctx.block(x)
        ctx.steps.undo(y, x)
        grad_input, *gradients = torch.autograd.grad(y, [x, *ctx.parameters], grad_y)
        velocity = grad_velocity if ctx.has_velocity else None
        return grad_position + grad_input, velocity, None, None, *gradients


def least_by_a_function(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    steps, v = Steps(x), None
    for block in blocks:
        x, v = Whole.apply(x, v, steps, block, *block.parameters())
    return x


def stored(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def checkpointed(blocks: Iterable[nn.Module], x: Tensor, *, use_reentrant: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=use_reentrant)
    return x


def networks(device: torch.device) -> tuple[dict[str, nn.Module], TrainingStep]:
    """Each method's network, all with the same parameters, and the step."""
    network = NETWORKS[NETWORK]
    torch.manual_seed(0)
    model, x = network.build().to(device), network.example().to(device).requires_grad_()
    blocks = list(model.get_submodule(network.containers[0]).children())
    ways: dict[str, Way] = {
        "stored": stored,
        "checkpoint": partial(checkpointed, use_reentrant=False),
        "checkpoint, reentrant": partial(checkpointed, use_reentrant=True),
        "least, by hooks": least_by_hooks,
        "least, by a function": least_by_a_function,
    }
    found: dict[str, nn.Module] = {name: Walked(blocks, way) for name, way in ways.items()}
    return {**found, "momentum 1/8": mn.convert(model, x, gamma=1 / 8, final_velocity="drop")}, TrainingStep(x, None)


def measured(results: Results, device: torch.device, repeats: int) -> None:
    """Adds a row for each method."""
    nets, step = networks(device)
    operations = {name: partial(step, net) for name, net in nets.items()}
    seconds = interleaved_seconds(operations, repeats=repeats, device=device)
    depth = len(NETWORKS[NETWORK].build().get_submodule("blocks"))  # type: ignore[arg-type]
    for name, net in nets.items():
        # The others compute another function, or this one itself.
        difference = gradient_error(step, net, nets["momentum 1/8"]) if name.startswith("least") else None
        row = {"method": name, "seconds_of_a_block": seconds[name] / depth, "difference": difference}
        results.add([{**row, "to_checkpoint": seconds[name] / seconds["checkpoint"]}])


def table_of(results: Results, repeats: int) -> Table:
    """The rows for people."""
    rows = [
        [
            row["method"],
            f"{1e6 * row['seconds_of_a_block']:.0f}",
            f"{row['to_checkpoint']:.2f}",
            "" if row["difference"] is None else f"{row['difference']:.1e}",
        ]
        for row in results.rows
    ]
    note = (
        "Forward and backward of 24 pre-norm encoder layers of width 8 on 2 x 3 tokens, one thread: medians of "
        f"{repeats} runs that take turns. 'checkpoint' is torch.utils.checkpoint with use_reentrant=False. 'least': "
        "the engine's kernels and integers, and none of its checks; nothing that a block depends on is kept "
        "(benchmarks/host_time.py). Last column: relative L2 difference of their gradient from momentum's."
    )
    return Table(
        "Host time of a block", ("method", "µs a block and step", "to checkpoint", "difference"), rows, [note], left=1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of host-time.json and .md")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"network": NETWORK, "repeats": options.repeats}
    results = Results.begin(
        options.output / "host-time.json", command="host_time", device=options.device, settings=settings
    )
    measured(results, options.device, options.repeats)
    table = table_of(results, options.repeats)
    write_markdown(options.output / "host-time.md", [table], results.header)
    print(table.markdown())


if __name__ == "__main__":
    main()
