"""What a stream's blocks have in common: the rule's constants and options, checked."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import nn

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.core.tensors.packed import Companion
from momentumnet.errors import MomentumNetWarning
from momentumnet.options import one_of

logger = logging.getLogger("momentumnet")

ARITHMETICS = ("exact", "float")
BACKWARDS = ("reversible", "checkpointed", "stored")
FINAL_VELOCITIES = ("flush", "drop")
RANGE_CHECKS = ("forward", "backward")
# Relative gradient error of the float inverse past which the user is warned.
FLOAT_WARNING = 1e-3


class StreamSettings:
    """The settings of one stream, shared by its blocks.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order; a block called several times stands several times.
        gamma: in [0, 1]; rounded to n/d with d <= 128. At 0 the blocks run as they are, with stored activations.
        arithmetic: "exact" (integers, bit for bit) or "float" (plain inverse, warns where it is no longer good).
        backward: "reversible", "checkpointed" (each block is recomputed from its own input, which is kept) or "stored"
            (ordinary autograd), all of the same arithmetic.
        branch_first: start the velocity from the first block's branch.
        final_velocity: "flush" adds gamma/(1-gamma) v at the end; "drop" does not.
        branch_is_output: the blocks return the branch f(x) itself, not x + f(x).
        kept: how many of the last blocks keep their activations, so that backward does not call them again.
        arguments: for each block the position or keyword in which it takes the stream tensor; None where that is not
            known, and the first floating-point tensor is taken.
        companions: further tensors that the blocks hand on, each with a skip of its own, and that the stream carries,
            too; for these ``arguments`` have to be known.
    """

    has_gamma = True

    def __init__(
        self,
        name: str,
        blocks: tuple[str, ...],
        gamma: float | Fraction,
        *,
        arithmetic: str = "exact",
        backward: str = "reversible",
        branch_first: bool = False,
        final_velocity: str = "flush",
        branch_is_output: bool = False,
        kept: int = 0,
        arguments: Sequence[int | str] | None = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        one_of("arithmetic", arithmetic, ARITHMETICS)
        one_of("backward", backward, BACKWARDS)
        one_of("final_velocity", final_velocity, FINAL_VELOCITIES)
        self.name, self.blocks = name, blocks
        self.arithmetic, self.backward = arithmetic, backward
        self.branch_first, self.final_velocity = branch_first, final_velocity
        self.branch_is_output = branch_is_output
        self.kept = kept
        self.arguments = None if arguments is None else tuple(arguments)
        self.companions = tuple(companions)
        self.velocity_module: nn.Module | None = None
        self.range_check = "forward"
        self.set_gamma(gamma)

    def set_range_check(self, when: str) -> None:
        """When it is looked whether the values of a pass fit their scale, from the next pass on."""
        one_of("when", when, RANGE_CHECKS)
        self.range_check = when

    def checked_gamma(self, gamma: float | Fraction) -> Fraction:
        """Gamma as the fraction that the stream would have.

        Raises:
            ValueError: it cannot have this one.
        """
        ratio = exact_gamma(gamma)
        if ratio == 1 and self.final_velocity == "flush":
            raise ValueError(
                f"stream {self.name!r}: gamma=1 leaves nothing to flush (gamma/(1-gamma) is infinite); use "
                "final_velocity='drop' or gamma < 1"
            )
        return ratio

    def set_gamma(self, gamma: float | Fraction) -> None:
        """Change gamma from the next pass on. What there is to say of it is said when it begins to hold."""
        ratio, before = self.checked_gamma(gamma), getattr(self, "gamma", None)
        was_past_floats = before is not None and self._is_past_floats(before)
        self.gamma = ratio
        if ratio == 0 and before != 0 and self.backward == "reversible":
            logger.warning("stream %r: gamma=0 has no velocity to invert; it runs with stored activations", self.name)
        self._warn_past_floats(was_past_floats)

    def _warn_past_floats(self, was_past_floats: bool) -> None:
        """Say that the plain inverse is wrong by the rule of now, unless it was so by the one before."""
        if self._is_past_floats(self.gamma) and not was_past_floats:
            warnings.warn(
                f"stream {self.name!r}: arithmetic='float' {self._rule_in_words(self.gamma)} over {len(self.blocks)} "
                f"blocks loses about {self._digits_lost(self.gamma):.0f} of float32's 7 digits on the way back, so "
                f"gradients are off by more than {FLOAT_WARNING:g}; use arithmetic='exact'",
                MomentumNetWarning,
                stacklevel=4,
            )

    def _is_past_floats(self, gamma: Fraction) -> bool:
        """Whether the plain inverse is wrong by more than FLOAT_WARNING at this gamma."""
        if self.arithmetic != "float" or self.backward != "reversible" or not gamma:
            return False
        return math.log10(torch.finfo(torch.float32).eps) + self._digits_lost(gamma) > math.log10(FLOAT_WARNING)

    def _digits_lost(self, gamma: Fraction) -> float:
        return len(self.blocks) * self._digits_lost_by_block(gamma)

    def _digits_lost_by_block(self, gamma: Fraction) -> float:
        """Decimal digits that the plain inverse of a step loses."""
        return -math.log10(gamma)

    def _rule_in_words(self, gamma: Fraction) -> str:
        return f"at gamma={float(gamma):.4g}"
