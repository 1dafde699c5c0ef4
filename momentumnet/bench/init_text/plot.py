"""The plot of ``bench init-text``: validation losses over the steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench.init_text.cases import TRAIN
from momentumnet.bench.init_text.methods import ADAM, METHODS
from momentumnet.bench.init_text.networks import FREE, POST
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.plots import COLOURS, add_legend, figure_panels
from momentumnet.bench.reporting.results import Row


def plot(rows: Sequence[Row], frequency_loss: float, path: Path) -> None:
    """Draws a panel for each network and rate of Adam: means over the seeds, and a thin line for each.

    The network without norms is drawn beside the post-norm one, from which it is made. A training that diverged is
    drawn as far as it came and is not in the mean.

    Args:
        rows: What was trained.
        frequency_loss: Drawn as a level.
        path: Where the PNG goes.
    """
    own = [row for row in rows if row["part"] == TRAIN and row["optimizer"] == ADAM and row["init_for"] in (None, ADAM)]
    panels: dict[tuple[str, float], list[Row]] = {}
    for row in own:
        network = POST if row["network"] == FREE else row["network"]
        panels.setdefault((network, row["rate"]), []).append(row)
    with figure_panels(path, max(1, len(panels)), (3.5, 3.4), title="Adam on text, by initialisation") as drawn:
        for axes, ((network, rate), group) in zip(drawn, panels.items(), strict=False):  # without rows an empty panel
            for (method,), lines in seeds.groups(group, "method").items():
                _draw(axes, method, lines)
            axes.axhline(frequency_loss, color="0.6", linewidth=0.8, linestyle=":", label="frequencies of characters")
            axes.set(title=f"{network}, rate {rate:g}", xlabel="step", ylabel="validation loss")
            axes.grid(linewidth=0.5, alpha=0.4)
        add_legend(drawn)


def _draw(axes: Any, method: str, rows: Sequence[Row]) -> None:
    colour = COLOURS[METHODS.index(method)]
    label = f"{method} (no norms)" if rows[0]["network"] == FREE else method
    for row in rows:
        steps, losses = [place[0] for place in row["course"]], [place[2] for place in row["course"]]
        axes.plot(steps, losses, color=colour, linewidth=0.6, alpha=0.4)
    whole = seeds.done(rows)
    if whole:
        steps = [place[0] for place in whole[0]["course"]]
        means = [statistics.mean(losses) for losses in zip(*([p[2] for p in r["course"]] for r in whole), strict=True)]
        axes.plot(steps, means, color=colour, label=label)
