"""The bytes of a planned step over its timeline, and the choices, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momentumnet.figures import BLACK, BLUE, COLOUR_OF_WAY, GREEN, ORANGE, new_figure, patches
from momentumnet.planner.searching.methods import CHECKPOINT, MOMENTUM, STORED

if TYPE_CHECKING:
    from momentumnet.planner.plans.training_plan import TrainingPlan
    from momentumnet.planner.searching.moments import Moment

MIB = 1 << 20
COLOUR_OF_METHOD = {STORED: BLACK, CHECKPOINT: ORANGE, MOMENTUM: GREEN, "planned": BLUE}


def draw(plan: TrainingPlan, path: str | Path) -> None:
    """Write the picture to a file."""
    figure = new_figure("TrainingPlan.plot", 9, 5)
    axes, strip = figure.subplots(2, 1, height_ratios=(14, 1))
    lines = {method.name: method.moments for method in plan.methods} | {"planned": plan.moments}
    for name, moments in lines.items():
        places = _places(moments, len(plan.units))
        sizes = [moment.bytes / MIB for moment in moments]
        width = 2.6 if name == "planned" else 1.3
        axes.step(places, sizes, where="mid", label=name, color=COLOUR_OF_METHOD[name], linewidth=width)
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
    _draw_choices(strip, plan)
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    figure.legend(handles=patches(unit.way for unit in plan.units), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=200)


def _draw_choices(strip: Any, plan: TrainingPlan) -> None:
    for place, unit in enumerate(plan.units):
        strip.barh(0, 1, left=place, color=COLOUR_OF_WAY[unit.way], edgecolor="white", linewidth=0.5)
    strip.set(xlim=(0, len(plan.units)), xlabel="blocks and parts in the order of the calls", yticks=[])
    strip.spines[:].set_visible(False)


def _places(moments: Sequence[Moment], units: int) -> list[float]:
    """Where moments stand between 0 and 1: the forward in the first half, backward from its end."""
    places = []
    for moment in moments:
        share = (moment.unit + 0.5) / (units + 1)
        places.append(share / 2 if moment.phase in ("forward", "loss") else 1 - share / 2)
    return places
