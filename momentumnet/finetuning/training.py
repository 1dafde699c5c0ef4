"""One network's fine-tuning: epochs, a checkpoint after each, and the way back into an interrupted run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.finetuning import checkpoint
from momentumnet.finetuning.data import ImageData
from momentumnet.finetuning.metrics import Epoch, best_of
from momentumnet.finetuning.own_classifiers import logits
from momentumnet.finetuning.processes import ALONE, Processes
from momentumnet.finetuning.recipe import PRECISIONS, Recipe
from momentumnet.predictions import predicted
from momentumnet.resume import training_state


class Trainer:
    """Trains a classifier as a recipe says.

    Everything that a run depends on is in its arguments and in the checkpoint: the order of the images follows from
    seed and epoch, so a resumed run does what an uninterrupted one would have done.

    Args:
        model: Classifier, on its device.
        data: Images and labels.
        device: Where the model is.
        recipe: How to train it.
        path: Checkpoint of this network.
        settings: What must agree for a checkpoint to be resumed.
        processes: Those that train together, each on its part of each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        device: torch.device,
        *,
        recipe: Recipe,
        path: Path,
        settings: Mapping[str, object],
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.data, self.device = model, data, device
        self.recipe, self.path, self.settings, self.processes = recipe, path, settings, processes
        self.done: list[Epoch] = []
        self._right = self._seen = 0  # training images of the epoch, and those of them whose class was found
        batches = len(data.batches(data.train, recipe.batch_size, shuffle_seed=0))
        self.steps_per_epoch = -(-batches // recipe.accumulate)
        self.images_per_epoch = batches * recipe.batch_size
        self._optimizer = recipe.optimizer(model)
        self._scheduler = recipe.scheduler(self._optimizer, self.steps_per_epoch)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self._called = processes.wrapped(model, device)
        torch.manual_seed(recipe.seed + processes.rank)  # each draws other dropout masks for its part

    def resume(self, say: Callable[[str], None]) -> bool:
        """Goes on from the last good checkpoint, to the bit.

        Args:
            say: Takes a line about a damaged checkpoint that is passed over.

        Returns:
            Whether there was one.

        Raises:
            UsageError: All of them are damaged, or belong to another run.
        """
        with self.processes.one_first():  # which puts a damaged one aside
            state = checkpoint.load(self.path, self.settings, say=say)
        if state is None:
            return False
        own = state if self.processes.is_first else _of(state.get("others", ()), self.processes.rank - 1)
        checkpoint.load_streams(self.path, self.model, (own or state)["streams"])
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._go_on_with_schedule(state["scheduler"], longer=state["settings"]["epochs"] != self.recipe.epochs)
        self._scaler.load_state_dict(state["scaler"])
        self.done = [Epoch(**values) for values in state["epochs"]]
        if own is not None:
            _set_random_state(own["random"])
        return True

    def _go_on_with_schedule(self, state: Mapping[str, Any], *, longer: bool) -> None:
        """Takes the learning rate's place in its schedule, or in one that has more epochs than it had."""
        if not longer:
            self._scheduler.load_state_dict(dict(state))
            return
        kept = {key: value for key, value in state.items() if key not in ("total_steps", "_schedule_phases")}
        self._scheduler.load_state_dict({**self._scheduler.state_dict(), **kept})
        self._scheduler.last_epoch -= 1
        self._scheduler.step()  # the learning rate of this place in the longer schedule

    def run_epoch(self, advance: Callable[[], object]) -> Epoch:
        """Trains one epoch, evaluates, and writes the checkpoint; ``advance`` is called after each step."""
        number, start = len(self.done) + 1, time.perf_counter()
        loss = self._train(number, advance)
        seconds = time.perf_counter() - start
        self.processes.share_buffers(self.model)
        accuracy, validation_loss = evaluate(
            self.model, self.data, self.recipe.batch_size, self.device, processes=self.processes
        )
        lr = float(self._optimizer.param_groups[0]["lr"])
        epoch = Epoch(number, loss, accuracy, self._right / self._seen, validation_loss, lr, seconds)
        self.done.append(epoch)
        first, *others = self.processes.gathered({"streams": training_state(self.model), "random": _random_state()})
        if self.processes.is_first:
            self._save({**first, "others": others})
        return epoch

    def _save(self, of_processes: Mapping[str, Any]) -> None:
        checkpoint.save(
            self.path,
            self.settings,
            {
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict(),
                "scaler": self._scaler.state_dict(),
                "epochs": [asdict(epoch) for epoch in self.done],
                **of_processes,
            },
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or as many as ``patience`` allows went by without a better accuracy."""
        return len(self.done) >= self.recipe.epochs or self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        """Whether the best accuracy is as many epochs old as ``patience`` says."""
        patience = self.recipe.patience
        return patience is not None and bool(self.done) and len(self.done) - self.best.number >= patience

    @property
    def best(self) -> Epoch:
        """The epoch of the best validation accuracy so far."""
        return best_of(self.done)

    def _train(self, number: int, advance: Callable[[], object]) -> float:
        begin_training(self.model)
        losses: list[Any] = []  # tensors, which the optimizers pass through from the closure
        right: list[Tensor] = []
        seed, self._seen = self.recipe.seed + number, 0
        own = self.data.batches(self.data.train, self.recipe.batch_size, shuffle_seed=seed, processes=self.processes)
        batches = iter(own)
        while group := list(itertools.islice(batches, self.recipe.accumulate)):
            found: list[Tensor] = []
            closure = self._passes(
                [(images.to(self.device), labels.to(self.device)) for images, labels in group], found
            )
            if self._scaler.is_enabled():  # its step takes no closure
                losses.append(closure())
                self._scaler.step(self._optimizer)
                self._scaler.update()
            else:
                losses.append(self._optimizer.step(closure))
            self._scheduler.step()
            right.append(found[0])  # of the first pass: SAM's second one is at other weights
            self._seen += sum(len(labels) for _, labels in group)
            advance()
        self._right = int(self.processes.total(torch.stack(right).sum()))
        self._seen *= self.processes.count  # all parts are of one size
        return float(self.processes.total(torch.stack(losses).mean())) / self.processes.count

    def _passes(self, group: list[tuple[Tensor, Tensor]], found: list[Tensor]) -> Callable[[], Any]:
        """What the optimizer calls once in a step, or twice; ``found`` takes the number of right classes of each."""

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            losses, right = [], []
            for number, (images, labels) in enumerate(group, start=1):
                with self.processes.gradients_kept(self._called, until_later=number < len(group)):
                    loss, outputs = loss_of(self._called, images, labels, self.recipe)
                    self._scaler.scale(loss / len(group)).backward()
                losses.append(loss.detach())
                right.append((predicted(outputs.detach()) == labels).sum())
            found.append(torch.stack(right).sum())
            return torch.stack(losses).mean()

        return closure


def begin_training(model: nn.Module) -> None:
    """Training mode; norms whose weights do not learn keep their statistics too."""
    model.train()
    for module in model.modules():
        if _is_frozen(module):
            module.eval()


def loss_of(network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The loss that a recipe trains by, in its precision, and the network's outputs."""
    dtype = PRECISIONS[recipe.precision]
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
        outputs = logits(network(images))
        return F.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing), outputs


@torch.no_grad()
def predictions(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the model, in eval mode, puts out for each batch, float32 (N, classes) on the CPU, with the labels."""
    model.eval()
    for images, labels in batches:
        yield logits(model(images.to(device))).float().cpu(), labels


def evaluate(
    model: nn.Module, data: ImageData, batch_size: int, device: torch.device, *, processes: Processes = ALONE
) -> tuple[float, float]:
    """Share of the validation images, from 0 to 1, whose class the model finds, and their mean cross entropy."""
    right = total = 0
    loss = 0.0
    for outputs, labels in predictions(model, data.batches(data.validation, batch_size, processes=processes), device):
        right += int((predicted(outputs) == labels).sum())
        loss += float(F.cross_entropy(outputs, labels, reduction="sum"))
        total += len(labels)
    place = device if processes.count > 1 else "cpu"
    counts = processes.total(torch.tensor([right, total, loss], dtype=torch.float64, device=place)).tolist()
    return counts[0] / counts[1], counts[2] / counts[1]


def _of(states: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any] | None:
    """That of one process; None where the run had fewer."""
    return states[index] if index < len(states) else None


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        cuda: list[Tensor] = state["cuda"][: torch.cuda.device_count()]
        torch.cuda.set_rng_state_all(cuda)
