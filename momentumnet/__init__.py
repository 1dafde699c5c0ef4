"""Train deep residual networks in memory that does not grow with depth.

The packages ``init``, ``landscape``, ``optim`` and ``prune``, and the planner, are loaded when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from momentumnet import log, native
from momentumnet.convert import convert, revert, set_gamma
from momentumnet.core.ledger import check_replays
from momentumnet.description import describe
from momentumnet.errors import (
    CheckpointError,
    ConversionError,
    MomentumNetError,
    MomentumNetWarning,
    PruningError,
    ReconstructionError,
    StateRangeError,
    StepOrderError,
)
from momentumnet.memory import MemoryReport, measure_memory
from momentumnet.momentum_net import MomentumNet, transform_to_momentumnet
from momentumnet.planning import plan
from momentumnet.streams.block import ResidualStream
from momentumnet.streams.discover import find_streams
from momentumnet.training_state import load_training_state, training_state

if TYPE_CHECKING:
    from momentumnet import init, landscape, optim, prune
    from momentumnet.planner.training_plan import TrainingPlan

__version__ = "1.0.0.dev0"

log.name_the_package()

__all__ = [
    "CheckpointError",
    "ConversionError",
    "MemoryReport",
    "MomentumNet",
    "MomentumNetError",
    "MomentumNetWarning",
    "PruningError",
    "ReconstructionError",
    "ResidualStream",
    "StateRangeError",
    "StepOrderError",
    "TrainingPlan",
    "check_replays",
    "convert",
    "describe",
    "find_streams",
    "init",
    "landscape",
    "load_training_state",
    "measure_memory",
    "native",
    "optim",
    "plan",
    "prune",
    "revert",
    "set_gamma",
    "training_state",
    "transform_to_momentumnet",
]

_LAZY = ("init", "landscape", "optim", "prune")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "TrainingPlan":
        return importlib.import_module(f"{__name__}.planner.training_plan").TrainingPlan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "TrainingPlan"})
