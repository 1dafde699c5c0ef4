"""One training of a lottery: the user's function on a masked network, and what is kept of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from momentumnet.description.stream_rules import rules_of
from momentumnet.prune.lottery.seeds import seeded
from momentumnet.prune.lottery.training_log import TrainingLog
from momentumnet.prune.lottery.trainings import Record
from momentumnet.prune.masking.dense import dense_state_dict
from momentumnet.prune.masking.distance import MaskWindow, mask_distance
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.masking.places import places_by_name

State = dict[str, Tensor]
TrainFunction = Callable[[nn.Module, TrainingLog], object]


class Watch:
    """Looks at the masks that a training would give, each time that it is evaluated.

    Args:
        masks_now: Gives the masks for the weights as they are.
        tolerance: The distance below which the masks count as settled; 0 only watches.
        may_stop: Whether the training may end when they have.
    """

    def __init__(self, masks_now: Callable[[], Masks], *, tolerance: float, may_stop: bool) -> None:
        self._masks_now, self._may_stop = masks_now, may_stop
        self._window = MaskWindow(tolerance=tolerance)
        self._seen: list[Masks] = []

    def look(self) -> bool:
        """Whether the training may end."""
        self._seen.append(self._masks_now())
        return self._window.update(self._seen[-1]) and self._may_stop

    def distances(self) -> list[float]:
        """How far the masks of each evaluation were from those that the training came to."""
        last = self._masks_now()
        return [mask_distance(masks, last) for masks in self._seen]


def train(
    model: nn.Module,
    train_fn: TrainFunction,
    *,
    start_step: int,
    rewind_to: int | None,
    seed: int,
    watch: Watch | None,
) -> Record:
    """Runs the user's function.

    Args:
        model: The network, masked or not; trained in place.
        train_fn: The function.
        start_step: Step at which it begins.
        rewind_to: Step whose weights are wanted in the record, after ``start_step``; None for no such step.
        seed: Of the global generators.
        watch: Looks at the masks at each evaluation.

    Returns:
        Weights after the training, and at ``rewind_to``; the rules that its streams came to; steps, accuracies,
        seconds, distances of the masks.

    Raises:
        ValueError: The function did not train the model that it was given, or made fewer steps than ``rewind_to``.
        TypeError: It returned something else than a number or None.
    """
    record: Record = {}

    def on_step(step: int) -> None:
        if step == rewind_to:
            record["rewound"] = on_cpu(dense_state_dict(model))

    before = on_cpu(dense_state_dict(model))
    log = TrainingLog(start_step=start_step, on_step=on_step, on_accuracy=watch.look if watch else lambda: False)
    started = time.perf_counter()
    with seeded(seed, model):
        returned = train_fn(model, log)
    seconds = time.perf_counter() - started
    if returned is not None:
        if not isinstance(returned, Real):
            raise TypeError(f"train_fn must return the last accuracy or None, got {type(returned).__name__}")
        log.accuracy(float(returned))
    trained = on_cpu(dense_state_dict(model))
    _check_trained(model, before, trained)
    if rewind_to is not None and "rewound" not in record:
        raise ValueError(
            f"train_fn reported {log.steps} steps, and rewind_to={rewind_to} lies beyond; "
            "call log.step() after each optimizer.step(), or choose an earlier step"
        )
    return record | {
        "trained": trained,
        "rules": rules_of(model),
        "steps": log.steps,
        "accuracies": log.accuracies,
        "seconds": seconds,
        "distances": watch.distances() if watch else [],
    }


def _check_trained(model: nn.Module, before: State, after: State) -> None:
    """Refuse a training that has changed none of the weights that pruning goes by."""
    if all(torch.equal(before[name], after[name]) for name in places_by_name(model) if name in before):
        raise ValueError(
            "train_fn left the model that it was given as it was; it must train it in place, not a copy "
            "(momentumnet.convert makes one unless inplace=True: convert before, and give the lottery the result)"
        )


def on_cpu(state: State) -> State:
    """A copy of a state dict that later steps do not change."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()  # a module's extra state is anything
    }
