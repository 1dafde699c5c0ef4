"""What ``momentumnet finetune`` shows at its end: the networks side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from momentumnet.cli.json_values import in_json
from momentumnet.cli.report import Report
from momentumnet.files import whole_file
from momentumnet.finetuning.comparison import Comparison, Outcome
from momentumnet.finetuning.trained import WEIGHTS
from momentumnet.listing import listed
from momentumnet.memory import format_bytes

COLUMNS = ("network", "accuracy before", "accuracy after", "peak memory", "held", "step time")


def show(comparison: Comparison, outcomes: Mapping[str, Outcome], report: Report) -> None:
    """Prints the table, and writes it as ``report.json`` into the folder of the run."""
    settings, folder = comparison.settings, comparison.output
    rows = [(name, *_cells(outcome)) for name, outcome in outcomes.items()]
    report.table(COLUMNS, rows, title=f"{settings['model']} on {settings['data']}", spare=("held", "accuracy before"))
    report.remark(
        f"Converted at gamma {settings['gamma']}, {_chosen(settings)}. Memory and time are those "
        f"of one forward and backward pass over {comparison.recipe.batch_size} images, beside parameters and gradients."
    )
    if comparison.save != "last":
        kept = [f"epoch {outcome.kept.number} ({name})" for name, outcome in outcomes.items() if outcome.kept]
        report.remark(f"Accuracy after is that of the weights that are kept: of the best epoch, {listed(kept)}.")
    report.remark(
        f"The fine-tuned weights, which fit the unconverted network too: {folder / WEIGHTS}. "
        f"momentumnet evaluate, predict and export take {folder} from here"
    )
    values: dict[str, Any] = {
        "command": "finetune",
        "settings": dict(settings),
        "device": str(comparison.device),
        "output": str(folder),
        "networks": {name: outcome.values() for name, outcome in outcomes.items()},
    }
    report.result(values)  # first: a disk that is full by now does not cost it
    whole_file.write_json(folder / "report.json", in_json(values))


def _chosen(settings: Mapping[str, Any]) -> str:
    """By which options it was chosen what is recomputed."""
    budget, spare = settings.get("budget"), settings.get("spare", 0)
    if budget is None and not spare:
        return f"others {settings['others']}"
    size = format_bytes(budget) if isinstance(budget, int) else str(budget or f"least and {format_bytes(spare)}")
    return f"for a budget ({size}) that gradients of parameters count in"


def _cells(outcome: Outcome) -> tuple[str, ...]:
    return (
        f"{outcome.accuracy_before:.1%}",
        "" if outcome.accuracy_after is None else f"{outcome.accuracy_after:.1%}",
        format_bytes(outcome.cost.memory.peak_bytes),
        format_bytes(outcome.cost.memory.saved_bytes),
        f"{outcome.cost.seconds * 1000:.0f} ms",
    )
