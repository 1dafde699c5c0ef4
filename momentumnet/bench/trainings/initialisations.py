"""Initialisations that look at data, as the benchmarks of trainings call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet import init
from momentumnet.bench.networks.cifar_networks import parse
from momentumnet.bench.trainings.recipe import is_normalised
from momentumnet.bench.trainings.training import ORDERS, Course
from momentumnet.init import InitReport
from momentumnet.loss.batches import Batch

EXAMPLES = 8
# Learning rates of the scales by family and batch normalisation: those of the authors' own runs on VGG-19 and
# ResNet-110, and for LeNet, which they did not run, the VGG's.
GRADINIT_RATES = {
    ("lenet", False): 1e-2,
    ("vgg", False): 1e-2,
    ("vgg", True): 1e-1,
    ("resnet", False): 5e-2,
    ("resnet", True): 1e-3,
}


@dataclass(frozen=True)
class Task:
    """What an initialisation may look at.

    Attributes:
        network: The network's name.
        batches: Training data on the model's device; each time it is gone through, in another order.
        examples: A few inputs.
        loss_fn: The loss of the training.
        steps: Steps of an initialisation that learns; None for those of its paper.
    """

    network: str
    batches: Iterable[Batch]
    examples: Tensor
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    steps: int | None

    @property
    def options(self) -> dict[str, Any]:
        """``steps`` as a keyword, where there are any, and no progress bar inside of the benchmark's own."""
        return {"progress": False, **({} if self.steps is None else {"steps": self.steps})}


def task_of(network: str, course: Course, steps: int | None) -> Task:
    """What an initialisation looks at before a training takes this course."""
    # Half a batch, as in GradInit's own runs: second derivatives take the memory of the other half.
    batches = _Rounds(course, max(1, course.batch_size // 2))
    examples = course.data.examples(EXAMPLES).to(course.device)
    return Task(network, batches, examples, F.cross_entropy, steps)


@dataclass
class _Rounds:
    """The training images of an initialisation, each time that they are gone through in another order."""

    course: Course
    size: int
    done: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.done += 1
        return self.course.batches(self.size, ORDERS // 2 + self.done)


def metainit(model: nn.Module, task: Task) -> InitReport:
    """MetaInit."""
    return init.metainit_(model, task.loss_fn, task.batches, **task.options)


def gradinit(model: nn.Module, task: Task) -> InitReport:
    """GradInit, at the learning rate of the network's family."""
    name = parse(task.network)
    rate = GRADINIT_RATES.get((name.family, name.batch_norm))
    if rate is None:
        raise ValueError(f"GradInit has no learning rate for {task.network}: its authors have run none of this family")
    return init.gradinit_(model, task.loss_fn, task.batches, lr=rate, **task.options)


def fixup(model: nn.Module, task: Task) -> InitReport:
    """Fixup, which takes batch normalisation out."""
    return init.fixup_(model, task.examples, remove_normalization=is_normalised(model))
