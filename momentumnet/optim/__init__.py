"""Training beside the optimizers of PyTorch."""

from momentumnet.optim.extragradient import Extragradient
from momentumnet.optim.sam import SAM

__all__ = ["SAM", "Extragradient"]
