"""Train deep residual networks in memory that does not grow with depth."""

from momentumnet import native
from momentumnet.convert import convert, plan, revert, set_gamma
from momentumnet.errors import (
    CheckpointError,
    ConversionError,
    MomentumNetError,
    PruningError,
    ReconstructionError,
    StateRangeError,
    StepOrderError,
)
from momentumnet.memory import MemoryReport, measure_memory
from momentumnet.momentum_net import MomentumNet, transform_to_momentumnet
from momentumnet.streams.block import ResidualStream
from momentumnet.streams.discover import find_streams

__version__ = "1.0.0.dev0"

__all__ = [
    "CheckpointError",
    "ConversionError",
    "MemoryReport",
    "MomentumNet",
    "MomentumNetError",
    "PruningError",
    "ReconstructionError",
    "ResidualStream",
    "StateRangeError",
    "StepOrderError",
    "convert",
    "find_streams",
    "measure_memory",
    "native",
    "plan",
    "revert",
    "set_gamma",
    "transform_to_momentumnet",
]
