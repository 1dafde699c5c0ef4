"""A residual network's stream that moves by another rule than momentum."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet.core.passes.stream import MomentumStream
from momentumnet.core.rules.two_step import TwoStep
from momentumnet.core.state.coupling import Coupling


class CoupledStream(MomentumStream):
    """The stream of blocks that have a skip of their own, moved by a rule of two steps.

    Args:
        name: the stream's name in messages.
        blocks: names of the blocks in call order.
        rule: the coupling.
        options: those of `MomentumStream`, but for what belongs to a velocity: its gamma, and how it begins and ends.
    """

    has_gamma = False

    def __init__(
        self, name: str, blocks: tuple[str, ...], rule: TwoStep, *, final_velocity: str = "drop", **options: Any
    ) -> None:
        if final_velocity != "drop":
            raise ValueError(f"another coupling than momentum has no velocity to flush, got {final_velocity!r}")
        self.rule = rule
        super().__init__(name, blocks, rule.gamma, final_velocity=final_velocity, **options)

    def set_rule(self, rule: TwoStep) -> None:
        """Move by this rule from the next pass on; a pass under way, and its backward, keep theirs."""
        was_past_floats = self._is_past_floats(self.gamma)
        self.rule, self.gamma = rule, rule.gamma
        self._warn_past_floats(was_past_floats)

    def _digits_lost_by_block(self, gamma: Fraction) -> float:
        return self.rule.digits_lost

    def _rule_in_words(self, gamma: Fraction) -> str:
        return f"of {self.rule!r}"

    def _coupling(self, module: nn.Module) -> Coupling:
        return self.rule.of(module)
