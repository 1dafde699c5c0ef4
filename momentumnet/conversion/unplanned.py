"""Conversion without a plan: the streams in example inputs, or those that are named, and what is recomputed outside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from torch import nn

from momentumnet.conversion.planned import Ends, take_roles
from momentumnet.conversion.planning import conversion_plan
from momentumnet.core.passes.coupled_stream import CoupledStream
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.core.rules.two_step import TwoStep
from momentumnet.streams.blocks.block import scale_of
from momentumnet.streams.blocks.converted import Role
from momentumnet.streams.blocks.roles import recomputed
from momentumnet.streams.finding.by_hand import children_of, named_by_hand
from momentumnet.streams.plan import AUTO


@dataclass(frozen=True)
class Parts:
    """What the parts of a model become.

    Attributes:
        runners: the streams.
        roles: of what is recomputed outside them.
        by_forward: names of modules whose ``forward`` is called, and not they themselves.
    """

    runners: Sequence[MomentumStream]
    roles: Sequence[Role]
    by_forward: Collection[str]

    def make(self, model: nn.Module) -> None:
        """Convert the model, itself."""
        take_roles(model, self.runners, self.roles, self.by_forward)


def parts_found(
    model: nn.Module,
    example_inputs: Any,
    rule: TwoStep | None,
    gamma: Fraction,
    ends: Ends,
    *,
    streams: Sequence[str] | None,
    **options: str,
) -> Parts:
    """The streams in the example inputs, or those that are named, and what is recomputed outside them.

    Args:
        model: the network, which is left as it is.
        example_inputs: as `momentumnet.convert` takes them.
        rule: of the coupling; None for momentum.
        gamma: of momentum.
        ends: of the streams.
        streams: as `momentumnet.convert` takes them.
        options: its ``arithmetic``, ``backward`` and ``others``.
    """
    found: list[tuple[str, tuple[str, ...], dict[str, Any]]]
    roles: list[Role] = []
    by_forward: Collection[str] = ()
    if example_inputs is None:
        paths = named_by_hand(streams, options["others"])
        backward = "reversible" if options["backward"] == AUTO else options["backward"]
        found = [(path, children_of(model, path), {"backward": backward}) for path in paths]
    else:
        resolution = gamma if rule is None else rule.gamma
        planned = conversion_plan(model, example_inputs, gamma=resolution, streams=streams, **options)
        found = [
            (
                stream.path,
                stream.blocks,
                {
                    **scale_of(stream.magnitude, stream.start_magnitude, stream.spread),
                    "backward": backward,
                    "arguments": stream.arguments,
                    "companions": stream.companions,
                },
            )
            for stream, backward in zip(planned.discovery.streams, planned.backwards, strict=True)
        ]
        roles, by_forward = recomputed(planned.recomputed), planned.discovery.by_forward
    new_stream = _stream_of(rule, gamma, options["arithmetic"], ends.final_velocity)
    runners = [new_stream(path or "(root)", blocks, **measured) for path, blocks, measured in found]
    ends.begin(runners)
    return Parts(runners, roles, by_forward)


def _stream_of(
    rule: TwoStep | None, gamma: Fraction, arithmetic: str, final_velocity: str
) -> Callable[..., MomentumStream]:
    """What makes a stream of a name, its blocks and what was measured of it."""
    if rule is not None:
        return partial(CoupledStream, rule=rule, arithmetic=arithmetic)
    return partial(MomentumStream, gamma=gamma, arithmetic=arithmetic, final_velocity=final_velocity)
