"""The tables of ``bench zoo``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.zoo.entries import LIBRARIES
from momentumnet.memory import format_bytes

COLUMNS: tuple[str, ...] = (
    "model",
    "kind",
    "refused, because",
    "streams",
    "blocks",
    "saved",
    "kept goes",
    "checkpointed goes",
    "planned peak goes",
    "error",
)
# Columns of what goes, and of what.
GOES = {"kept_bytes": "saved_bytes", "checkpointed_bytes": "saved_bytes", "planned_peak_bytes": "peak_bytes"}
NOTE = (
    "Random weights, small inputs, training mode with dropout and stochastic depth as they come, gamma 1/8, no names "
    "given. Streams: number of blocks of each. Blocks: in streams, and recomputed though they stand alone, of all "
    "residual blocks. Saved: bytes held between forward and backward by the model as it is; goes: how many of them the "
    "conversion does without, with others='keep' and with others='checkpoint'. A model without a stream needs a "
    "budget: of the peak of its step, gradients included, goes so much with budget='least', which computes its own "
    "function. Error: relative L2 difference of a "
    "parameter's gradient to stored activations, the largest of all parameters and of both."
)


DEPTHS = {
    "torchvision": "Depth: as the names say.",
    "timm": "Depth: the smallest member of each family.",
    "transformers": "Depth: configurations of 3 or 4 layers in a stack, 2 to 4 in a stage.",
}
DEEPER = (
    "Depth: at least {layers} layers in each stack, or in the longest of the stages. Layers: how many were set, for a "
    "registered deeper member how many it has; none where the model stays as it is without, because it takes no other "
    "number or has as many."
)


def tables(rows: Sequence[Row], *, layers: int | None = None) -> list[Table]:
    """A table for each library of which there are rows; ``layers`` as they were asked for."""
    return [
        _table(library, of_library, layers)
        for library in LIBRARIES
        if (of_library := sorted((row for row in rows if row["library"] == library), key=lambda row: row["model"]))
    ]


def _table(library: str, rows: Sequence[Row], layers: int | None) -> Table:
    found = [row for row in rows if row["covered"]]
    trained = [row for row in rows if row["gradient_error"] is not None]
    measured, planned = ([row for row in trained if bool(row["covered"]) == streams] for streams in (True, False))
    depth = DEPTHS[library] if layers is None else DEEPER.format(layers=layers)
    notes = [NOTE, depth, f"{len(found)} of {len(rows)} models have streams, {len(measured)} were trained a step."]
    if measured:
        notes.append(f"Median of what goes: {_medians(measured)}. Largest error: {_largest_error(measured)}.")
    if planned:
        notes.append(
            f"{len(planned)} without streams were trained a step by a plan of the least budget. Median of what goes "
            f"of the peak: {median(_share(row, 'planned_peak_bytes') for row in planned):.1%}. Largest error: "
            f"{_largest_error(planned)}."
        )
    title, columns = f"{library}: every model, converted", COLUMNS
    if layers is not None:
        deeper, others = ([row for row in measured if (row["layers"] is None) == same] for same in (False, True))
        for those, are in ((deeper, "made deeper"), (others, "as they are without")):
            if those:
                notes.append(f"{len(those)} of them {are}; median of what goes: {_medians(those)}.")
        title, columns = (
            f"{title}, with at least {layers} layers where it takes them",
            (*COLUMNS[:3], "layers", *COLUMNS[3:]),
        )
    cells = [_cells(row, with_layers=layers is not None) for row in rows]
    return Table(title, columns, cells, notes=notes, left=3)


def _medians(rows: Sequence[Row]) -> str:
    kept, checkpointed = (median(_share(row, f"{others}_bytes") for row in rows) for others in ("kept", "checkpointed"))
    return f"{kept:.1%}, with others='checkpoint' {checkpointed:.1%}"


def _largest_error(rows: Sequence[Row]) -> str:
    return f"{max(row['gradient_error'] for row in rows):.1e}"


def _cells(row: Row, *, with_layers: bool) -> list[str]:
    measured = row["gradient_error"] is not None
    return [
        row["model"],
        ", ".join(row["kinds"]),
        row["refusal"].replace("|", "/"),
        *([str(row["layers"] or "")] if with_layers else []),
        _lengths([blocks for _, blocks in row["streams"]]),
        _blocks(row),
        format_bytes(row["saved_bytes"]) if measured else "",
        *(f"{_share(row, name):.1%}" if row.get(name) is not None else "" for name in GOES),
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
    """The part that goes."""
    return 1.0 - float(row[name]) / float(row[GOES[name]])
