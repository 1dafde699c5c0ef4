"""The tables of ``bench zoo``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from momentumnet.bench.results import Row
from momentumnet.bench.tables import Table
from momentumnet.bench.zoo.entries import LIBRARIES
from momentumnet.memory import format_bytes

COLUMNS = ("model", "kind", "refused, because", "streams", "blocks", "saved", "kept goes", "checkpointed goes", "error")
NOTE = (
    "Random weights, small inputs, training mode with dropout and stochastic depth as they come, gamma 1/8, no names "
    "given. Streams: number of blocks of each. Blocks: in streams, and recomputed though they stand alone, of all "
    "residual blocks. Saved: bytes held between forward and backward by the model as it is; goes: how many of them the "
    "conversion does without, with others='keep' and with others='checkpoint'. Error: relative L2 difference of a "
    "parameter's gradient to backward='stored', the largest of all parameters and of both."
)


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each library of which there are rows."""
    return [
        _table(library, of_library)
        for library in LIBRARIES
        if (of_library := sorted((row for row in rows if row["library"] == library), key=lambda row: row["model"]))
    ]


def _table(library: str, rows: Sequence[Row]) -> Table:
    found = [row for row in rows if row["covered"]]
    measured = [row for row in found if row["gradient_error"] is not None]
    notes = [NOTE, f"{len(found)} of {len(rows)} models have streams, {len(measured)} were trained a step."]
    if measured:
        goes = {
            others: median(_share(row, f"{others}_bytes") for row in measured) for others in ("kept", "checkpointed")
        }
        notes.append(
            f"Median of what goes: {goes['kept']:.1%}, with others='checkpoint' {goes['checkpointed']:.1%}. Largest "
            f"error: {max(row['gradient_error'] for row in measured):.1e}."
        )
    return Table(f"{library}: every model, converted", COLUMNS, [_cells(row) for row in rows], notes=notes, left=3)


def _cells(row: Row) -> list[str]:
    measured = row["gradient_error"] is not None
    return [
        row["model"],
        ", ".join(row["kinds"]),
        row["refusal"].replace("|", "/"),
        _lengths([blocks for _, blocks in row["streams"]]),
        _blocks(row),
        format_bytes(row["saved_bytes"]) if measured else "",
        f"{_share(row, 'kept_bytes'):.1%}" if measured else "",
        f"{_share(row, 'checkpointed_bytes'):.1%}" if measured else "",
        f"{row['gradient_error']:.1e}" if measured else "",
    ]


def _blocks(row: Row) -> str:
    alone = f" + {row['alone']}" if row["alone"] else ""
    return f"{row['covered']}{alone} of {row['blocks']}" if row["blocks"] else ""


def _lengths(blocks: Sequence[int]) -> str:
    """The numbers of blocks in order; how often each comes where they are many."""
    if len(blocks) <= 8:
        return " ".join(map(str, blocks))
    return ", ".join(f"{count} of {length}" for length, count in Counter(blocks).items())


def _share(row: Row, name: str) -> float:
    """The part of the saved bytes that goes."""
    return 1.0 - float(row[name]) / float(row["saved_bytes"])
