"""What becomes of a network of each depth: how it is converted, and what it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

SMALL, LARGE = Fraction(1, 8), Fraction(9, 10)
RAMP = 0.5  # share of the fine-tuning in which a schedule comes to its end; the rest is trained there
REFERENCE = "original"


@dataclass(frozen=True)
class Variant:
    """A network by the side of the original one.

    Attributes:
        gamma: With which it is converted; None leaves it as it is.
        end: Gamma at the end of the training, where a schedule changes it.
        fine_tuned: Whether it begins with the weights that the original is trained to, and trains for less epochs.
    """

    gamma: Fraction | None = None
    end: Fraction | None = None
    fine_tuned: bool = False


VARIANTS = {
    REFERENCE: Variant(),
    "scratch": Variant(LARGE),
    "continued": Variant(fine_tuned=True),
    "converted": Variant(SMALL, fine_tuned=True),
    "scheduled": Variant(SMALL, LARGE, fine_tuned=True),
}
