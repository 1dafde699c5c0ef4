"""A callback of ``Trainer`` that changes gamma over the steps of a training."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from momentumnet.schedules.gamma_schedule import GammaSchedule, schedule_gamma


class GammaCallback(TrainerCallback):
    """Runs `momentumnet.schedule_gamma` along the steps of ``Trainer``.

    With ``end=0`` the checkpoint at the end is a stock one: its class computes what was trained. A training that is
    resumed goes on with the gamma of its place: give the same callback, as for `StreamsCallback`, which may stand
    beside it. What is saved on the way says the gamma of then, and ``load_best_model_at_end`` comes back to it.

    Args:
        start: gamma of the first step.
        end: gamma from optimizer step ``steps`` on.
        steps: None for all steps of the training, so that ``end`` is reached behind the last one.
        shape: as `momentumnet.schedule_gamma` takes it.

    Raises:
        ConversionError: when training begins: the model holds no momentum stream.
        ValueError: when training begins: an option has a value that it does not take.

    Example:
        >>> import momentumnet as mn
        >>> callbacks = [mn.hf.GammaCallback(1 / 8, 0), mn.hf.StreamsCallback()]  # for Trainer(model, args, callbacks)
    """

    def __init__(
        self, start: float | Fraction, end: float | Fraction, *, steps: int | None = None, shape: str = "linear"
    ) -> None:
        self._start, self._end, self._steps, self._shape = start, end, steps, shape
        self.schedule: GammaSchedule | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Gamma is that of the first step, or of the place at which a training is resumed."""
        steps = state.max_steps if self._steps is None else self._steps
        schedule = schedule_gamma(given["model"], steps, self._start, self._end, shape=self._shape)
        if state.global_step:
            schedule.load_state_dict({**schedule.state_dict(), "steps_done": state.global_step})
        self.schedule = schedule

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The optimizer has made a step."""
        if self.schedule is not None:
            self.schedule.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """With ``load_best_model_at_end`` the weights are those of an earlier step by now, and so is gamma."""
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if self.schedule is not None and best is not None:
            step = int(Path(best).name.rpartition("-")[2])
            self.schedule.load_state_dict({**self.schedule.state_dict(), "steps_done": step})
