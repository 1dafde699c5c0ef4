"""One row of ``bench gamma-schedule``: a fine-tuning in which a network's rule changes, and the memory of its steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from momentumnet.bench.gamma_schedule.annealing import Annealing
from momentumnet.bench.gamma_schedule.tasks import Task
from momentumnet.bench.measuring.probe import step_memory
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings.training import FAILURES, failure
from momentumnet.memory import MemoryReport
from momentumnet.schedules.step_schedule import StepSchedule


@dataclass
class Training:
    """A fine-tuning.

    Attributes:
        task: What is trained.
        annealing: How its rule changes.
        seed: Decides the pretrained network and the order of the examples.
    """

    task: Task[Any]
    annealing: Annealing
    seed: int

    @property
    def epochs(self) -> int:
        """Epochs in all, those of a pretraining that is still to come included."""
        recipe = self.task.recipe
        return recipe.epochs + (0 if self.task.is_pretrained(self.seed) else recipe.pretraining_epochs)

    def row(self, advance: Callable[[], object] = lambda: None) -> Row:
        """Runs it; ``advance`` is called after each epoch.

        Returns:
            The score, peak and held bytes of a step at the end and the most within the schedule, median seconds of a
            step and seconds of all, and ``error`` where it came to an end before its time.
        """
        started, course = time.perf_counter(), self.task.course(self.seed)
        found: Row = {"score": None}
        try:
            pretrained = self.task.pretrained(self.seed, advance)
            model = self.annealing.converted(pretrained, self.task.example)
            schedule = self.annealing.begun(model, self.task.recipe.epochs * course.steps_per_epoch)
            on_step: Callable[[], object] = (lambda: None) if schedule is None else schedule.step
            self.task.train(model, course, self.task.recipe.epochs, advance, on_step)
            found["score"] = self.task.scores(course)[-1]
            found["step_seconds"] = statistics.median(course.step_seconds)
            found |= self._memory(model, schedule)
        except FAILURES as error:
            found["error"] = failure(error)
        seconds = time.perf_counter() - started
        return {**found, "scores": self.task.scores(course), "losses": course.losses, "seconds": seconds}

    def _memory(self, model: nn.Module, schedule: StepSchedule | None) -> Row:
        """Of a step of the trained network, at the schedule's end; and the most at its beginning, middle or end."""
        after = self._step_memory(model)
        reports = [after]
        if schedule is not None:
            for step in (0, schedule.optimizer_steps // 2):
                schedule.load_state_dict({**schedule.state_dict(), "steps_done": step})
                reports.append(self._step_memory(model))
        return {
            "peak_bytes": after.peak_bytes,
            "saved_bytes": after.saved_bytes,
            "most_peak_bytes": max(report.peak_bytes for report in reports),
            "most_saved_bytes": max(report.saved_bytes for report in reports),
        }

    def _step_memory(self, model: nn.Module) -> MemoryReport:
        x, y = self.task.batch
        course = self.task.course(self.seed)
        model.train()
        return step_memory(model, lambda network: course.loss(network, x, y).backward())
