"""The bytes of a network's parameters, and whether they have changed since its step was planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from momentumnet.core.passes.collectives import processes
from momentumnet.memory import format_bytes


def parameter_bytes_of(parameters: Iterable[nn.Parameter]) -> int:
    """Their bytes, those of every process; lazy ones have none before their first forward."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters if not is_lazy(parameter))


def trained_in(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that take a gradient."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def differs(kind: str, size: int, planned: int) -> str:
    """In words, that there are so many bytes of a kind, and not those planned."""
    return f"it has {told_apart(size, planned)} of {kind}, not the {told_apart(planned, size)} planned"


def told_apart(size: int, other: int | None) -> str:
    """Bytes, to the last one where rounded they are the same as others."""
    same = other is not None and format_bytes(other) == format_bytes(size)
    return to_the_byte(size) if same else format_bytes(size)


def to_the_byte(size: int) -> str:
    """Bytes as a budget that is no less than they are."""
    return f"{format_bytes(size)} ({size} bytes)"


class WatchedParameters:
    """The parameters of a model that follows a plan; those of several processes may be in parts, and are not watched.

    To walk over all of them takes time: they are looked at in the first call, the second, the fourth and so on.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._whole: int | None = None
        self._trained = 0

    def look(self, model: nn.Module) -> None:
        """Take the parameters as they are."""
        if not any(map(is_lazy, model.parameters())):
            self._whole, self._trained = _sizes(model)

    def changes(self, model: nn.Module) -> list[str]:
        """In words, of which the step takes other bytes: of another type, more or fewer, or more that are trained.

        Fewer that are trained are not told of: a network may be frozen for some steps, as those of a GAN are in turn.
        """
        self._calls += 1
        if self._whole is None or self._calls & (self._calls - 1) or processes() > 1:
            return []
        before, (whole, trained) = (self._whole, self._trained), _sizes(model)
        self._whole, self._trained = whole, max(trained, self._trained)
        if whole != before[0]:
            self._trained = trained
            return [differs("parameters", whole, before[0])]
        return [differs("parameters that take a gradient", trained, before[1])] if trained > before[1] else []


def _sizes(model: nn.Module) -> tuple[int, int]:
    return parameter_bytes_of(model.parameters()), parameter_bytes_of(trained_in(model))
