"""Training beside the optimizers of PyTorch."""

from momentumnet.optim.extragradient import Extragradient
from momentumnet.optim.sam import SAM
from momentumnet.optim.warmup import constant, warmup

__all__ = ["SAM", "Extragradient", "constant", "warmup"]
