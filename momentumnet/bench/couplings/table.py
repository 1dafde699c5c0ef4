"""The table of ``bench couplings``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from momentumnet.bench.couplings.measure import BATCH, DRAWS, FIRST_CLASSES, LR
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import groups, mean
from momentumnet.bench.reporting.tables import Table


def table(rows: Sequence[Row], settings: Mapping[str, Any]) -> Table:
    """What is kept, taken and reached, a line for each method."""
    cells = [
        (
            method,
            mean([100 * row["change_in_training"] for row in own], ".1f"),
            mean([100 * row["change_in_eval"] for row in own], ".1f"),
            "stored" if own[0]["bits"] is None else f"{own[0]['bits']:g}",
            mean([row["time_to_stored"] for row in own]),
            mean([row["accuracy"] for row in own], ".1f"),
        )
        for (method,), own in groups(rows, "method").items()
    ]
    notes = [
        f"A pre-norm transformer of {settings['layers']} layers on the digits of scikit-learn, pretrained on those "
        f"below {FIRST_CLASSES}; then by each rule, with a new head, fine-tuned on all: {settings['epochs']} epochs of "
        f"either, Adam, batch {BATCH}, learning rate {LR:g}. Means and standard deviations of "
        f"{len(groups(rows, 'seed'))} seeds.",
        f"change: of the pretrained network's outputs by the rule alone, relative, in training mode (mean of {DRAWS} "
        "passes) and in eval mode. bits: that a block takes of each element of the stream, beside the state that all "
        "have. time: of forward and backward, to that of stored activations in the same run, medians of "
        f"{settings['repeats']} repeats that take turns. Dr2Net: alpha and beta. additive: ReversibleSequential of the "
        "same branches, the stream in both halves at the start, which convert does not offer.",
    ]
    columns = ("rule", "change in training, %", "change in eval, %", "bits", "time to stored", "accuracy, %")
    return Table("Couplings", columns, cells, notes=notes, left=1)
