"""A converted network beside the unconverted one: measured and fine-tuned."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from momentumnet.bench.measuring.probe import StepCost, step_costs
from momentumnet.command_errors import UsageError
from momentumnet.finetuning import checkpoint
from momentumnet.finetuning.data import ImageData
from momentumnet.finetuning.metrics import Epoch, best_of, write_metrics
from momentumnet.finetuning.processes import ALONE, Processes
from momentumnet.finetuning.recipe import Recipe
from momentumnet.finetuning.tensorboard import Board
from momentumnet.finetuning.trained import WEIGHTS, write_config
from momentumnet.finetuning.training import Trainer, begin_training, evaluate, loss_of

if TYPE_CHECKING:
    from rich.progress import Progress

MOMENTUM, UNCONVERTED = "momentum", "unconverted"


class Narrator(Protocol):
    """Tells the user how far it is."""

    def line(self, text: str) -> None:
        """Takes one line that the user has to see."""

    def remark(self, text: str) -> None:
        """Takes one line of how far it is."""

    def progress(self) -> Progress:
        """A progress bar, to be used as a context manager."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one network came to; ``epochs`` is empty where it was measured but not trained.

    ``save`` says which epoch's weights are kept, as in `Comparison`.
    """

    accuracy_before: float
    cost: StepCost
    epochs: list[Epoch]
    save: str = "last"

    @property
    def kept(self) -> Epoch | None:
        """The epoch whose weights `momentumnet evaluate` takes from the folder; None without training."""
        if not self.epochs:
            return None
        return self.epochs[-1] if self.save == "last" else best_of(self.epochs)

    @property
    def accuracy_after(self) -> float | None:
        """Validation accuracy of the weights that are kept; None without training."""
        return None if self.kept is None else self.kept.accuracy

    def values(self) -> dict[str, Any]:
        """The outcome as plain values."""
        return {
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
            "epoch_kept": None if self.kept is None else self.kept.number,
            "peak_bytes": self.cost.memory.peak_bytes,
            "saved_bytes": self.cost.memory.saved_bytes,
            "step_seconds": self.cost.seconds,
            "epochs": [dataclasses.asdict(epoch) for epoch in self.epochs],
        }


@dataclasses.dataclass
class Comparison:
    """Fine-tunes networks on the same images and compares accuracy, memory and step time.

    Args:
        networks: ``MOMENTUM`` and ``UNCONVERTED``, on ``device``.
        images: What to train and validate on.
        device: Where the networks are.
        recipe: How to train.
        save: Which weights are kept: ``best`` (by validation accuracy), ``last`` or ``both``.
        processes: Those that train together; the first one writes.
        output: Folder of the run, which is there.
        settings: What makes the run the one that it is, as plain values.
        options: All that was asked for, as plain values.
        tensorboard: Whether epochs are written for TensorBoard, too.
        narrator: Takes what the user is to see meanwhile.
    """

    networks: dict[str, nn.Module]
    images: ImageData
    device: torch.device
    recipe: Recipe
    output: Path
    settings: Mapping[str, object]
    narrator: Narrator
    save: str = "last"
    processes: Processes = ALONE
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    tensorboard: bool = False
    _epochs: dict[str, list[Epoch]] = dataclasses.field(default_factory=dict, init=False)

    def run(self, *, trained: Collection[str], resume: bool) -> dict[str, Outcome]:
        """Measures all networks, trains those named, and returns what each one came to.

        Raises:
            UsageError: Too few images, or a checkpoint that cannot be resumed.
        """
        if self.recipe.batch_size < 2 * self.processes.count:
            among = f" for {self.processes.count} processes" if self.processes.count > 1 else ""
            raise UsageError(
                f"training needs batches of at least 2 images; there are {self.recipe.batch_size} in a batch of "
                f"{self.images.name}{among}"
            )
        if resume:  # what config.json says of the weights in the folder stays true if the run cannot go on
            for name in trained:
                checkpoint.check(self._checkpoint_of(name), self.settings, self.networks[name])
        if self.processes.is_first:
            network, classes = self.networks[MOMENTUM], self.images.class_names
            preprocessing = self.images.preprocessing
            write_config(self.output, network, classes, preprocessing, self.settings, self.options)
        costs = self._measure()
        outcomes = {}
        for name in list(self.networks):
            network = self.networks.pop(name)  # so that its memory is free for the next one
            size, device = self.recipe.batch_size, self.device
            before, _ = evaluate(network, self.images, size, device, processes=self.processes)
            epochs = self._train(name, network, costs, resume=resume) if name in trained else []
            outcomes[name] = Outcome(before, costs[name], epochs, self.save)
        return outcomes

    def _measure(self) -> dict[str, StepCost]:
        train, size = self.images.train, self.recipe.batch_size
        images, labels = next(iter(self.images.batches(train, size, shuffle_seed=0, processes=self.processes)))
        step = partial(_forward_backward, images.to(self.device), labels.to(self.device), self.recipe)
        with self.narrator.progress() as progress:
            task = progress.add_task("measuring memory and time", total=None)
            return step_costs(self.networks, step, advance=lambda: progress.advance(task))

    def _train(self, name: str, network: nn.Module, costs: Mapping[str, StepCost], *, resume: bool) -> list[Epoch]:
        trainer = Trainer(
            network,
            self.images,
            self.device,
            recipe=self.recipe,
            path=self._checkpoint_of(name),
            settings=self.settings,
            processes=self.processes,
        )
        if resume:
            self._resume(trainer)
        boards = [Board(self.output, name, trainer.done)] if self.tensorboard and self.processes.is_first else []
        self._write(name, trainer, costs)
        while not trainer.finished:
            self._run_epoch(name, trainer)
            self._write(name, trainer, costs)
            for board in boards:
                board.add(trainer.done[-1])
        for board in boards:
            board.close()
        if trainer.out_of_patience and len(trainer.done) < self.recipe.epochs:
            self.narrator.remark(f"{name}: no better accuracy for {self.recipe.patience} epochs, so it ends here")
        return trainer.done

    def _checkpoint_of(self, name: str) -> Path:
        return self.output / f"checkpoint-{name}.pt"

    def _write(self, name: str, trainer: Trainer, costs: Mapping[str, StepCost]) -> None:
        """Writes the weights and the table of what is done so far."""
        from momentumnet.finetuning.weights_file import save_weights

        if not trainer.done or not self.processes.is_first:
            return
        best = self.output / (WEIGHTS if name == MOMENTUM else f"{name}.safetensors")
        if self.save == "last" or trainer.best is trainer.done[-1]:
            save_weights(best, trainer.model)
        if self.save == "both":
            save_weights(best.with_suffix(".last.safetensors"), trainer.model)
        self._epochs[name] = trainer.done
        peaks = {network: cost.memory.peak_bytes for network, cost in costs.items()}
        write_metrics(self.output / "metrics.csv", self._epochs, peaks)

    def _resume(self, trainer: Trainer) -> None:
        if not trainer.resume(self.narrator.line):
            self.narrator.remark(f"{trainer.path} does not exist yet: starting with the first epoch")
            return
        self.narrator.remark(f"{trainer.path}: resuming after epoch {len(trainer.done)} of {self.recipe.epochs}")

    def _run_epoch(self, name: str, trainer: Trainer) -> None:
        counter = f"{len(trainer.done) + 1}/{self.recipe.epochs}"
        images = trainer.images_per_epoch
        start = time.perf_counter()
        with self.narrator.progress() as progress:
            steps = trainer.steps_per_epoch
            task = progress.add_task(f"{name}, epoch {counter}", total=steps, images=images / steps)
            epoch = trainer.run_epoch(lambda: progress.advance(task))
        seconds = time.perf_counter() - start
        left = (self.recipe.epochs - epoch.number) * seconds
        self.narrator.remark(
            f"{name}, epoch {counter}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.1%}, {duration(seconds)}, "
            f"{images / epoch.seconds:.0f} images/s" + (f", {duration(left)} left" if left else "")
        )
        before = trainer.done[-2:-1]
        if not epoch.is_finite and all(earlier.is_finite for earlier in before):
            self.narrator.line(
                f"warning: {name}, epoch {counter}: the loss is not finite, so the training has diverged. Start anew, "
                "for example with a smaller --lr"
            )


def _forward_backward(images: Tensor, labels: Tensor, recipe: Recipe, network: nn.Module) -> None:
    begin_training(network)
    loss, _ = loss_of(network, images, labels, recipe)
    loss.backward()


def duration(seconds: float) -> str:
    """A time in two figures or more: ``48 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
