"""Parameters that are moved for one pass and put back bit for bit: their values are kept, for w + e - e is not w."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from momentumnet.loss.derivatives import as_real
from momentumnet.parameter_parts import is_dtensor, is_flattened


class Displacement:
    """The parameters of one group, device and dtype that have a gradient, as lists for ``torch._foreach_*``.

    A parameter with a sparse gradient stands in the lists with the rows that its gradient names, and nothing else of it
    is copied. Complex tensors stand as pairs of real numbers.

    Attributes:
        group: The parameter group, with its options.
        points: What is moved, in place.
        origins: What the points were, once `keep` has been called: the one copy that a perturbed step costs.
        gradients: One for each point, of its shape.
        flattened: Whether it is the part that this process holds of a `FullyShardedDataParallel`'s, for each point.
    """

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self.points: list[Tensor] = []
        self.origins: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.flattened: list[bool] = []
        self._rows: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []

    def add(self, parameter: Tensor) -> None:
        """Take in a parameter that has a gradient."""
        point, gradient = parameter.detach(), parameter.grad
        if gradient is None:
            raise ValueError("a parameter without a gradient has nowhere to move")
        gradient = gradient.detach()
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, whole = tuple(gradient.indices()), point
            point, gradient = whole[rows], gradient.values()
            self._rows.append((whole, rows, point))
        self.points.append(as_real(point))
        self.gradients.append(as_real(gradient))
        self.flattened.append(is_flattened(parameter))

    def keep(self) -> None:
        """Copy the points, so that they can be written to and put back."""
        self.origins = [point.clone() for point in self.points]

    def write(self) -> None:
        """Bring points that are rows into their parameters; the other points are the parameters' own memory."""
        for whole, rows, point in self._rows:
            whole[rows] = point

    def reset(self) -> None:
        """Make every point its origin."""
        if any(map(is_dtensor, self.points)):
            for point, origin in zip(self.points, self.origins, strict=True):
                point.copy_(origin)  # torch has no _foreach_copy_ of sharded tensors
        else:
            torch._foreach_copy_(self.points, self.origins)

    def put_back(self) -> None:
        """Make every parameter what it was."""
        self.reset()
        self.write()


def displacements(group: dict[str, Any], parameters: Iterable[Tensor]) -> list[Displacement]:
    """Those of the parameters that have a gradient, one `Displacement` for each device and dtype."""
    found: dict[tuple[torch.device, torch.dtype], Displacement] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            key = (parameter.device, parameter.dtype)
            found.setdefault(key, Displacement(group)).add(parameter)
    return list(found.values())


def norms_of(tensors: list[Tensor]) -> Sequence[Tensor]:
    """The 2-norm of each of the tensors, which are of one device and dtype; of half precision in float32."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)  # squares of half precision soon overflow
    if tensors[0].dtype == wide:
        return torch._foreach_norm(tensors)
    if any(map(is_dtensor, tensors)):  # which know no dtype here
        return [torch.linalg.vector_norm(tensor.to(wide)) for tensor in tensors]
    return torch._foreach_norm(tensors, 2, dtype=wide)


def total_norm(norms: Sequence[Tensor]) -> float:
    """The 2-norm of all, 0 of none. Read back from the device."""
    if not norms:
        return 0.0
    device, dtype = norms[0].device, functools.reduce(torch.promote_types, (norm.dtype for norm in norms))
    total = torch.linalg.vector_norm(torch.stack([norm.to(device, dtype) for norm in norms]))
    return float(total.full_tensor() if is_dtensor(total) else total)  # over all processes
