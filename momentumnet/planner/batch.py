"""The largest batch whose step fits a budget: guessed from what was measured at another one, and then measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from momentumnet.errors import ConversionError
from momentumnet.memory import format_bytes
from momentumnet.out_of_memory import is_out_of_memory
from momentumnet.planner.advice import does_not_fit
from momentumnet.planner.machine.budget import allowed
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.rescaled import predicted_largest
from momentumnet.planner.searching.search import fewest, least
from momentumnet.streams.blocks.nested import tensors_in

# A batch that fits, where batch norms can measure a batch of one value a channel in nothing smaller.
FIRST = 2
# No batch is measured that is larger than so many times one that fits.
GROWTH = 16
# So much larger than predicted a batch mostly is, at most: what the prediction may be off, and the margin.
BEYOND = 0.2
# So many guesses are followed; then every other step halves what is left.
GUESSES = 6


@dataclass(frozen=True)
class Tried:
    """A batch that was looked at: what was measured (nothing without the memory to), and whether a plan fits."""

    batch: int
    options: Sequence[Options]
    fits: bool


def largest_planned(
    make_example: Callable[[int], Any], measure: Callable[[Any], Sequence[Options]], limit: int, *, most: int
) -> int:
    """The largest batch whose step fits a budget.

    Args:
        make_example: gives a batch's example inputs.
        measure: gives what can be chosen for example inputs, one way or another.
        limit: the budget in bytes.
        most: the largest batch to look at.

    Raises:
        ConversionError: a batch of one does not fit, or cannot even be measured.
        ValueError: the inputs do not depend on the batch.
    """
    shapes: dict[int, list[torch.Size]] = {}
    found: dict[int, Sequence[Options]] = {}

    def options_of(batch: int) -> Sequence[Options]:
        example = make_example(batch)
        shapes[batch] = [tensor.shape for tensor in tensors_in(example)]
        alike = [other for other in shapes if other != batch and shapes[other] == shapes[batch]]
        if alike:
            raise ValueError(
                f"make_example must make inputs of the batch size that it is given, got the same shapes "
                f"{[tuple(shape) for shape in shapes[batch]]} for {alike[0]} and for {batch}"
            )
        try:
            found[batch] = measure(example)
        except (MemoryError, RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                return ()
            # Batch norms have nothing to measure in one value a channel: then a batch of two is the smallest.
            if batch == 1 and FIRST in found:
                raise does_not_fit(_smallest(found[FIRST]), limit, FIRST) from error
            raise
        return found[batch]

    largest = largest_fitting(options_of, allowed(limit), most)
    if not found:
        raise ConversionError(
            f"there is not the memory to look at a step of a batch of {min(shapes)}: {format_bytes(limit)} may be more "
            "than the device has free"
        )
    if not largest:
        raise does_not_fit(_smallest(found[min(found)]), limit, min(found))
    return largest


def _smallest(ways: Sequence[Options]) -> Options:
    """The way whose least budget is the smallest."""
    return min(ways, key=lambda options: least(options)[0])


def largest_tried(largest: int, fits: Callable[[int], bool], most: int) -> int:
    """The largest batch that fits when it is tried, and one more does not; 0 if none does.

    Args:
        largest: the one that is predicted to, with a margin.
        fits: tries a batch.
        most: the largest batch to look at.
    """
    near = max(1, int(largest * BEYOND))
    if fits(largest):
        return _largest_above(largest, near, fits, most)
    if largest > near and fits(largest - near):
        return _halved(largest - near, largest, fits)
    return _halved(0, max(1, largest - near), fits)


def _largest_above(batch: int, near: int, fits: Callable[[int], bool], most: int) -> int:
    """The largest that fits, above one that does; where all near it do, the prediction is off by more."""
    while batch < most:
        stop = min(most, batch + near) + 1
        batch = _halved(batch, stop, fits)
        if batch + 1 < stop:
            break
        near *= 2
    return batch


def _halved(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest that fits, where ``low`` does and ``high`` does not, as far as is known."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_fitting(options_of: Callable[[int], Sequence[Options]], limit: int, most: int) -> int:
    """The largest batch for which choices fit, at most ``most``; 0 if not even a batch of one does.

    It fits, and one more does not: both are measured. Batches between a larger one that fits and it are not
    looked at, as peaks grow with the batch.

    Args:
        options_of: measures a step of so large a batch; nothing if there is not the memory to do so.
        limit: bytes that the peak may take.
        most: the largest batch to look at.
    """

    def tried(batch: int) -> Tried:
        ways = options_of(batch)
        return Tried(batch, ways, any(fewest(options, limit) is not None for options in ways))

    low = last = tried(min(FIRST, most))
    if not low.fits:
        return int(low.batch > 1 and tried(1).fits)
    high: int | None = None
    turn = 0
    while (stop := min(most, GROWTH * low.batch) + 1 if high is None else high) - low.batch > 1:
        turn += 1
        if not last.options or (turn > GUESSES and turn % 2):
            last = tried((low.batch + stop) // 2)
        else:
            beyond = range(low.batch + 1, stop)
            guesses = (predicted_largest(options.profile, last.batch, limit, beyond) for options in last.options)
            last = tried(max((guess for guess in guesses if guess is not None), default=beyond[0]))
        if last.fits:
            low = last
        else:
            high = last.batch
    return low.batch
