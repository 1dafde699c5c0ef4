"""Whether the compiled kernels do the work, or plain PyTorch operations: the same bits either way.

MOMENTUMNET_NATIVE=0 in the environment turns the kernels off; ``momentumnet doctor`` shows all about them.
"""

from __future__ import annotations

import torch

from momentumnet.arithmetic.compiled import libraries

__all__ = ["available", "reason"]


def available(device: str | torch.device = "cpu") -> bool:
    """Whether native kernels are there for tensors on ``device``, a CPU or CUDA device.

    Example:
        >>> import momentumnet as mn
        >>> mn.native.available() or mn.native.reason() != ""
        True
    """
    return not reason(device)


def reason(device: str | torch.device = "cpu") -> str:
    """Why there are no native kernels for tensors on ``device``, and what helps; empty where there are.

    "cuda" without a number asks for any GPU, "cuda:0" for that one.

    Example:
        >>> import momentumnet as mn
        >>> mn.native.reason("meta")
        "there are kernels for CPU and CUDA tensors, none for 'meta'"
    """
    return libraries.of(torch.device(device)).reason
