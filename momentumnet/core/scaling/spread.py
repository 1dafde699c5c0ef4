"""How far typical values lie below the largest, the *spread*: of a tensor, and of a stream from pass to pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from momentumnet.arithmetic.reports import has_values, read

logger = logging.getLogger("momentumnet")

# Values of a tensor that are looked at to tell what is typical.
_SAMPLE = 1 << 14
# The largest spread that is told: all beyond ask for the same word, and it stays finite.
_MOST = 2.0**100
# Where the largest value has grown by this factor since it was looked how far the typical ones lie below it, that is
# looked at again: outliers may have come, as they do in a training, or with weights that are loaded behind conversion.
SPREAD_VARIES = 4


class StreamSpread:
    """The spread of a stream's values, as its passes have shown it.

    Args:
        name: the stream's name, for the log.
        spread: what is known of it; None to take it from the first pass.
        magnitude: the largest value where it was measured.

    Attributes:
        looks_for_spread: whether it is measured anew in this pass.
    """

    def __init__(self, name: str, spread: float | None, magnitude: float | None) -> None:
        self._name, self._spread = name, spread
        self._spread_at, self.looks_for_spread = magnitude, False
        self._extents: list[Tensor] = []  # what tells it in this pass

    def look_for_spread(self, x: Tensor, *, begins: bool = False) -> None:
        """Measure the spread at one place of a pass that looks for it; it is read when the pass is learned from."""
        known = [] if begins else self._extents
        self._extents = [*known, extent_of(x)] if has_values(x) and x.numel() else known

    def _know_spread(self, greatest: float) -> bool:
        """A pass with values up to ``greatest`` has ended: its spread counts, if it was looked for, or it is to be.

        It is that of the pass behind the one in which values have grown: a single outlier changes nothing for good.

        Returns:
            Whether it has grown.
        """
        has_grown = False
        if self.looks_for_spread and self._extents:
            known, found = self._spread or 1.0, spread_among(self._extents)
            if found > SPREAD_VARIES * known:
                logger.info(
                    "stream %r: its largest values are %.3g times the typical ones now, where it was %.3g; more bits "
                    "hold them apart, which may take memory. There is nothing to do",
                    self._name,
                    found,
                    known,
                )
            if has_grown := found > known:
                self._spread = found
            # On a grid that is too coarse for them, typical values are no longer what they were: it is looked again.
            self._spread_at, self.looks_for_spread, self._extents = greatest, found > 2 * known, []
        elif self._spread_at is None:
            self._spread_at = greatest
        elif greatest > SPREAD_VARIES * self._spread_at:
            self.looks_for_spread = True
        elif greatest:  # values are smaller again: what was seen among huge ones says nothing of outliers that come now
            self._spread_at = min(self._spread_at, SPREAD_VARIES * greatest)
        return has_grown


def spread_of(value: Tensor, largest: float) -> float:
    """The largest magnitude over the median one of the values that are not 0, in a sample. Reads the device."""
    return _ratio(largest, read(_typical(value))) if 0 < largest < math.inf and value.numel() else 1.0


def extent_of(value: Tensor) -> Tensor:
    """Two numbers that `spread_among` makes a spread of; they lie on the tensor's device, unread."""
    low, high = torch.aminmax(value.detach())
    typical = _typical(value)
    return torch.stack([torch.maximum(-low, high).to(typical.dtype), typical])


def spread_among(extents: Sequence[Tensor]) -> float:
    """The largest spread of those tensors. Reads the device, once."""
    return max(_ratio(largest, typical) for largest, typical in read(torch.stack(list(extents))))


def _typical(value: Tensor) -> Tensor:
    """The median magnitude of a sample, in float32 at least; NaN where all values are 0 or not finite."""
    flat = value.detach().reshape(-1)
    sample = flat[:: -(-flat.numel() // _SAMPLE) or 1].abs()
    sample = sample if sample.dtype == torch.float64 else sample.float()
    sample = F.threshold(sample, 0.0, math.nan, inplace=True)  # few operations: a trace looks at all that is returned
    return torch.nan_to_num_(sample, nan=math.nan, posinf=math.nan).nanmedian()


def _ratio(largest: float, typical: float) -> float:
    if not 0 < largest < math.inf or math.isnan(typical):
        return 1.0
    return max(1.0, min(largest / typical, _MOST))
