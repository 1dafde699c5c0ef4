"""A converted network beside the unconverted one: measured, fine-tuned, and put in one table."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.bench.probe import StepCost, step_costs
from momentumnet.cli.data import ImageData
from momentumnet.cli.errors import CommandError
from momentumnet.cli.training import Epoch, Schedule, Trainer, evaluate
from momentumnet.description import describe
from momentumnet.memory import format_bytes

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

MOMENTUM, UNCONVERTED = "momentum", "unconverted"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one network came to; ``epochs`` is empty where it was measured but not trained."""

    accuracy_before: float
    cost: StepCost
    epochs: list[Epoch]

    @property
    def accuracy_after(self) -> float | None:
        """Validation accuracy after the last epoch; None without training."""
        return self.epochs[-1].accuracy if self.epochs else None

    def values(self) -> dict[str, Any]:
        """The outcome as plain values."""
        return {
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
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
        schedule: How long and how fast to train.
        output: Folder for checkpoints, weights and ``report.json``.
        settings: What makes the run the one that it is, as plain values.
        report: Takes what the user is to see.
    """

    networks: dict[str, nn.Module]
    images: ImageData
    device: torch.device
    schedule: Schedule
    output: Path
    settings: Mapping[str, object]
    report: Report

    def run(self, *, trained: Collection[str], resume: bool) -> None:
        """Measures all networks, trains those named, and reports.

        Raises:
            CommandError: Too few images, or a checkpoint that cannot be resumed.
        """
        if self.schedule.batch_size < 2:
            raise CommandError(
                f"training needs batches of at least 2 images; there are {self.schedule.batch_size} in a batch of "
                f"{self.images.name}"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        costs = self._measure()
        outcomes = {}
        for name in list(self.networks):
            network = self.networks.pop(name)  # so that its memory is free for the next one
            before = evaluate(network, self.images, self.schedule.batch_size, self.device)
            epochs = self._train(name, network, resume=resume) if name in trained else []
            outcomes[name] = Outcome(before, costs[name], epochs)
        self._show(outcomes)

    def _measure(self) -> dict[str, StepCost]:
        images, labels = next(iter(self.images.batches(self.images.train, self.schedule.batch_size, shuffle_seed=0)))
        step = partial(_forward_backward, images.to(self.device), labels.to(self.device))
        with self.report.progress() as progress:
            task = progress.add_task("measuring memory and time", total=None)
            return step_costs(self.networks, step, advance=lambda: progress.advance(task))

    def _train(self, name: str, network: nn.Module, *, resume: bool) -> list[Epoch]:
        path = self.output / f"checkpoint-{name}.pt"
        trainer = Trainer(network, self.images, self.device, schedule=self.schedule, path=path, settings=self.settings)
        if resume:
            self._resume(trainer)
        elif path.exists():
            kept = path.with_suffix(".previous.pt")
            path.replace(kept)
            self.report.line(f"{name}: the checkpoint of an earlier run is kept as {kept}")
        while len(trainer.done) < self.schedule.epochs:
            self._run_epoch(name, trainer)
        weights = {key: value.cpu() for key, value in network.state_dict().items()}
        torch.save(weights, self.output / f"{name}.pt")
        if name == MOMENTUM:
            (self.output / f"{name}.json").write_text(json.dumps(describe(network), indent=2) + "\n")
        return trainer.done

    def _resume(self, trainer: Trainer) -> None:
        if not trainer.path.exists():
            self.report.line(f"{trainer.path} does not exist yet: starting with the first epoch")
            return
        to_the_bit = trainer.resume()
        self.report.line(f"{trainer.path}: resuming after epoch {len(trainer.done)} of {self.schedule.epochs}")
        if not to_the_bit:
            self.report.line(
                "It is of an earlier version and does not hold the scales of the streams: these are learned anew, so "
                "the last bits may differ from those of an uninterrupted run"
            )

    def _run_epoch(self, name: str, trainer: Trainer) -> None:
        counter = f"{len(trainer.done) + 1}/{self.schedule.epochs}"
        start = time.perf_counter()
        with self.report.progress() as progress:
            task = progress.add_task(f"{name}, epoch {counter}", total=trainer.steps_per_epoch)
            epoch = trainer.run_epoch(lambda: progress.advance(task))
        seconds = time.perf_counter() - start
        self.report.line(
            f"{name}, epoch {counter}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.1%}, {seconds:.0f} s"
        )

    def _show(self, outcomes: Mapping[str, Outcome]) -> None:
        columns = ("network", "accuracy before", "accuracy after", "peak memory", "held", "step time")
        rows = [
            (
                name,
                f"{outcome.accuracy_before:.1%}",
                "" if outcome.accuracy_after is None else f"{outcome.accuracy_after:.1%}",
                format_bytes(outcome.cost.memory.peak_bytes),
                format_bytes(outcome.cost.memory.saved_bytes),
                f"{outcome.cost.seconds * 1000:.0f} ms",
            )
            for name, outcome in outcomes.items()
        ]
        self.report.table(columns, rows, title=f"{self.settings['model']} on {self.settings['data']}")
        self.report.line(
            f"Converted at gamma {self.settings['gamma']}, others {self.settings['others']}. Memory and time are those "
            f"of one forward and backward pass over {self.schedule.batch_size} images, beside parameters and gradients."
        )
        self.report.line(
            f"The fine-tuned weights, which fit the unconverted network too: {self.output / MOMENTUM}.pt. The network "
            f"that was trained: momentumnet.convert(model, like=...) with what {self.output / MOMENTUM}.json holds"
        )
        values = {
            "command": "finetune",
            "settings": dict(self.settings),
            "device": str(self.device),
            "output": str(self.output),
            "networks": {name: outcome.values() for name, outcome in outcomes.items()},
        }
        (self.output / "report.json").write_text(json.dumps(values, indent=2) + "\n")
        self.report.result(values)


def _forward_backward(images: Tensor, labels: Tensor, network: nn.Module) -> None:
    network.train()
    F.cross_entropy(network(images), labels).backward()
