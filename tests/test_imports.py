"""The rooms of the package and who may look into which: imports point downwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "momentumnet"

# From the ground up. A room may import those below it, and itself; rooms of one row know nothing of each other.
FLOORS = (
    ("errors", "figures", "listing", "log", "memory", "out_of_memory", "parameter_parts", "predictions", "progress"),
    ("options",),
    ("arithmetic", "command_errors", "whole_file"),
    ("checkpoint_file", "native", "optimizer_left_behind", "recompute", "source_tree"),
    ("core", "loss"),
    ("couplings", "streams"),
    ("comparison", "description_check", "planner", "resume"),
    ("description",),
    ("model_config", "planning_options"),
    ("planning", "stream_rules"),
    ("batch_size", "gamma_setting", "range_check", "reversion"),
    ("planned",),
    ("unplanned",),
    ("conversion", "step_schedule"),
    ("dr2net_schedule", "gamma_schedule"),
    ("hf", "init", "landscape", "lightning", "momentum_net", "optim", "prune", "reversible_sequential"),
    ("bench",),
    ("finetuning",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The names of the package itself: taken from their rooms, and used by those who show them.
PUBLIC = "__init__"


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that is imported from the package, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "(relative)"
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("momentumnet"):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "momentumnet")


def room_of(module: str) -> str:
    """The room of a module, ``momentumnet.core.tape`` being in ``core``; PUBLIC for the names of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else PUBLIC


def benchmark_of(parts: tuple[str, ...]) -> str | None:
    """The benchmark that a module of ``momentumnet.bench`` belongs to; None for what they share."""
    folder = len(parts) > 1 and parts[0] == "bench" and (PACKAGE / "bench" / parts[1]).is_dir()
    return parts[1] if folder else None


def faults(place: Path, source: str) -> list[str]:
    """What is wrong with the imports of a module that stands at ``place`` in the package."""
    here = place.with_suffix("").parts
    if here == (PUBLIC,):
        return []
    found = []
    for line, module in imported_modules(source):
        parts = tuple(module.split(".")[1:])
        there, what = room_of(module), f"{place}:{line} imports {module}"
        if module == "(relative)":
            found.append(f"{place}:{line} has a relative import; name the module from the top")
        elif there == PUBLIC:
            if FLOOR_OF[here[0]] < FLOOR_OF["bench"]:
                found.append(f"{what}: the package's own names are for those above; import the room")
        elif there != here[0] and FLOOR_OF[there] >= FLOOR_OF[here[0]]:
            found.append(f"{what}: {there!r} does not lie below {here[0]!r}")
        elif benchmark_of(parts) not in (None, benchmark_of(here)) and here[0] == "bench" and here != ("bench", PUBLIC):
            found.append(f"{what}: benchmarks know nothing of each other; what two share stands beside them")
    return found


def modules() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("place", modules(), ids=str)
def test_imports_point_downwards(place: Path) -> None:
    assert not faults(place, (PACKAGE / place).read_text())


def test_every_room_has_its_floor() -> None:
    assert {place.parts[0].removesuffix(".py") for place in modules()} - {PUBLIC} == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("arithmetic/layout.py", "from momentumnet.core.tape import Tape"),
        ("recompute/replay.py", "def f():\n    from momentumnet.core import tape"),
        ("core/tape.py", "import momentumnet.streams.plan"),
        ("core/tape.py", "from momentumnet.loss import batches"),
        ("init/fixup.py", "from momentumnet.prune import masks"),
        ("prune/masks.py", "from momentumnet import optim"),
        ("landscape/hessian.py", "from momentumnet.optim import SAM"),
        ("optim/sam.py", "from momentumnet.bench import results"),
        ("core/tape.py", "import momentumnet as mn"),
        ("core/tape.py", "from . import stream"),
        ("bench/results.py", "from momentumnet.cli import report"),
        ("finetuning/training.py", "from momentumnet.cli import report"),
        ("bench/step/measure.py", "from momentumnet.bench.depth import measure"),
        ("bench/results.py", "from momentumnet.bench.depth import measure"),
    ],
)
def test_a_planted_import_is_found(place: str, source: str) -> None:
    assert faults(Path(place), source)
