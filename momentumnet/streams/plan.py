"""What a conversion will do, before it does it: streams, blocks, bytes saved for backward before and after."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod

from momentumnet.core.exact_state import resting_bytes
from momentumnet.core.fixed_point import word_for
from momentumnet.core.scale import magnitude_bits
from momentumnet.memory import format_bytes
from momentumnet.streams.block import ResidualStream
from momentumnet.streams.discover import Discovery


@dataclass(frozen=True)
class PlanRow:
    """One stream of a plan. Bytes are those held between forward and backward in the trace of the example inputs.

    ``checkpointed`` is what `torch.utils.checkpoint` of each block would hold: the input of every block.
    """

    path: str
    blocks: int
    kind: str
    shape: tuple[int, ...]
    saved_before: int
    saved_after: int
    checkpointed: int


@dataclass(frozen=True)
class Plan:
    """The streams that a conversion will carry, and what it saves. ``print(plan)`` shows a table."""

    discovery: Discovery
    gamma: Fraction
    backward: str = "reversible"
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
                len(s) * prod(s.shape) * s.dtype.itemsize,
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
        if self.backward == "stored" or self.gamma == 0:
            return self.saved_before
        outside = self.discovery.elsewhere_bytes
        if self.others == "checkpoint":
            outside -= self.discovery.outside_saving
            if self.arithmetic == "exact":
                outside -= self.discovery.returned_bytes
        return outside + sum(row.saved_after for row in self.rows)

    def _saved_after(self, stream: ResidualStream) -> int:
        if self.backward == "stored" or self.gamma == 0:
            return stream.saved_bytes
        word = word_for(stream.dtype)
        if self.arithmetic == "float":
            return 2 * prod(stream.shape) * word.bits // 8
        bits = magnitude_bits(stream.dtype, len(stream), self.gamma)
        return ceil(prod(stream.shape) * resting_bytes(self.gamma, word, bits, len(stream)))

    def __str__(self) -> str:
        """A table in plain text."""
        rows = self.rows
        lines = [
            f"{'stream':<32} {'blocks':>6} {'kind':<12} {'shape':<20} {'before':>10} {'after':>10} {'checkpointed':>13}"
        ]
        lines += [
            f"{row.path or '(root)':<32} {row.blocks:>6} {row.kind:<12} {'x'.join(map(str, row.shape)):<20} "
            f"{format_bytes(row.saved_before):>10} {format_bytes(row.saved_after):>10} "
            f"{format_bytes(row.checkpointed):>13}"
            for row in rows
        ]
        lines.append(
            f"{'whole network':<32} {sum(row.blocks for row in rows):>6} {'':<12} {'':<20} "
            f"{format_bytes(self.saved_before):>10} {format_bytes(self.saved_after):>10}"
        )
        lines.append(
            f"gamma {self.gamma}, {self.arithmetic} arithmetic, {self.backward} backward, others={self.others!r}; "
            "bytes held between forward and backward for the example inputs"
        )
        return "\n".join(lines)
