"""What a training tells the lottery while it runs, and what the lottery tells the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real


class TrainingLog:
    """The second argument of a training function: it reports its steps and its accuracies here.

    Attributes:
        start_step: Step at which the training begins: 0, or ``rewind_to`` for a network that was rewound. A training
            of T steps does the steps ``range(log.start_step, T)``, so that schedules and the order of the data are
            those of the dense training.
        steps: Optimizer steps done, those before ``start_step`` included.
        accuracies: (step, accuracy) of each `accuracy` call.
        stop: Whether the training may end here, because the masks that it is run for do not change any more; never
            set without the lottery's ``early_bird``.

    Example:
        >>> log = TrainingLog()
        >>> for step in range(log.start_step, 3):
        ...     log.step()  # after optimizer.step()
        >>> log.accuracy(0.5)
        >>> log.accuracies
        [(3, 0.5)]
    """

    def __init__(
        self,
        *,
        start_step: int = 0,
        on_step: Callable[[int], object] = lambda step: None,
        on_accuracy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.start_step = self.steps = start_step
        self.accuracies: list[tuple[int, float]] = []
        self.stop = False
        self._on_step, self._on_accuracy = on_step, on_accuracy

    def step(self) -> None:
        """Reports a step of the optimizer; call it right after ``optimizer.step()``."""
        self.steps += 1
        self._on_step(self.steps)

    def accuracy(self, value: float) -> None:
        """Reports the accuracy (or another score, larger is better) of the network as it is now.

        Args:
            value: A finite number, in any unit.

        Raises:
            ValueError: It is no finite number.
        """
        number: object = value
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"an accuracy must be a finite number, got {number!r}")
        self.accuracies.append((self.steps, float(number)))
        self.stop = self._on_accuracy() or self.stop
