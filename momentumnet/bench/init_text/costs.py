"""What an iteration of GradInit and of MetaInit costs on the same network and batch: time and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet import init
from momentumnet.bench.init_text.cases import COST
from momentumnet.bench.init_text.methods import ADAM, SGD, loss_of
from momentumnet.bench.init_text.networks import POST, build
from momentumnet.bench.init_text.training import Recipe
from momentumnet.bench.measuring.timing import interleaved_seconds
from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.reporting.results import Row
from momentumnet.loss.batches import Batch
from momentumnet.memory import measure_memory

PASS = "forward and backward"
RESNET, IMAGES = "resnet20", 16
# Any gradient meets it: the iteration then takes two gradients and a product with the Hessian, the dearer case.
MET = 1e9
STILL = 1e-9  # learning rate that leaves the weights as they are, so that all iterations do the same
PAPER_STEPS = {f"gradinit, {SGD}": 390, f"gradinit, {ADAM}": 780, "metainit": 500}

LossOf = Callable[[Tensor, Tensor], Tensor]


def networks(recipe: Recipe, vocabulary: int, device: torch.device) -> Iterator[tuple[str, nn.Module, LossOf, Batch]]:
    """A ResNet without normalisation and the decoder of the trainings: name, network, loss, and a batch of noise."""
    torch.manual_seed(0)
    images = (torch.randn(IMAGES, 3, 32, 32).to(device), torch.randint(10, (IMAGES,)).to(device))
    yield f"{RESNET}, {IMAGES} images", cifar_networks.build(RESNET).to(device), F.cross_entropy, images
    shape = {"depth": recipe.depth, "width": recipe.width, "length": recipe.length, "vocabulary": vocabulary}
    size = (max(2, recipe.batch_size // 2), recipe.length)
    tokens = (torch.randint(vocabulary, size).to(device), torch.randint(vocabulary, size).to(device))
    name = f"{POST} decoder, {size[0]} x {size[1]} characters"
    yield name, build(POST, 0, **shape).to(device), loss_of, tokens


def operations(model: nn.Module, loss_fn: LossOf, batch: Batch) -> Mapping[str, Callable[[], object]]:
    """A pass of training, and an iteration of each initialisation, by name."""
    options: dict[str, Any] = {"steps": 1, "lr": STILL, "progress": False}
    gradinit = partial(init.gradinit_, model, loss_fn, [batch], gradient_norm=MET, **options)

    def training_pass() -> None:
        model.zero_grad()
        loss_fn(model(batch[0]), batch[1]).backward()

    return {
        PASS: training_pass,
        f"gradinit, {SGD}": partial(gradinit, optimizer=SGD),
        f"gradinit, {ADAM}": partial(gradinit, optimizer=ADAM),
        "metainit": partial(init.metainit_, model, loss_fn, [batch], **options),
    }


def costs(recipe: Recipe, vocabulary: int, device: torch.device, *, repeats: int) -> Iterator[list[Row]]:
    """A list of rows for each network: seconds, medians of runs that take turns, and peak bytes."""
    for name, model, loss_fn, batch in networks(recipe, vocabulary, device):
        named = operations(model, loss_fn, batch)
        seconds = interleaved_seconds(named, repeats=repeats, device=device)
        model.zero_grad()
        peaks = {method: measure_memory(run).peak_bytes for method, run in named.items()}
        yield [
            {"part": COST, "network": name, "method": method, "seconds": seconds[method], "peak_bytes": peaks[method]}
            for method in named
        ]
