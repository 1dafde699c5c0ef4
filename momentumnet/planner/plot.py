"""The bytes of a planned step over its timeline, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from momentumnet.figures import new_figure

if TYPE_CHECKING:
    from momentumnet.planner.simulate import Moment
    from momentumnet.planner.training_plan import TrainingPlan

MIB = 1 << 20


def draw(plan: TrainingPlan, path: str | Path) -> None:
    """Write the picture to a file."""
    figure = new_figure("TrainingPlan.plot", 8, 4.5)
    axes = figure.subplots()
    for label, moments in (("stored", plan.stored_moments), ("planned", plan.moments)):
        axes.step(
            _places(moments, len(plan.units)), [moment.bytes / MIB for moment in moments], where="mid", label=label
        )
    if plan.budget is not None:
        axes.axhline(plan.budget / MIB, color="0.4", linestyle="--", label="budget")
    axes.axvline(0.5, color="0.8", linewidth=1)
    axes.set(
        title="Bytes at once over a training step, predicted",
        xlabel="forward, then backward (share of the units)",
        ylabel="memory, MiB",
        xlim=(0, 1),
        ylim=(0, None),
    )
    figure.legend(loc="outside right upper")
    figure.savefig(path)


def _places(moments: Sequence[Moment], units: int) -> list[float]:
    """Where moments stand between 0 and 1: the forward in the first half, backward from its end."""
    places = []
    for moment in moments:
        share = (moment.unit + 0.5) / (units + 1)
        places.append(share / 2 if moment.phase in ("forward", "loss") else 1 - share / 2)
    return places
