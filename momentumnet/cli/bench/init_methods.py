"""The ways to begin a training that ``bench init`` compares: an initialisation, and what its first steps are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from momentumnet import init
from momentumnet.cli.bench.cifar_networks import parse
from momentumnet.init import InitReport
from momentumnet.loss.batches import Batch
from momentumnet.optim import constant, warmup

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


@dataclass(frozen=True)
class Method:
    """An initialisation of a network whose weights Kaiming's has drawn, and the epoch before the schedule, if any.

    Attributes:
        initialise: Changes the model in place; None for Kaiming's initialisation as it is.
        first: Makes the scheduler of a training with one more epoch, from optimizer, steps of it, and the schedule.
    """

    initialise: Callable[[nn.Module, Task], InitReport] | None = None
    first: Callable[[Optimizer, int, LRScheduler], LRScheduler] | None = None


def _metainit(model: nn.Module, task: Task) -> InitReport:
    return init.metainit_(model, task.loss_fn, task.batches, **task.options)


def _gradinit(model: nn.Module, task: Task) -> InitReport:
    family, _, batch_norm = parse(task.network)
    rate = GRADINIT_RATES[family, batch_norm]
    return init.gradinit_(model, task.loss_fn, task.batches, lr=rate, **task.options)


def _fixup(model: nn.Module, task: Task) -> InitReport:
    _, _, batch_norm = parse(task.network)
    return init.fixup_(model, task.examples, remove_normalization=batch_norm)


METHODS = {
    "kaiming": Method(),
    "constant": Method(first=lambda optimizer, steps, after: constant(optimizer, steps, after=after)),
    "warmup": Method(first=lambda optimizer, steps, after: warmup(optimizer, steps, after=after)),
    "metainit": Method(_metainit),
    "gradinit": Method(_gradinit),
    "fixup": Method(_fixup),
}
