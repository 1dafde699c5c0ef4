"""One network's fine-tuning: epochs, a checkpoint after each, and the way back into an interrupted run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from momentumnet.cli import checkpoint
from momentumnet.cli.data import ImageData
from momentumnet.cli.metrics import Epoch
from momentumnet.optim import SAM
from momentumnet.resume import training_state

WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Schedule:
    """How to train: how long, how fast, and by which gradients.

    Attributes:
        epochs: Number of epochs in all.
        batch_size: Images per step.
        lr: Largest learning rate of the cycle.
        seed: Decides the order of the images and the state of the random generators at the start.
        rho: Radius of SAM; None trains without SAM.
        adaptive: Adaptive SAM.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int
    rho: float | None = None
    adaptive: bool = False


class Trainer:
    """Trains a classifier with AdamW, or SAM around it, and a one-cycle learning rate.

    Everything that a run depends on is in its arguments and in the checkpoint: the order of the images follows from
    seed and epoch, so a resumed run does what an uninterrupted one would have done.

    Args:
        model: Classifier, on its device.
        data: Images and labels.
        device: Where the model is.
        schedule: Epochs, batch size, learning rate, seed and radius.
        path: Checkpoint of this network.
        settings: What must agree for a checkpoint to be resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        device: torch.device,
        *,
        schedule: Schedule,
        path: Path,
        settings: Mapping[str, object],
    ) -> None:
        self.model, self.data, self.device = model, data, device
        self.schedule, self.path, self.settings = schedule, path, settings
        self.done: list[Epoch] = []
        self._right = self._seen = 0  # training images of the epoch, and those of them whose class was found
        self.steps_per_epoch = len(data.batches(data.train, schedule.batch_size, shuffle_seed=0))
        self._optimizer = _optimizer(model, schedule)
        self._scheduler = OneCycleLR(self._optimizer, schedule.lr, total_steps=schedule.epochs * self.steps_per_epoch)
        torch.manual_seed(schedule.seed)

    def resume(self, say: Callable[[str], None]) -> bool:
        """Goes on from the last good checkpoint, to the bit.

        Args:
            say: Takes a line about a damaged checkpoint that is passed over.

        Returns:
            Whether there was one.

        Raises:
            UsageError: All of them are damaged, or belong to another run.
        """
        state = checkpoint.load(self.path, self.settings, say=say)
        if state is None:
            return False
        checkpoint.load_streams(self.path, self.model, state["streams"])
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.done = [Epoch(**values) for values in state["epochs"]]
        _set_random_state(state["random"])
        return True

    def run_epoch(self, advance: Callable[[], object]) -> Epoch:
        """Trains one epoch, evaluates, and writes the checkpoint; ``advance`` is called after each step."""
        number, start = len(self.done) + 1, time.perf_counter()
        loss = self._train(number, advance)
        seconds = time.perf_counter() - start
        accuracy, validation_loss = evaluate(self.model, self.data, self.schedule.batch_size, self.device)
        lr = float(self._optimizer.param_groups[0]["lr"])
        epoch = Epoch(number, loss, accuracy, self._right / self._seen, validation_loss, lr, seconds)
        self.done.append(epoch)
        checkpoint.save(
            self.path,
            self.settings,
            {
                "model": self.model.state_dict(),
                "streams": training_state(self.model),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict(),
                "epochs": [asdict(epoch) for epoch in self.done],
                "random": _random_state(),
            },
        )
        return epoch

    def _train(self, number: int, advance: Callable[[], object]) -> float:
        self.model.train()
        losses: list[Any] = []  # tensors, which the optimizers pass through from the closure
        right: list[Tensor] = []
        seed, self._seen = self.schedule.seed + number, 0
        for images, labels in self.data.batches(self.data.train, self.schedule.batch_size, shuffle_seed=seed):
            found: list[Tensor] = []
            losses.append(self._optimizer.step(self._passes(images.to(self.device), labels.to(self.device), found)))
            self._scheduler.step()
            right.append(found[0])  # of the first pass: SAM's second one is at other weights
            self._seen += len(labels)
            advance()
        self._right = int(torch.stack(right).sum())
        return float(torch.stack(losses).mean())

    def _passes(self, images: Tensor, labels: Tensor, found: list[Tensor]) -> Callable[[], Any]:
        """What the optimizer calls once in a step, or twice; ``found`` takes the number of right classes of each."""

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            outputs = self.model(images)
            loss = F.cross_entropy(outputs, labels)
            loss.backward()
            found.append((outputs.detach().argmax(dim=1) == labels).sum())
            return loss.detach()

        return closure


def _optimizer(model: nn.Module, schedule: Schedule) -> Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = AdamW(parameters, lr=schedule.lr, weight_decay=WEIGHT_DECAY)
    if schedule.rho is None:
        return adamw
    # With one dropout mask for both passes the second one sees the loss that the perturbation was made for.
    return SAM(parameters, adamw, rho=schedule.rho, adaptive=schedule.adaptive, model=model, same_random=True)


@torch.no_grad()
def predictions(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the model, in eval mode, puts out for each batch, float32 (N, classes) on the CPU, with the labels."""
    model.eval()
    for images, labels in batches:
        yield model(images.to(device)).float().cpu(), labels


def evaluate(model: nn.Module, data: ImageData, batch_size: int, device: torch.device) -> tuple[float, float]:
    """Share of the validation images, from 0 to 1, whose class the model finds, and their mean cross entropy."""
    right = total = 0
    loss = 0.0
    for outputs, labels in predictions(model, data.batches(data.validation, batch_size), device):
        right += int((outputs.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(outputs, labels, reduction="sum"))
        total += len(labels)
    return right / total, loss / total


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        cuda: list[Tensor] = state["cuda"][: torch.cuda.device_count()]
        torch.cuda.set_rng_state_all(cuda)
