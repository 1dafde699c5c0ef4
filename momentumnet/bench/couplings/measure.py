"""The trainings and times of ``bench couplings``."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.bench.couplings.networks import METHODS, REFERENCE, WIDTH, Rows
from momentumnet.bench.data.images import ImageData
from momentumnet.bench.measuring.timing import interleaved_seconds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings.training import accuracy

CPU = torch.device("cpu")
BATCH, LR = 64, 1e-3
FIRST_CLASSES = 5  # on which networks are pretrained
DRAWS = 8  # passes over which the change of an output that goes by chance is averaged


def measure(seed: int, data: ImageData, *, layers: int, epochs: int, repeats: int) -> list[Row]:
    """A row for each method, all from one pretrained network.

    Args:
        seed: Of the network, its pretraining and the fine-tuning.
        data: The images.
        layers: Of the network.
        epochs: Of the pretraining, and as many of the fine-tuning.
        repeats: Timed steps of each method, which take turns.
    """
    torch.manual_seed(seed)
    net = Rows(layers, FIRST_CLASSES)
    train(net, data, epochs=epochs, seed=seed, classes=FIRST_CLASSES)
    example, y = data.examples(BATCH), data.y_train[:BATCH]
    nets = {name: method.apply(net, example).train() for name, method in METHODS.items()}
    changes = {
        name: [change(own.train(mode), net.train(mode), example) for mode in (True, False)]
        for name, own in nets.items()
    }
    torch.manual_seed(seed)
    head = nn.Linear(WIDTH, data.classes)
    for own in nets.values():
        own.head = copy.deepcopy(head)
        own.train()
    seconds = interleaved_seconds(
        {name: _step(copy.deepcopy(own), example, y) for name, own in nets.items()},
        repeats=repeats,
        device=CPU,
    )
    rows = []
    for name, own in nets.items():
        train(own, data, epochs=epochs, seed=seed, classes=data.classes)
        rows.append(
            {
                "seed": seed,
                "method": name,
                "change_in_training": changes[name][0],
                "change_in_eval": changes[name][1],
                "bits": METHODS[name].bits,
                "seconds": seconds[name],
                "time_to_stored": seconds[name] / seconds[REFERENCE],
                "accuracy": accuracy(own, data, CPU),
            }
        )
    return rows


def train(net: nn.Module, data: ImageData, *, epochs: int, seed: int, classes: int) -> None:
    """Train on the images of the first classes."""
    torch.manual_seed(seed)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    for epoch in range(epochs):
        for x, y in data.train_batches(BATCH, seed=1000 * seed + epoch):
            chosen = y < classes
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()


def change(net: nn.Module, before: nn.Module, images: Tensor) -> float:
    """Norm of the difference of the outputs, of the norm of those of ``before``; the mean of several passes."""
    with torch.no_grad():
        expected = before(images)
        found = [(net(images) - expected).norm() / expected.norm() for _ in range(DRAWS)]
    return float(torch.stack(found).mean())


def _step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()

    return run
