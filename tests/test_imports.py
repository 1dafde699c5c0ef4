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
    ("arithmetic", "command_errors", "files"),
    ("native", "recompute", "source_tree"),
    ("core", "loss"),
    ("couplings", "streams"),
    ("comparison", "planner", "resume"),
    ("description", "range_check"),
    ("conversion", "schedules"),
    ("hf", "init", "landscape", "lightning", "momentum_net", "optim", "prune", "reversible_sequential"),
    ("bench",),
    ("finetuning",),
    ("cli",),
    ("__main__",),
)
# The folders of a room, likewise; what stands beside them lies above all of them.
BENCHMARKS = (
    *("couplings", "depth", "gamma_schedule", "gradinit", "init", "init_text", "kernel", "lottery", "paper", "peers"),
    *("plan", "quality", "sam", "sam_step", "sharpness", "step", "structured", "zoo"),
)
FOLDERS = {
    "bench": (("data", "reporting"), ("networks",), ("measuring", "trainings"), BENCHMARKS),
    "core": (("checks", "tensors"), ("state",), ("rewind", "rules", "scaling"), ("outside",), ("passes",)),
    "planner": (("machine",), ("profiles",), ("measuring", "searching"), ("plans",)),
    "prune": (("masking",), ("structured",), ("lottery",)),
    "recompute": (("surroundings",), ("values",), ("arguments",), ("saved",), ("attributes", "buffers")),
    "streams": (("blocks",), ("tracing",), ("finding",)),
}
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
    """The room of a module, ``core`` of ``momentumnet.core.rewind.tape``; PUBLIC for names of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else PUBLIC


def floor_in_room(room: str, folder: str) -> int:
    """On which floor of its room a folder stands, or what is none."""
    return next((floor for floor, folders in enumerate(FOLDERS[room]) if folder in folders), len(FOLDERS[room]))


def is_above(here: tuple[str, ...], there: tuple[str, ...]) -> bool:
    """Whether a module in a folder of a room imports one of the same room that does not lie below it."""
    if here[0] != there[0] or here[0] not in FOLDERS or here[1:2] == there[1:2]:
        return False
    floor, other = (floor_in_room(here[0], parts[1]) for parts in (here, there))
    return other >= floor and floor < len(FOLDERS[here[0]])


def benchmark_of(parts: tuple[str, ...]) -> str | None:
    """The benchmark that a module of ``momentumnet.bench`` belongs to; None for what they share."""
    return parts[1] if parts[0] == "bench" and parts[1:2] and parts[1] in BENCHMARKS else None


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
        elif is_above(here, parts):
            found.append(f"{what}: it does not lie below in {here[0]!r}")
        elif benchmark_of(parts) not in (None, benchmark_of(here)) and here[0] == "bench" and here != ("bench", PUBLIC):
            found.append(f"{what}: benchmarks know nothing of each other; what two share stands beside them")
    return found


def modules() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("place", modules(), ids=str)
def test_imports_point_downwards(place: Path) -> None:
    assert not faults(place, (PACKAGE / place).read_text())


@pytest.mark.parametrize("room", FOLDERS)
def test_every_folder_of_a_room_has_its_floor(room: str) -> None:
    folders = {path.name for path in (PACKAGE / room).iterdir() if (path / "__init__.py").is_file()}
    assert folders == {folder for folders in FOLDERS[room] for folder in folders}


def test_every_room_has_its_floor() -> None:
    assert {place.parts[0].removesuffix(".py") for place in modules()} - {PUBLIC} == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("arithmetic/layout.py", "from momentumnet.core.rewind.tape import Tape"),
        ("recompute/replay.py", "def f():\n    from momentumnet.core.rewind import tape"),
        ("core/rewind/tape.py", "import momentumnet.streams.plan"),
        ("core/rewind/tape.py", "from momentumnet.core.passes import stream"),
        ("core/rewind/tape.py", "from momentumnet.core.rules.dr2net import Dr2Net"),
        ("planner/searching/cuts.py", "from momentumnet.planner import fit"),
        ("core/rewind/tape.py", "from momentumnet.loss import batches"),
        ("init/fixup.py", "from momentumnet.prune.masking import masks"),
        ("prune/masking/scores.py", "from momentumnet.prune.structured.units import mean_scores"),
        ("prune/masking/masks.py", "from momentumnet import optim"),
        ("landscape/hessian.py", "from momentumnet.optim import SAM"),
        ("optim/sam.py", "from momentumnet.bench.reporting import results"),
        ("core/rewind/tape.py", "import momentumnet as mn"),
        ("core/rewind/tape.py", "from . import stream"),
        ("bench/reporting/results.py", "from momentumnet.cli import report"),
        ("finetuning/training.py", "from momentumnet.cli import report"),
        ("bench/step/measure.py", "from momentumnet.bench.depth import measure"),
        ("bench/reporting/results.py", "from momentumnet.bench.depth import measure"),
        ("bench/networks/cifar_networks.py", "from momentumnet.bench.trainings.recipe import Recipe"),
    ],
)
def test_a_planted_import_is_found(place: str, source: str) -> None:
    assert faults(Path(place), source)
