"""What an initialisation did: the scale of each parameter, and the course of its objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from momentumnet.figures import new_figure
from momentumnet.loss.derivatives import as_real


@dataclass(frozen=True)
class InitReport:
    """The result of an initialisation; ``print(report)`` shows a table, ``report.plot(path)`` draws it.

    Attributes:
        method: Name of the method.
        scales: By parameter name, the norm after the initialisation over the norm before; 0 for a parameter that was
            set to zero, infinity for one that was zero before.
        losses: The method's objective, one value a step; empty for a method without steps.
        gradient_norms: The norm of the gradient that the method looks at, one value a step.
        notes: Further lines for the table, such as modules that were removed.

    Example:
        >>> print(InitReport("example", {"weight": 0.5}))
        example: 1 parameter changed
          weight  x 0.5
    """

    method: str
    scales: Mapping[str, float]
    losses: tuple[float, ...] = ()
    gradient_norms: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        changed = {name: scale for name, scale in self.scales.items() if scale != 1}
        lines = [f"{self.method}: {len(changed)} parameter{'' if len(changed) == 1 else 's'} changed"]
        if self.losses:
            lines.append(f"  objective {self.losses[0]:.4g} -> {self.losses[-1]:.4g} in {len(self.losses)} steps")
        if self.gradient_norms:
            lines.append(f"  gradient norm {self.gradient_norms[0]:.4g} -> {self.gradient_norms[-1]:.4g}")
        lines += [f"  {note}" for note in self.notes]
        width = max(map(len, changed), default=0)
        lines += [f"  {name:<{width}}  x {scale:.4g}" for name, scale in changed.items()]
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw the scales, and the objective and gradient norm by step where there are any, to an image file.

        Args:
            path: Where to write; the ending chooses the format, as in ``matplotlib.pyplot.savefig``.

        Raises:
            ImportError: matplotlib is not installed (``pip install momentumnet[cli]``).
        """
        courses = {"objective": self.losses, "gradient norm": self.gradient_norms}
        courses = {name: values for name, values in courses.items() if values}
        figure = new_figure("report.plot", 5 * (1 + len(courses)), 4)
        axes = figure.subplots(1, 1 + len(courses), squeeze=False)[0]
        axes[0].plot(list(self.scales.values()), marker=".", linestyle="none")
        axes[0].set(title=f"{self.method}: scale by parameter", xlabel="parameter, in order", ylabel="scale")
        for axis, (name, values) in zip(axes[1:], courses.items(), strict=True):
            axis.plot(values)
            axis.set(title=name, xlabel="step")
        figure.savefig(path)


def norms_of(model: nn.Module) -> dict[str, Tensor]:
    """The norm of each parameter by name, on its device."""
    return {name: norm_of(parameter) for name, parameter in model.named_parameters()}


def norm_of(parameter: Tensor) -> Tensor:
    """The norm, of half precision and of integers in float32."""
    value = as_real(parameter.detach())
    return torch.linalg.vector_norm(value.to(torch.promote_types(value.dtype, torch.float32)))


def scales_between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """``after / before`` for each parameter that both have; 1 where both are zero."""
    return {name: _ratio(float(norm), float(after[name])) for name, norm in before.items() if name in after}


def _ratio(before: float, after: float) -> float:
    if before == after:
        return 1.0
    return after / before if before else math.inf
