"""What is said of a budget that is too small: the least there is, what takes it, and what would help, each computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from momentumnet.core.scaling.resolution import resolution_for
from momentumnet.errors import ConversionError
from momentumnet.memory import format_bytes
from momentumnet.planner.machine.budget import MARGIN, allowed
from momentumnet.planner.plans.parameter_bytes import to_the_byte, told_apart
from momentumnet.planner.profiles.choice import KEPT, Choice
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.searching.moments import Moment
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.rescaled import predicted_largest, rescaled
from momentumnet.planner.searching.search import least
from momentumnet.planner.searching.simulate import Simulation

# Larger values of gamma lose fewer bits a block, so that a stream's state takes less.
GAMMAS = (Fraction(1, 2), Fraction(9, 10))
CHUNKS = (2, 4, 8, 16)
# Less than this share of the least is no help.
WORTH = 0.01


class DoesNotFitError(ConversionError):
    """No choices fit a budget.

    Attributes:
        least: the fewest bytes that were measured of a plan, or predicted where none was tried out.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least

    def __reduce__(self) -> tuple[type[DoesNotFitError], tuple[str, int]]:
        return DoesNotFitError, (str(self), self.least)


def does_not_fit(
    options: Options, limit: int, batch: int | None = None, *, measured: int | None = None
) -> DoesNotFitError:
    """The error for a budget of so many bytes, that no choices fit.

    Args:
        options: what can be chosen.
        limit: the budget.
        batch: size of the example's batch, if it is known.
        measured: the fewest bytes that were measured of a plan, if any was tried out.
    """
    profile = options.profile
    smallest, choices = least(options)
    fullest = fullest_moment(profile, choices)
    helps = [
        *_smaller_batch(profile, limit, batch),
        *_other_gamma(profile, smallest),
        *(_chunks(profile, limit, smallest) if fullest.moment.phase == "loss" else ()),
    ]
    advice = f"What would help: {'; '.join(helps)}" if helps else "Neither a smaller batch nor a larger gamma helps"
    found = f"about {_as_budget(smallest)}" if measured is None else f"{to_the_byte(measured)} as measured"
    return DoesNotFitError(
        f"no choice fits a budget of {told_apart(limit, measured)}. The least is {found}, for "
        f"{_place(profile, fullest.moment)}: {fullest}. {advice}",
        smallest if measured is None else measured,
    )


@dataclass(frozen=True)
class FullestMoment:
    """What a step's fullest moment consists of, in bytes.

    Attributes:
        moment: when it is.
        gradients: of parameters.
        kept: activations and inputs that wait for their backward.
        states: of streams, those that wait and the one that runs.
        working: of the part that runs: what it has recomputed, its work space, gradients of activations.
    """

    moment: Moment
    gradients: int
    kept: int
    states: int
    working: int

    def __str__(self) -> str:
        """The largest first."""
        runs = "the loss and the gradient of its input" if self.moment.phase == "loss" else "the part that runs then"
        parts = {
            "gradients of parameters": self.gradients,
            "activations and inputs that wait for backward": self.kept,
            "states of streams": self.states,
            f"working space of {runs}": self.working,
        }
        by_size = sorted(parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{format_bytes(size)} {name}" for name, size in by_size if size)


def fullest_moment(profile: Profile, choices: Sequence[Choice]) -> FullestMoment:
    """That of a step with these choices."""
    simulation = _InParts(profile, choices)
    simulation.step()
    return max(simulation.parts, key=lambda part: part.moment.bytes)


class _InParts(Simulation):
    """A step of which each moment is told apart."""

    def __init__(self, profile: Profile, choices: Sequence[Choice]) -> None:
        super().__init__(profile, choices)
        self.parts: list[FullestMoment] = []
        self._waiting = 0  # bytes that were held before what runs was recomputed

    def note(self, phase: str, index: int, extra: int) -> None:
        super().note(phase, index, extra)
        is_again = phase in ("recompute", "backward") and self.choice(index).way not in KEPT
        kept = min(self._waiting, self.held.total) if is_again else self.held.total
        moving = min(extra, self._in_motion(phase, index))
        working = self.held.total - kept + extra - moving
        self.parts.append(FullestMoment(self.moments[-1], self.gradients, kept, self.states + moving, working))

    def _in_motion(self, phase: str, index: int) -> int:
        """Bytes of the state of the stream that runs."""
        stream = None if phase == "loss" else self.stream_of(index)
        if stream is None or (phase != "forward" and index not in self._rewound):
            return 0
        steps, _ = self._rewound.get(index, (0, 0))
        return stream.in_motion + stream.put_aside(steps)

    def _recompute(self, index: int, choice: Choice, extra: int) -> None:
        if index == choice.stop - 1 or self.stream_of(index) is not None:
            self._waiting = self.held.total
        super()._recompute(index, choice, extra)


def _place(profile: Profile, moment: Moment) -> str:
    return "the loss" if moment.phase == "loss" else f"{moment.phase} of {profile.units[moment.unit].names[0]!r}"


def _as_budget(peak: int) -> str:
    """The budget that a predicted peak needs."""
    return format_bytes(math.ceil(peak / (1 - MARGIN)))


def _smaller_batch(profile: Profile, limit: int, batch: int | None) -> Iterator[str]:
    """A batch that is predicted to fit; where its size is not known, as a percentage."""
    whole = batch or 100
    found = predicted_largest(profile, whole, allowed(limit), range(1, whole))
    if found is not None:
        peak, _ = least(Options(rescaled(profile, found / whole)))
        size = f"a batch of {found} instead of {batch}" if batch else f"a batch of {found} % of this size"
        yield f"{size} (about {_as_budget(peak)})"


def _other_gamma(profile: Profile, smallest: int) -> Iterator[str]:
    """The gamma whose states take least, if they take less than now."""
    streams = [stream for stream in profile.streams if stream.gamma and stream.word is not None]
    tried = [gamma for gamma in GAMMAS if streams and gamma > streams[0].gamma]
    peaks = {gamma: least(Options(_at_gamma(profile, gamma)))[0] for gamma in tried}
    gamma = min(peaks, key=lambda gamma: peaks[gamma], default=None)
    if gamma is not None and peaks[gamma] < smallest * (1 - WORTH):
        yield f"gamma={gamma}, which is another function to train (about {_as_budget(peaks[gamma])})"


def _at_gamma(profile: Profile, gamma: Fraction) -> Profile:
    def at_gamma(place: int, stream: StreamProfile) -> StreamProfile:
        if not stream.gamma or stream.word is None:
            return stream
        blocks = sum(unit.stream == place for unit in profile.units)
        found = resolution_for(stream.dtype, blocks, gamma, stream.spread)
        return replace(stream, gamma=gamma, word=found.word, bits=found.bits)

    return replace(profile, streams=tuple(at_gamma(place, stream) for place, stream in enumerate(profile.streams)))


def _chunks(profile: Profile, limit: int, smallest: int) -> Iterator[str]:
    """The fewest chunks of the loss that fit, or the most, if they help."""
    for count in CHUNKS:
        peak, _ = least(Options(_in_chunks(profile, count)))
        if peak <= allowed(limit) or (count == CHUNKS[-1] and peak < smallest * (1 - WORTH)):
            yield f"the loss computed in {count} chunks (about {_as_budget(peak)})"
            return


def _in_chunks(profile: Profile, count: int) -> Profile:
    """With a loss whose work space is that of a chunk; the gradient of its input is whole.

    Where the model computes its loss itself, that is what it does behind its last unit, and keeps there beside what it
    returns; the gradient is there as the chunks', too, from which the whole is made.
    """
    output, last = profile.units[-1].cost.output_bytes, len(profile.units)
    gradient = min(output, profile.loss.backward_peak)
    whole = 2 * max([output, *(profile.sizes[key] for key in profile.outputs)])
    needed = profile.outputs.union(*(unit.saved | unit.entry for unit in profile.units))
    own = profile.glue_at(last) - needed
    behind = profile.backward_behind
    if behind is not None:
        kept = profile.flow.of_parameters(last) + whole
        behind = min(behind, kept) + max(0, behind - kept) // count
    loss = replace(
        profile.loss,
        forward_peak=profile.loss.forward_peak // count,
        backward_peak=gradient + (profile.loss.backward_peak - gradient) // count,
    )
    return replace(
        profile,
        loss=loss,
        behind=profile.behind // count,
        backward_behind=behind,
        sizes={key: size // count if key in own else size for key, size in profile.sizes.items()},
        flow=profile.flow.with_work(2 * last, lambda work: min(work, whole) + max(0, work - whole) // count),
    )
