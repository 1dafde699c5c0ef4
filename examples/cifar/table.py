"""Accuracy of a converted network without fine-tuning, against gamma, with the flush and without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

import momentumnet as mn
from cifar.progress import with_progress
from momentumnet.bench.data.images import ImageData

GAMMAS = ("0", "1/64", "1/16", "1/8", "1/4", "1/2", "0.9")
FINAL_VELOCITIES = ("drop", "flush")
BATCH = 250

# Accuracies (%) of the plain rule in float32, measured without this package: by the file name of a checkpoint, on the
# first 200 test images of each class.
EXPECTED_IMAGES = 2000
TOLERANCE = 0.3
EXPECTED = {
    ("resnet20-12fca82f", "drop"): (92.30, 92.50, 92.05, 91.40, 87.95, 54.10, 12.05),
    ("resnet20-12fca82f", "flush"): (92.30, 92.50, 92.05, 92.30, 91.40, 86.00, 45.15),
    ("resnet56-4bfd9763", "drop"): (93.70, 93.80, 93.65, 93.60, 93.20, 88.20, 15.55),
    ("resnet56-4bfd9763", "flush"): (93.70, 93.75, 93.80, 93.60, 93.20, 91.30, 30.55),
}


@dataclass(frozen=True)
class Cell:
    """One conversion: accuracies in %, and how the arithmetics compare.

    Attributes:
        gamma: as in `GAMMAS`.
        final_velocity: "drop" or "flush".
        exact: accuracy with the exact arithmetic, the one of training.
        plain: accuracy with the plain rule in floats.
        expected: what ``exact`` has to be, where that is known.
        different: number of images that the two classify differently.
        reversible_equal: whether the reversible forward gives the bits of the stored one.
        seconds: what all of this took.
    """

    gamma: str
    final_velocity: str
    exact: float
    plain: float
    expected: float | None
    different: int
    reversible_equal: bool
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether the cell is what it has to be."""
        return self.reversible_equal and (self.expected is None or abs(self.exact - self.expected) <= TOLERANCE)


def predictions(net: nn.Module, data: ImageData) -> Tensor:
    """The class that the network gives each test image, in the grad mode that is on."""
    return torch.cat([net(x).detach().argmax(1) for x, _ in data.test_batches(BATCH)])


def accuracy(classes: Tensor, data: ImageData) -> float:
    """Share of the test images that are classified right, in %."""
    return 100 * float((classes == data.y_test).double().mean())


def measure_cell(name: str, net: nn.Module, data: ImageData, gamma: str, final_velocity: str) -> Cell:
    """Convert the network and classify the test images, with exact arithmetic and with the plain rule.

    Without gradients a converted network runs the plain rule in floats, which is cheapest. The exact arithmetic belongs
    to training, so gradients stay enabled here; as the parameters are frozen, nothing is stored for them.
    """
    start = time.perf_counter()
    examples = data.examples()
    options: dict[str, Any] = {"gamma": Fraction(gamma), "final_velocity": final_velocity}
    stored = mn.convert(net, examples, backward="stored", **options).requires_grad_(False)
    # Before the test images, which may widen the range of stored's numbers. At gamma 0 there is nothing to reverse.
    equal = gamma == "0" or torch.equal(stored(examples), mn.convert(net, examples, **options)(examples))
    exact = predictions(stored, data)
    with torch.no_grad():
        plain = predictions(stored, data)
    return Cell(
        gamma=gamma,
        final_velocity=final_velocity,
        exact=accuracy(exact, data),
        plain=accuracy(plain, data),
        expected=expected_accuracy(name, data, gamma, final_velocity),
        different=int((exact != plain).sum()),
        reversible_equal=equal,
        seconds=time.perf_counter() - start,
    )


def expected_accuracy(name: str, data: ImageData, gamma: str, final_velocity: str) -> float | None:
    """What is known about a checkpoint, or None."""
    if len(data.x_test) != EXPECTED_IMAGES or (name, final_velocity) not in EXPECTED:
        return None
    return EXPECTED[name, final_velocity][GAMMAS.index(gamma)]


def measure_table(name: str, net: nn.Module, data: ImageData, gammas: Sequence[str]) -> list[Cell]:
    """Every cell of the table of one network."""
    settings = [(gamma, final_velocity) for final_velocity in FINAL_VELOCITIES for gamma in gammas]
    progress = with_progress(settings, len(settings), f"{name}: table")
    return [measure_cell(name, net, data, *setting) for setting in progress]


def format_table(name: str, data: ImageData, cells: Sequence[Cell]) -> str:
    """The table as text, with a line on how the arithmetics compare."""
    gammas = list(dict.fromkeys(cell.gamma for cell in cells))
    lines = [f"{name}: accuracy (%) on {len(data.x_test)} test images of {data.name}, no fine-tuning"]
    lines.append(_row("gamma", gammas))
    for final_velocity in FINAL_VELOCITIES:
        row = [cell for cell in cells if cell.final_velocity == final_velocity]
        lines.append(_row(f"{final_velocity}, exact", [f"{cell.exact:.2f}" for cell in row]))
        lines.append(_row(f"{final_velocity}, plain float", [f"{cell.plain:.2f}" for cell in row]))
        if all(cell.expected is not None for cell in row):
            lines.append(_row(f"{final_velocity}, expected", [f"{cell.expected:.2f}" for cell in row]))
    deviations = [abs(cell.exact - cell.expected) for cell in cells if cell.expected is not None]
    if deviations:
        lines.append(f"largest deviation from the expected accuracy: {max(deviations):.2f} (allowed: {TOLERANCE})")
    equal = all(cell.reversible_equal for cell in cells)
    lines += [
        f"exact against plain float: at most {max(cell.different for cell in cells)} images classified differently",
        f"reversible against stored forward: {'equal to the bit' if equal else 'DIFFERENT'}",
        f"{len(cells)} cells in {sum(cell.seconds for cell in cells):.0f} s",
    ]
    return "\n".join(lines)


def _row(label: str, values: Sequence[str]) -> str:
    return f"{label:<20}" + "".join(f"{value:>8}" for value in values)
