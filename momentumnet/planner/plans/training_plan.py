"""What a plan says: for each unit how its activations come to backward, and what the step takes in bytes and time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from momentumnet.core.outside.offload import Offload
from momentumnet.core.tensors.packed import Companion
from momentumnet.errors import ConversionError
from momentumnet.memory import format_bytes
from momentumnet.planner.machine.budget import ANEW, PRESENT
from momentumnet.planner.plans.plain_data import value_of
from momentumnet.planner.plans.soundness import check
from momentumnet.planner.profiles.choice import KEPT, Way
from momentumnet.planner.searching.methods import PlannedMethod
from momentumnet.planner.searching.moments import Moment

VERSION = 4


@dataclass(frozen=True)
class PlannedUnit:
    """A stream's block, or a part outside the streams.

    Attributes:
        names: its modules.
        stream: path of its stream; None outside.
        way: how its activations come to backward: "stored", "checkpointed", "reversible" or "offloaded".
        group: number that units which are recomputed together share.
        held: bytes that it adds to what is held between forward and backward.
        seconds: that its recompute takes, or its copies to host memory and back, as far as nothing runs beside them.
        input_stays: where it is offloaded, whether what it is given is on the device anyway.
    """

    names: tuple[str, ...]
    stream: str | None
    way: str
    group: int
    held: int
    seconds: float
    input_stays: bool = False


@dataclass(frozen=True)
class PlannedStream:
    """A stream as conversion needs to know it; see `momentumnet.ResidualStream`."""

    path: str
    blocks: tuple[str, ...]
    arguments: tuple[int | str, ...]
    magnitude: float
    start_magnitude: float
    spread: float
    companions: tuple[Companion, ...] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """A choice for each block and part of a network, for a budget; ``print`` shows it as a table.

    Attributes:
        units: in call order.
        streams: the momentum streams.
        gamma: their momentum factor.
        arithmetic: theirs.
        budget: in bytes; None if the least was asked for.
        peak: predicted bytes at the step's fullest moment, parameters and optimizer not counted.
        measured_peak: the same, measured in the first step of a copy that follows the plan; None if none was made.
        stored_peak: the same where everything is stored.
        seconds: predicted time of a step.
        least_seconds: a time that no other choice in these bytes goes below, by the same prediction.
        stored_seconds: the same where everything is stored.
        held: predicted bytes between forward and backward.
        moments: the bytes over the step.
        methods: the same by other methods, "stored" in front.
        elements: of the example's tensors; with more the step takes more.
        estimated: whether it was made of tensors without values: times are counts of operations then, and work space
            of kernels is not in the bytes.
        offloaded: predicted bytes in host memory between forward and backward.
        containers: how many modules the containers have that hold those of the units, by path.
        by_forward: names of the modules whose ``forward`` is called, and not they themselves.
        gradients: of parameters: "anew", as the step makes them, or "present", where they are there all the time.
        parameter_bytes: of all parameters; 0 where the plan was written by a version that did not say.
        autocast: the type to which autocast cast in the measured step, "none" without; None where that is not known.
        trained_bytes: of the parameters that take a gradient; None where that is not known.
        training: whether the network was in training mode in the measured step; None where that is not known.
        classes: names of the classes of the units' modules, by name.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> plan = mn.plan(model, torch.randn(2, 8, 16), budget="1MiB")
        >>> plan.peak <= plan.budget
        True
        >>> plan.save("plan.json")
        >>> converted = mn.convert(model, plan=mn.TrainingPlan.load("plan.json"))
    """

    units: tuple[PlannedUnit, ...]
    streams: tuple[PlannedStream, ...]
    gamma: Fraction
    arithmetic: str
    budget: int | None
    peak: int
    stored_peak: int
    seconds: float
    least_seconds: float
    stored_seconds: float
    held: int
    moments: tuple[Moment, ...]
    methods: tuple[PlannedMethod, ...]
    elements: int
    estimated: bool = False
    measured_peak: int | None = None
    offloaded: int = 0
    containers: tuple[tuple[str, int], ...] = ()
    by_forward: tuple[str, ...] = ()
    gradients: str = ANEW
    parameter_bytes: int = 0
    autocast: str | None = None
    trained_bytes: int | None = None
    training: bool | None = None
    classes: tuple[tuple[str, str], ...] = ()

    def runs_of(self, stream: PlannedStream) -> list[list[PlannedUnit]]:
        """The blocks of a stream, for each time that it runs; several streams in one container have one path.

        Runs may take turns (two views, block by block): a block goes on with the first run that has come to it.
        """
        blocks, runs = set(stream.blocks), list[list[PlannedUnit]]()
        for unit in self.units:
            if unit.stream != stream.path or not blocks.issuperset(unit.names):
                continue
            behind = (run for run in runs if stream.blocks[len(run) : len(run) + 1] == unit.names)
            run = next(behind, None)
            if run is None:
                runs.append(run := [])
            run.append(unit)
        return runs

    def ways_of(self, stream: PlannedStream) -> tuple[str, int]:
        """How the first blocks of a stream come to backward, and how many of its last are stored."""
        ways = [unit.way for unit in self.runs_of(stream)[0]]
        kept = sum(Way(way) in KEPT for way in ways)
        return (ways[0] if kept < len(ways) else Way.REVERSIBLE.value), kept

    @property
    def recomputed(self) -> list[list[PlannedUnit]]:
        """What is checkpointed outside of momentum streams: units that are recomputed together."""
        found: dict[int, list[PlannedUnit]] = {}
        momentum = {stream.path for stream in self.streams}
        for unit in self.units:
            if unit.way == Way.CHECKPOINTED.value and unit.stream not in momentum:
                found.setdefault(unit.group, []).append(unit)
        return list(found.values())

    @property
    def in_host_memory(self) -> list[Offload]:
        """The units that are offloaded, each until the one behind has run."""
        return [
            Offload(unit.names, behind.names[-1], input_stays=unit.input_stays)
            for unit, behind in pairwise(self.units)
            if unit.way == Way.OFFLOADED.value
        ]

    @property
    def _above_the_least(self) -> str:
        share = self.seconds / self.least_seconds - 1
        return (
            f"at most {share:.1%} more than any choice in these bytes" if share > 5e-4 else "the least in these bytes"
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps({"momentumnet_plan": VERSION, **asdict(self), "gamma": str(self.gamma)}))

    @classmethod
    def load(cls, path: str | Path) -> TrainingPlan:
        """Read a plan that `save` has written.

        Raises:
            ConversionError: the file holds something else, or a plan of another version.
        """
        try:
            found = json.loads(Path(path).read_text())
            version = found.pop("momentumnet_plan")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConversionError(f"{path} holds no plan that TrainingPlan.save has written") from error
        if version != VERSION:
            raise ConversionError(f"{path} holds a plan of version {version}, this is version {VERSION}; plan again")
        try:
            plan: TrainingPlan = value_of(cls, found, "plan")
            check(plan)
        except ValueError as error:
            raise ConversionError(
                f"{path} holds a plan that this version of momentumnet cannot follow: {error}; plan again"
            ) from error
        return plan

    def plot(self, path: str | Path) -> None:
        """Draw the choices, and the bytes over the step beside other methods' and the budget; needs matplotlib."""
        from momentumnet.planner.plans.plot import draw

        draw(self, path)

    def __str__(self) -> str:
        """A table in plain text: units that are treated alike share a row."""
        lines = [f"{'what':<40} {'blocks':>6} {'choice':<13} {'held':>10} {'recompute':>10}"]
        for units in _alike(self.units):
            name = units[0].names[0] if len(units) == 1 else f"{units[0].names[0]} ... {units[-1].names[0]}"
            held, seconds = sum(unit.held for unit in units), sum(unit.seconds for unit in units)
            lines.append(
                f"{name:<40} {len(units):>6} {units[0].way:<13} {format_bytes(held):>10} {_milliseconds(seconds):>10}"
            )
        measured = "" if self.measured_peak is None else f", measured {format_bytes(self.measured_peak)},"
        asked = "the least" if self.budget is None else f"a budget of {format_bytes(self.budget)}"
        lines.append(
            f"peak {format_bytes(self.peak)}{measured} for {asked} (stored: {format_bytes(self.stored_peak)}), "
            f"{self.seconds / self.stored_seconds:.2f} times the time of stored activations, "
            f"{self._above_the_least}; gamma {self.gamma}. "
            "Parameters and what an optimizer keeps are not counted."
        )
        if self.gradients == PRESENT:
            lines.append("The gradients of parameters are there all the time, and counted.")
        if self.offloaded:
            lines.append(
                f"{format_bytes(self.offloaded)} go to host memory; the time of offloaded blocks is what their copies "
                "take longer than the computation beside them, by the speed of copies alone."
            )
        if self.training is False:
            lines.append(
                "Measured in eval mode; in training mode, where dropout keeps masks, a step may take more. Call "
                "model.train() before it is planned, where it is trained so."
            )
        if self.estimated:
            lines.append(
                "Made without values: times are estimated from counts of operations and bytes, and the work space of "
                "kernels is not counted."
            )
        return "\n".join(lines)


def _alike(units: Sequence[PlannedUnit]) -> Iterator[list[PlannedUnit]]:
    run: list[PlannedUnit] = []
    for unit in units:
        if run and (unit.stream, unit.way) != (run[-1].stream, run[-1].way):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds else "-"
