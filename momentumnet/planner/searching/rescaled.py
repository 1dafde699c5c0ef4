"""What a measured step would take at another batch size: activations grow with it, gradients of weights do not."""

from __future__ import annotations

from dataclasses import replace

from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.unit import Cost, Unit
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.search import fewest


def rescaled(profile: Profile, share: float) -> Profile:
    """The profile at ``share`` times the batch that was measured: an estimate, as work space may grow otherwise.

    Times are left as they were.
    """
    return replace(
        profile,
        units=tuple(_unit(unit, share) for unit in profile.units),
        sizes={key: int(size * share) for key, size in profile.sizes.items()},
        streams=tuple(replace(stream, elements=int(stream.elements * share)) for stream in profile.streams),
        loss=_cost(profile.loss, share),
        loss_held=int(profile.loss_held * share),
        behind=int(profile.behind * share),
        backward_behind=None if profile.backward_behind is None else _behind(profile, profile.backward_behind, share),
        flow=profile.flow.scaled(share),
        spaces=tuple(int(space * share) for space in profile.spaces),
    )


def predicted_largest(profile: Profile, measured: int, limit: int, batches: range) -> int | None:
    """The largest of the batches that is predicted to fit; None if none is.

    Args:
        profile: of a step.
        measured: its batch.
        limit: bytes that the peak may take.
        batches: those to choose from.
    """

    def fits(batch: int) -> bool:
        return fewest(Options(rescaled(profile, batch / measured)), limit) is not None

    if not batches or not fits(batches[0]):
        return None
    first, last = batches[0], batches[-1]
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if fits(middle) else (first, middle - 1)
    return first


def _behind(profile: Profile, measured: int, share: float) -> int:
    """What backward takes behind the last unit, with or without the gradients of parameters there, or what is known."""
    last, flow = len(profile.units), profile.flow
    own = flow.parameters[2 * last] if flow.parameters else 0
    # Where they are there before, each is added to them and goes: the graph tells of their sum alone.
    known = 0 if profile.present else flow.scaled(share).in_front(last) - int(share * profile.loss_held)
    return max(_grown(measured, own, share), known, int(share * profile.loss.backward_peak))


def _unit(unit: Unit, share: float) -> Unit:
    return replace(unit, cost=_cost(unit.cost, share))


def _cost(cost: Cost, share: float) -> Cost:
    def grown(total: int, fixed: int) -> int:
        return _grown(total, fixed, share)

    return replace(
        cost,
        free_peak=grown(cost.free_peak, cost.cast_bytes),
        forward_peak=grown(cost.forward_peak, cost.cast_bytes),
        backward_peak=grown(cost.backward_peak, cost.parameter_bytes + cost.added_bytes),
        stream_peak=grown(cost.stream_peak, cost.parameter_bytes + cost.added_bytes),
        again_peak=grown(cost.again_peak, cost.parameter_bytes + cost.added_bytes),
        output_bytes=grown(cost.output_bytes, 0),
    )


def _grown(total: int, fixed: int, share: float) -> int:
    """Bytes of which so many do not depend on the batch."""
    return fixed + int(share * max(0, total - fixed))
