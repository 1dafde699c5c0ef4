"""One row of ``bench quality``: a variant of a network of some depth, trained from one seed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from momentumnet.bench.measuring.probe import step_memory, step_seconds
from momentumnet.bench.quality.tasks import Recipe, Task, optimizer_of, parse
from momentumnet.bench.quality.variants import RAMP, REFERENCE, VARIANTS, Variant
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings.training import FAILURES, TrainingCourse, failure
from momentumnet.conversion.conversion import convert
from momentumnet.prune.lottery.trainings import Trainings
from momentumnet.schedules.gamma_schedule import GammaSchedule, schedule_gamma
from momentumnet.streams.blocks.converted import streams_of

REPEATS = 5  # of the passes whose time is compared


@dataclass
class Training:
    """A training from a seed.

    Attributes:
        task: What is trained on.
        network: Name of the network.
        seed: Decides weights and order of the data.
        recipe: How it is trained.
        variant: What becomes of the network.
        originals: Weights of trained originals, by name: what another row has trained is not trained again.
    """

    task: Task
    network: str
    seed: int
    recipe: Recipe
    variant: Variant
    originals: Trainings

    @property
    def epochs(self) -> int:
        """Epochs of the variant itself."""
        return self.recipe.finetune_epochs if self.variant.fine_tuned else self.recipe.epochs

    def row(self, advance: Callable[[], object] = lambda: None) -> Row:
        """Runs it; ``advance`` is called after each of the variant's epochs.

        Returns:
            Depth; gamma, peak memory of a training step (bytes, beside parameters and gradients) and score at first and
            at last (the former score of what begins with trained weights); scores, losses and seconds of each epoch;
            the time of a pass to the original's; and ``error`` where it came to an end before its time.
        """
        started = time.perf_counter()
        found: Row = {"depth": parse(self.network).depth, "epochs": self.epochs}
        try:
            found |= self._trained(advance)
        except FAILURES as error:
            found["error"] = failure(error)
        return {**found, "seconds": time.perf_counter() - started}

    def start(self) -> nn.Module:
        """The variant before its own training, converted where it is to be."""
        model = self.task.model(self.network, self.seed)
        if self.variant.fine_tuned:
            model.load_state_dict(self._original()["state"])
        if self.variant.gamma is not None:
            convert(model, self._batch()[0], gamma=self.variant.gamma, inplace=True)
        return model

    def schedule(self, model: nn.Module, steps: int) -> GammaSchedule | None:
        """How gamma changes over so many steps; None where it stays."""
        if self.variant.gamma is None or self.variant.end is None:
            return None
        return schedule_gamma(model, max(1, int(RAMP * steps)), self.variant.gamma, self.variant.end)

    def _trained(self, advance: Callable[[], object]) -> Row:
        model = self.start()
        found = self._look(model, "first")
        if self.variant.fine_tuned:
            found["score_first"] = self._score(model)
        if self.variant == VARIANTS[REFERENCE]:
            record = self._original(advance)
            model.load_state_dict(record.pop("state"))
        else:
            record = self._run(model, advance)
        found |= self._look(model, "last")
        return {**found, **record, "score_last": record["scores"][-1], "step_ratio": self._step_ratio(model)}

    def _original(self, advance: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """What the original's training came to, with its weights; trained at the first call."""
        name = f"{self.network}-{self.seed}"
        record = self.originals.get(name)
        if record is None:
            own = Training(self.task, self.network, self.seed, self.recipe, VARIANTS[REFERENCE], self.originals)
            model = own.start()
            record = own._run(model, advance)
            record["state"] = {key: value.cpu() for key, value in model.state_dict().items()}
            self.originals.put(name, record)
        return dict(record)

    def _run(self, model: nn.Module, advance: Callable[[], object]) -> dict[str, Any]:
        """Trains, and says what came of each epoch."""
        course = self.task.course(self.seed)
        steps = self.epochs * course.steps_per_epoch
        scale = self.recipe.finetune_scale if self.variant.fine_tuned else 1.0
        transformer = parse(self.network).family != "resnet"
        optimizer = optimizer_of(model, self.recipe, transformer=transformer, scale=scale)
        schedule = self.schedule(model, steps)
        course.run(
            model,
            optimizer,
            CosineAnnealingLR(optimizer, steps),
            self.epochs,
            advance,
            on_step=(lambda: None) if schedule is None else schedule.step,
        )
        return {"scores": self.task.scores(course), "losses": course.losses, "epoch_seconds": epoch_seconds(course)}

    def _look(self, model: nn.Module, when: str) -> Row:
        """Gamma, read from the model itself, and the peak of a training step, measured on a copy."""
        gammas = {str(stream.gamma) for stream in streams_of(model)}
        memory = step_memory(copy.deepcopy(model), self._step())
        return {f"gamma_{when}": ", ".join(sorted(gammas)) or None, f"peak_bytes_{when}": memory.peak_bytes}

    def _score(self, model: nn.Module) -> float:
        """What the model comes to as it is."""
        course = self.task.course(self.seed)
        course.evaluate(model)
        return self.task.scores(course)[-1]

    def _step_ratio(self, model: nn.Module) -> float:
        """Seconds of a forward and backward pass, to those of the original, with which it takes turns."""
        networks = {"own": copy.deepcopy(model), REFERENCE: self.task.model(self.network, self.seed)}
        step = self._step()
        for network in networks.values():
            step(network)
        seconds = step_seconds(networks, step, repeats=REPEATS)
        return seconds["own"] / seconds[REFERENCE]

    def _step(self) -> Callable[[nn.Module], None]:
        """Forward and backward pass of a batch."""
        x, y = self._batch()
        return partial(_step, self.task.course(self.seed), x, y)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """A batch of the training."""
        return next(self.task.course(self.seed).batches(self.recipe.batch_size, 0))


def _step(course: TrainingCourse[Any], x: Tensor, y: Tensor, network: nn.Module) -> None:
    network.train()
    course.loss(network, x, y).backward()


def epoch_seconds(course: TrainingCourse[Any]) -> list[float]:
    """Seconds of the steps of each epoch."""
    seconds, count = course.step_seconds, course.steps_per_epoch
    return [sum(seconds[start : start + count]) for start in range(0, len(seconds), count)]
