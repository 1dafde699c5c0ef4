"""Train deep residual networks in memory that does not grow with depth.

Every public name is loaded when first asked for (PEP 562): ``import momentumnet`` takes next to no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from momentumnet import log

if TYPE_CHECKING:
    from momentumnet import hf as hf  # needs an extra, as lightning does: no names of all
    from momentumnet import init, landscape, native, optim, prune
    from momentumnet import lightning as lightning
    from momentumnet.comparison import OutputComparison, compare_outputs
    from momentumnet.conversion.batch_size import largest_batch
    from momentumnet.conversion.conversion import convert
    from momentumnet.conversion.planning import plan
    from momentumnet.conversion.reversion import revert
    from momentumnet.core.checks.ledger import check_replays
    from momentumnet.core.rules.dr2net import Dr2Net
    from momentumnet.description.description import describe
    from momentumnet.errors import (
        CheckpointError,
        ConversionError,
        MomentumNetError,
        MomentumNetWarning,
        PruningError,
        ReconstructionError,
        StateRangeError,
        StepOrderError,
        StorageError,
    )
    from momentumnet.memory import MemoryReport, measure_memory
    from momentumnet.momentum_net import MomentumNet, transform_to_momentumnet
    from momentumnet.planner.plans.training_plan import TrainingPlan
    from momentumnet.range_check import set_range_check
    from momentumnet.resume import load_training_state, training_state
    from momentumnet.reversible_sequential import ReversibleSequential
    from momentumnet.schedules.dr2net_schedule import Dr2NetSchedule, schedule_dr2net, set_dr2net
    from momentumnet.schedules.gamma_schedule import GammaSchedule, schedule_gamma
    from momentumnet.schedules.gamma_setting import set_gamma
    from momentumnet.streams.blocks.block import ResidualStream
    from momentumnet.streams.finding.discover import find_streams

__version__ = "1.0.0"

log.name_the_package()

__all__ = [
    "CheckpointError",
    "ConversionError",
    "Dr2Net",
    "Dr2NetSchedule",
    "GammaSchedule",
    "MemoryReport",
    "MomentumNet",
    "MomentumNetError",
    "MomentumNetWarning",
    "OutputComparison",
    "PruningError",
    "ReconstructionError",
    "ResidualStream",
    "ReversibleSequential",
    "StateRangeError",
    "StepOrderError",
    "StorageError",
    "TrainingPlan",
    "check_replays",
    "compare_outputs",
    "convert",
    "describe",
    "find_streams",
    "init",
    "landscape",
    "largest_batch",
    "load_training_state",
    "measure_memory",
    "native",
    "optim",
    "plan",
    "prune",
    "revert",
    "schedule_dr2net",
    "schedule_gamma",
    "set_dr2net",
    "set_gamma",
    "set_range_check",
    "training_state",
    "transform_to_momentumnet",
]

_PACKAGES = ("hf", "init", "landscape", "lightning", "native", "optim", "prune")
_NAMES = {
    "comparison": ("OutputComparison", "compare_outputs"),
    "conversion.batch_size": ("largest_batch",),
    "conversion.conversion": ("convert",),
    "conversion.planning": ("plan",),
    "conversion.reversion": ("revert",),
    "core.checks.ledger": ("check_replays",),
    "core.rules.dr2net": ("Dr2Net",),
    "description.description": ("describe",),
    "errors": tuple(name for name in __all__ if name.endswith(("Error", "Warning"))),
    "memory": ("MemoryReport", "measure_memory"),
    "momentum_net": ("MomentumNet", "transform_to_momentumnet"),
    "planner.plans.training_plan": ("TrainingPlan",),
    "range_check": ("set_range_check",),
    "resume": ("load_training_state", "training_state"),
    "reversible_sequential": ("ReversibleSequential",),
    "schedules.dr2net_schedule": ("Dr2NetSchedule", "schedule_dr2net", "set_dr2net"),
    "schedules.gamma_schedule": ("GammaSchedule", "schedule_gamma"),
    "schedules.gamma_setting": ("set_gamma",),
    "streams.blocks.block": ("ResidualStream",),
    "streams.finding.discover": ("find_streams",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULE_OF:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
