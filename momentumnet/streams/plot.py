"""A network's streams as a picture: their blocks in call order, and the bytes that wait for backward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from momentumnet.figures import BLUE, COLOUR_OF_WAY, new_figure, patches

if TYPE_CHECKING:
    from momentumnet.streams.plan import Plan

MIB = 1 << 20
OUTSIDE = "outside"


def draw(plan: Plan, path: str | Path) -> None:
    """Write the picture to a file."""
    stages = plan.ways
    names = [OUTSIDE, *(row.path or "(root)" for row in plan.rows)]
    figure = new_figure("Plan.plot", 10, 1.6 + 0.34 * len(names))
    blocks, bars = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for place, (stage, way) in enumerate(stages):
        line = 0 if stage.stream is None else stage.stream + 1
        blocks.barh(line, 0.86, 0.6, left=place + 0.07, color=COLOUR_OF_WAY[way])
    blocks.set(
        title="blocks of the streams, and what is recomputed outside",
        xlabel="order of the calls",
        xlim=(0, len(stages)),
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.4, -0.6),
    )
    _draw_bytes(bars, plan)
    figure.legend(
        handles=[*patches(way for _, way in stages), *bars.containers],
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    figure.savefig(path, dpi=200)


def _draw_bytes(axes: Any, plan: Plan) -> None:
    lines = range(1, len(plan.rows) + 1)
    for label, aside, colour in (("saved_before", -0.17, "0.75"), ("saved_after", 0.17, BLUE)):
        sizes = [getattr(row, label) / MIB for row in plan.rows]
        axes.barh([line + aside for line in lines], sizes, 0.3, color=colour, label=label.replace("saved_", ""))
    axes.set(title="held for backward", xlabel="bytes of the stream, MiB", xlim=(0, None))
    axes.tick_params(left=False)
