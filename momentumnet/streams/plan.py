"""What a conversion will do, before it does it: streams, blocks, bytes saved for backward before and after."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

from momentumnet.arithmetic.fixed_point import word_for
from momentumnet.arithmetic.state_bytes import resting_bytes
from momentumnet.core.scaling.resolution import resolution_for
from momentumnet.listing import listed
from momentumnet.memory import format_bytes
from momentumnet.streams.blocks.block import ResidualStream
from momentumnet.streams.finding.discover import Discovery
from momentumnet.streams.finding.timeline import Stage

# Blocks are recomputed by rewinding, or from their inputs: whichever holds less.
AUTO = "auto"


@dataclass(frozen=True)
class PlanRow:
    """One stream of a plan. Bytes are those held between forward and backward in the trace of the example inputs.

    ``checkpointed`` is what `torch.utils.checkpoint` of each block would hold: the input of every block. ``beside`` are
    the shapes of further tensors that the stream carries.
    """

    path: str
    blocks: int
    kind: str
    shape: tuple[int, ...]
    saved_before: int
    saved_after: int
    checkpointed: int
    beside: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Plan:
    """The streams that a conversion will carry, and what it saves. ``print(plan)`` shows a table."""

    discovery: Discovery
    gamma: Fraction
    backward: str = AUTO
    arithmetic: str = "exact"
    others: str = "keep"

    @property
    def rows(self) -> list[PlanRow]:
        """One row a stream, in call order."""
        return [
            PlanRow(
                s.path,
                len(s),
                s.kind,
                s.shape,
                s.saved_bytes,
                self._saved_after(s),
                0 if s.untrained else len(s) * _stream_bytes(s),
                s.shapes[1:],
            )
            for s in self.discovery.streams
        ]

    @property
    def saved_before(self) -> int:
        """Bytes held for backward by the whole network as it is."""
        return self.discovery.saved_bytes

    @property
    def saved_after(self) -> int:
        """The same after conversion: the state and store of each stream, and all that is outside."""
        if self._stored:
            return self.saved_before
        stages = zip(self._timeline, self._freed, strict=True)
        freed = sum(freed for stage, freed in stages if stage.stream is None)
        return self.discovery.elsewhere_bytes - freed + sum(row.saved_after for row in self.rows)

    @property
    def backwards(self) -> list[str]:
        """For each stream how its blocks come to backward.

        A stream of few blocks is checkpointed rather than reversed, where a state would hold more than the inputs of
        all blocks do: the same bits, in less memory and time.
        """
        return [self._backward_of(stream) for stream in self.discovery.streams]

    def _backward_of(self, stream: ResidualStream) -> str:
        if self.backward != AUTO or not self.gamma:
            return "reversible" if self.backward == AUTO else self.backward
        inputs = len(stream) * _stream_bytes(stream)
        return "checkpointed" if inputs < self._state_bytes(stream) else "reversible"

    @property
    def recomputed(self) -> list[tuple[str, ...]]:
        """Names of what is recomputed outside the streams: of a module, or of the layers of a chain."""
        return list(dict.fromkeys(stage.names for stage in self._timeline if stage.stream is None))

    @property
    def ways(self) -> list[tuple[Stage, str]]:
        """The blocks, and what is recomputed outside, in call order; each with how it comes to backward.

        That is "reversible", "checkpointed" or "stored".
        """
        backwards = ["stored"] * len(self.rows) if self._stored else self.backwards
        return [
            (stage, "checkpointed" if stage.stream is None else backwards[stage.stream]) for stage in self._timeline
        ]

    @property
    def notes(self) -> list[str]:
        """In words, which streams carry several tensors, and why others do not."""
        found = []
        for stream in self.discovery.streams:
            name, shapes = stream.path or "(root)", [shape_text(shape) for shape in stream.shapes]
            if stream.companions:
                *others, last = shapes
                found.append(f"{name}: carries {len(shapes)} tensors as one state, {', '.join(others)} and {last}")
            found += [f"{name}: {reason}" for reason in stream.left]
        return found

    def plot(self, path: str | Path) -> None:
        """Draw the streams: their blocks in call order, and the bytes held for backward; needs matplotlib."""
        from momentumnet.streams.plot import draw

        draw(self, path)

    @property
    def _stored(self) -> bool:
        return self.backward == "stored" or self.gamma == 0

    @property
    def _timeline(self) -> tuple[Stage, ...]:
        """What is recomputed: the blocks, and all that can be outside of them if asked for."""
        if self.others == "checkpoint":
            return self.discovery.timeline
        blocks = self.discovery.blocks
        return tuple(stage for stage in blocks if stage.stream is not None) if self._stored else blocks

    @cached_property
    def _freed(self) -> list[int]:
        """For each stage the bytes that its recompute frees.

        Its input is among them where the stream before gives again what it returned.
        """
        found, given_again = [], False
        for stage in self._timeline:
            found.append(stage.freed(given_again=given_again))
            if stage.stream is not None:
                stream = self.discovery.streams[stage.stream]
                way, alone = self._backward_of(stream), not stream.companions and not stream.untrained
                given_again = self.arithmetic == "exact" and way == "reversible" and alone
        return found

    def _saved_after(self, stream: ResidualStream) -> int:
        """Bytes that wait for the backward of the blocks: of the stream's state, or of their inputs."""
        if self._stored or stream.untrained:
            return stream.saved_bytes
        if self._backward_of(stream) == "checkpointed":
            return len(stream) * _stream_bytes(stream)
        return self._state_bytes(stream)

    def _state_bytes(self, stream: ResidualStream) -> int:
        """Bytes of the stream's state while it waits to be rewound."""
        if self.arithmetic == "float":
            return 2 * stream.elements * word_for(stream.dtype).bits // 8
        found = resolution_for(stream.dtype, len(stream), self.gamma, stream.spread)
        return ceil(stream.elements * resting_bytes(self.gamma, found.word, found.bits, len(stream)))

    def __str__(self) -> str:
        """A table in plain text."""
        rows = self.rows
        lines = [
            f"{'stream':<32} {'blocks':>6} {'kind':<12} {'shape':<20} {'before':>10} {'after':>10} {'checkpointed':>13}"
        ]
        lines += [
            f"{row.path or '(root)':<32} {row.blocks:>6} {row.kind:<12} {shape_text(row.shape):<20} "
            f"{format_bytes(row.saved_before):>10} {format_bytes(row.saved_after):>10} "
            f"{format_bytes(row.checkpointed):>13}"
            for row in rows
        ]
        lines.append(
            f"{'whole network':<32} {sum(row.blocks for row in rows):>6} {'':<12} {'':<20} "
            f"{format_bytes(self.saved_before):>10} {format_bytes(self.saved_after):>10}"
        )
        lines += self.notes
        checkpointed = [
            s.path or "(root)"
            for s, way in zip(self.discovery.streams, self.backwards, strict=True)
            if way == "checkpointed" and self.backward == AUTO
        ]
        if checkpointed:
            lines.append(f"{', '.join(checkpointed)}: checkpointed, as a state would hold more")
        lone = [name for names in self.recomputed for name in names] if self.others == "keep" else []
        if lone:
            lines.append(f"{listed(lone)}: alone between other modules, recomputed from what they take")
        lines.append(
            f"gamma {self.gamma}, {self.arithmetic} arithmetic, {self.backward} backward, others={self.others!r}; "
            "bytes held between forward and backward for the example inputs"
        )
        return "\n".join(lines)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as a table shows it."""
    return "x".join(map(str, shape))


def _stream_bytes(stream: ResidualStream) -> int:
    """Of what the stream carries."""
    return stream.elements * stream.dtype.itemsize
