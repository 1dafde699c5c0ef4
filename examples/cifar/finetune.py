"""Fine-tuning a converted network with the reversible and with the stored backward, from the same seed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from cifar.progress import with_progress
from cifar.table import accuracy, predictions
from momentumnet.bench.data.images import ImageData
from momentumnet.memory import format_bytes

GAMMA = "1/8"
BATCH = 128
LEARNING_RATE = 0.01
SEED = 0
BACKWARDS = ("reversible", "stored")
# Largest difference of two losses that still counts as the same curve.
SAME_LOSS = 1e-5


@dataclass(frozen=True)
class Finetuning:
    """One epoch with one kind of backward. Accuracies in %; bytes as `momentumnet.measure_memory` counts them."""

    losses: list[float]
    accuracy_after: float
    peak_bytes: int
    saved_bytes: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """The epoch with both kinds of backward, and one step of the network as it was.

    Attributes:
        accuracy_original: of the network before its conversion.
        accuracy_before: of the converted network before fine-tuning.
        original_peak_bytes: peak of one training step of the unconverted network.
        original_saved_bytes: what that step holds between forward and backward.
        runs: by kind of backward.
        largest_difference: of the two loss curves.
        parameters_equal: whether both runs end with the same bits in every parameter and buffer.
    """

    accuracy_original: float
    accuracy_before: float
    original_peak_bytes: int
    original_saved_bytes: int
    runs: dict[str, Finetuning]
    largest_difference: float
    parameters_equal: bool

    @property
    def as_expected(self) -> bool:
        """Whether the two loss curves are the same, in less memory."""
        reversible, stored = (self.runs[backward] for backward in BACKWARDS)
        return self.largest_difference <= SAME_LOSS and reversible.peak_bytes < stored.peak_bytes


def sgd(net: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of all runs."""
    return torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4)


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One step; returns the loss before it."""
    optimizer.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train_epoch(
    net: nn.Module, data: ImageData, label: str, *, learning_rate: float, seed: int = SEED, steps: int | None = None
) -> list[float]:
    """Train for one epoch of full batches, or for its first ``steps``; returns the loss of each step."""
    optimizer = sgd(net.train(), learning_rate)
    count = len(data.x_train) // BATCH if steps is None else steps
    batches = islice(data.train_batches(BATCH, seed), count)
    losses = [train_step(net, optimizer, x, y) for x, y in with_progress(batches, count, label)]
    net.eval()
    return losses


def step_memory(net: nn.Module, data: ImageData) -> mn.MemoryReport:
    """Memory of one training step of a copy of the network, on one batch."""
    net = copy.deepcopy(net).train()
    optimizer = sgd(net, LEARNING_RATE)
    x, y = next(data.train_batches(BATCH, SEED))
    return mn.measure_memory(lambda: train_step(net, optimizer, x, y))


def finetune(
    net: nn.Module, data: ImageData, backward: str, *, steps: int | None = None
) -> tuple[nn.Module, Finetuning]:
    """Convert the network at gamma 1/8 and fine-tune it with one kind of backward."""
    converted = mn.convert(net, data.examples(), gamma=Fraction(GAMMA), backward=backward)
    memory = step_memory(converted, data)
    torch.manual_seed(SEED)
    start = time.perf_counter()
    label = f"fine-tuning, {backward} backward"
    losses = train_epoch(converted, data, label, learning_rate=LEARNING_RATE, steps=steps)
    seconds = time.perf_counter() - start
    after = classified_right(converted, data)
    run = Finetuning(
        losses=losses,
        accuracy_after=after,
        peak_bytes=memory.peak_bytes,
        saved_bytes=memory.saved_bytes,
        seconds=seconds,
    )
    return converted, run


def compare_backwards(net: nn.Module, data: ImageData, *, steps: int | None = None) -> Comparison:
    """Fine-tune the network twice, reversible and stored, from the same seed."""
    converted = mn.convert(net, data.examples(), gamma=Fraction(GAMMA))
    memory = step_memory(net, data)
    finetuned, runs = {}, {}
    for backward in BACKWARDS:
        finetuned[backward], runs[backward] = finetune(net, data, backward, steps=steps)
    losses = torch.tensor([runs[backward].losses for backward in BACKWARDS], dtype=torch.float64)
    states = [finetuned[backward].state_dict().values() for backward in BACKWARDS]
    return Comparison(
        accuracy_original=classified_right(net, data),
        accuracy_before=classified_right(converted, data),
        original_peak_bytes=memory.peak_bytes,
        original_saved_bytes=memory.saved_bytes,
        runs=runs,
        largest_difference=float((losses[0] - losses[1]).abs().max()),  # NaN, where a loss is
        parameters_equal=all(torch.equal(a, b) for a, b in zip(*states, strict=True)),
    )


def classified_right(net: nn.Module, data: ImageData) -> float:
    """Accuracy (%) on the test images, without gradients."""
    with torch.no_grad():
        return accuracy(predictions(net, data), data)


def format_comparison(name: str, data: ImageData, comparison: Comparison) -> str:
    """What was measured, as text."""
    steps = len(comparison.runs["stored"].losses)
    lines = [
        f"{name}: fine-tuning at gamma {GAMMA}, {steps} steps of {BATCH} training images of {data.name}",
        f"accuracy (%) on {len(data.x_test)} test images: {comparison.accuracy_original:.2f} before conversion, "
        f"{comparison.accuracy_before:.2f} converted",
        f"{'':<20}{'accuracy after':>16}{'peak of a step':>16}{'held for backward':>19}{'seconds':>9}",
        _row("not converted", None, comparison.original_peak_bytes, comparison.original_saved_bytes, None),
    ]
    for backward, run in comparison.runs.items():
        lines.append(_row(backward, run.accuracy_after, run.peak_bytes, run.saved_bytes, run.seconds))
    shown = sorted({round(place * (steps - 1) / 5) for place in range(6)})
    lines.append("loss at step        " + "".join(f"{step + 1:>12}" for step in shown))
    for backward, run in comparison.runs.items():
        lines.append(f"{backward:<20}" + "".join(f"{run.losses[step]:>12.8f}" for step in shown))
    equal = "equal to the bit" if comparison.parameters_equal else "not equal to the bit"
    lines.append(f"largest difference of the losses over all {steps} steps: {comparison.largest_difference:.3g}")
    lines.append(f"parameters and buffers at the end: {equal}")
    return "\n".join(lines)


def _row(label: str, after: float | None, peak: int, saved: int, seconds: float | None) -> str:
    shown = "" if after is None else f"{after:.2f}"
    time_taken = "" if seconds is None else f"{seconds:.0f}"
    return f"{label:<20}{shown:>16}{format_bytes(peak):>16}{format_bytes(saved):>19}{time_taken:>9}"
