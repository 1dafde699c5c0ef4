"""Train deep residual networks in memory that does not grow with depth."""

from momentumnet.errors import ConversionError, MomentumNetError, ReconstructionError, StateRangeError
from momentumnet.momentum_net import MomentumNet

__version__ = "1.0.0.dev0"

__all__ = ["ConversionError", "MomentumNet", "MomentumNetError", "ReconstructionError", "StateRangeError"]
