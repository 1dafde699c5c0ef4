"""Which class a network's outputs name."""

from __future__ import annotations

from torch import Tensor

NONE = -1


def predicted(outputs: Tensor, dim: int = 1) -> Tensor:
    """The class of the largest output, int64; `NONE` where one of them is NaN, which ``argmax`` takes for the largest.

    Args:
        outputs: Logits or probabilities, with the classes along ``dim``.
        dim: The dimension of the classes.

    Example:
        >>> import torch
        >>> predicted(torch.tensor([[0.1, 0.9], [torch.nan, 0.0]]))
        tensor([ 1, -1])
    """
    return outputs.argmax(dim).masked_fill(outputs.isnan().any(dim), NONE)
