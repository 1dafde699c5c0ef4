"""Training beside the optimizers of PyTorch."""

from momentumnet.optim.warmup import constant, warmup

__all__ = ["constant", "warmup"]
