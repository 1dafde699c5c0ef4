"""The table of ``bench step``."""

from __future__ import annotations

from collections.abc import Sequence

from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.memory import format_bytes

NOTES = (
    "One forward and backward pass in training mode; memory beside parameters and their gradients. Columns with × are "
    "multiples of stored activations, 'to checkpoint' of checkpointing every block, measured in turns with them. "
    "Converted networks recompute the modules outside their streams too (others='checkpoint'), but for 'others kept', "
    "the default of convert.",
    "'offloaded': what autograd saves lies in the host's memory (save_on_cpu), which on a GPU does not count. "
    "'compiled blocks': torch.compile of every block, inside what the method does with it; 'compiled, half the "
    "activations': of the whole network, with activation_memory_budget=0.5. Their gradients are compared with "
    "uncompiled ones.",
    "Bytes an element and block: what is held between forward and backward, over the elements of the tensor that the "
    "blocks of the residual streams pass on, times the blocks. What the rest of the network holds counts too.",
    "Gradient error: relative L2 against the same network and rule with stored activations; empty where these do not "
    "fit. BatchNorm normalises with the batch everywhere; torch.utils.checkpoint moves its running statistics twice a "
    "step, which changes no gradient and takes no time to speak of.",
)

NOT_RECONSTRUCTED = "could not be reconstructed"
REFUSED_NOTE = (
    "'refused': the plain inverse in floats has lost so many digits at this depth and gamma that backward raises "
    "ReconstructionError instead of returning a wrong gradient. That is what these lines are there to show; the same "
    "network in exact arithmetic stands above each."
)
PLANNED_NOTE = (
    "'planned as': planned with the peak of that method as budget (gradients included), or the least there is; "
    "with 'any gamma' the plan chooses whether there is momentum. Lines below the table have their time beside the "
    "quickest method that fits into the same bytes, of whatever function, and their peak beside the lowest of all "
    "methods ('any gamma') or of those with momentum. 'stored, again': a copy of the network as it is; how far its "
    "time is from that of stored is chance, and so is as much of the others'. 'offloading': plans that may also move "
    "activations to the host's memory, on a GPU."
)
COLUMNS = ("peak memory", "×", "bytes an element and block", "step time", "×", "to checkpoint", "gradient error")


def table(rows: Sequence[Row]) -> Table:
    """Memory, time and gradient error, a line for each network and method."""
    columns = ("network", "method", *COLUMNS)
    cells = []
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1]["network"] != row["network"]
        cells.append((row["network"] if first else "", row["method"], *_figures(row)))
    failures = [
        f"{row['network']}, {row['method']}: {row['error']}" for row in rows if "error" in row and not _is_refused(row)
    ]
    refused = [REFUSED_NOTE] if any(map(_is_refused, rows)) else []
    planned = [_beside_the_best(row) for row in rows if row.get("time_to_best") is not None]
    notes = (*NOTES, *refused, *([PLANNED_NOTE, *planned] if planned else []), *failures)
    return Table("One training step", columns, cells, notes=notes)


def _is_refused(row: Row) -> bool:
    """Whether the row shows what floats lose, and no fault."""
    return row["method"].endswith(" float") and NOT_RECONSTRUCTED in row.get("error", "")


def _beside_the_best(row: Row) -> str:
    return (
        f"{row['network']}, {row['method']}: {row['time_to_best']:.2f} times the time of {row['best_within']}, the "
        f"quickest within {format_bytes(row['budget_bytes'])}; peak {format_bytes(row['peak_with_gradients'])}, the "
        f"lowest of the others {format_bytes(row['lowest_peak'])}"
    )


def _figures(row: Row) -> tuple[str, ...]:
    if "error" in row:
        return ("refused" if _is_refused(row) else "fails", *[""] * (len(COLUMNS) - 1))
    return (
        format_bytes(row["peak_bytes"]),
        _decimal(row["memory_to_stored"]),
        _decimal(row["bytes_per_element_and_block"]),
        f"{row['step_seconds'] * 1000:.0f} ms",
        _decimal(row["time_to_stored"]),
        _decimal(row["time_to_checkpoint"]),
        "" if row["gradient_error"] is None else f"{row['gradient_error']:.0e}" if row["gradient_error"] else "0",
    )


def _decimal(value: float | None) -> str:
    """Empty where there is no value, as where the method to compare with has failed."""
    return "" if value is None else f"{value:.2f}"
