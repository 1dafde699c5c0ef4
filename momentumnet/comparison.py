"""How far the outputs of one network are from another's, on data of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.predictions import NONE, predicted
from momentumnet.streams.blocks.nested import copied, floating
from momentumnet.streams.tracing.guard import eager_functions, fresh_dropout_outputs, left_as_found
from momentumnet.streams.tracing.trace import call_with_example, told_of_pairs

# Up to here two networks count as nearly the same: by their predictions where there are any, else by their outputs.
# Pretrained CIFAR-10 ResNets lose less than a point of accuracy up to there (docs/choosing-gamma.md).
NEARLY_AGREEING = 0.95
NEARLY_EQUAL = 0.1

_LOGITS = "logits"


@dataclass(frozen=True)
class OutputComparison:
    """What `compare_outputs` has measured; ``print`` shows it in one line.

    Attributes:
        difference: norm of the difference of the outputs over the norm of the outputs before, over all elements of all
            batches; 0 is no difference at all. NaN where outputs are not finite.
        agreeing: number of predictions that are the same class.
        predictions: number of predictions; 0 where the outputs are no logits.
        batches: number of batches.

    Example:
        >>> from momentumnet.comparison import OutputComparison
        >>> print(OutputComparison(difference=0.0042, agreeing=1996, predictions=2000, batches=20))
        nearly the same function: outputs differ by 0.42 %, 1996 of 2000 predictions agree (99.8 %), on 20 batches
    """

    difference: float
    agreeing: int
    predictions: int
    batches: int

    @property
    def agreement(self) -> float | None:
        """Share of the predictions that are the same class, 0 to 1; None where the outputs are no logits."""
        return self.agreeing / self.predictions if self.predictions else None

    @property
    def nearly_same(self) -> bool:
        """Whether at least 95 % of the predictions agree; without predictions, whether outputs differ by 10 % at most.

        Never where outputs are not finite.
        """
        if math.isnan(self.difference):
            return False
        if self.predictions:
            return self.agreeing >= NEARLY_AGREEING * self.predictions
        return self.difference <= NEARLY_EQUAL

    def __str__(self) -> str:
        same = "the same function" if self.difference == 0 else "nearly the same function"
        parts = [f"outputs differ by {_percent(self.difference)}"]
        if math.isnan(self.difference):
            parts = ["outputs are not finite"]
        if self.agreement is not None:
            agreement = _percent(self.agreement)
            parts.append(f"{self.agreeing} of {self.predictions} predictions agree ({agreement})")
        parts.append(f"on {self.batches} batch{'' if self.batches == 1 else 'es'}")
        return f"{same if self.nearly_same else 'another function'}: {', '.join(parts)}"


def compare_outputs(
    before: nn.Module, after: nn.Module, batches: Iterable[Any], *, class_dim: int | None = None
) -> OutputComparison:
    r"""How far the outputs of ``after`` are from those of ``before``, on batches of your own.

    .. math::
        \frac{\lVert \mathrm{after}(x) - \mathrm{before}(x) \rVert_2}{\lVert \mathrm{before}(x) \rVert_2}

    over all batches, and the share of predictions (the largest of the logits) that stay the same. A conversion of a
    pretrained network is worth fine-tuning where the two are *nearly* the same function; this measures it.

    Both networks run on each batch in eval mode, without gradients, from the same state of the random generators.
    Modes, attributes, buffers and generators are left as they are found, and the batches are not written to. The fused
    inference path of PyTorch's own transformer layers is not taken, so that both compute by the same operations.

    The outputs that count are ``logits`` where the networks return such a field, else every floating-point tensor of
    one dimension or more in the tuples, lists, dicts and dataclasses that they return. Predictions are those of the
    first.

    Args:
        before: the network to compare with, e.g. the stock one.
        after: e.g. what `convert` returned for it. After ``inplace=True`` compare with ``revert(after)``.
        batches: inputs, each as `convert` takes its example: a tensor, a tuple of positional arguments, or a dict of
            keyword arguments, on the device of the networks. Of a loader of pairs take
            ``(inputs for inputs, _ in loader)``.
        class_dim: the dimension of the classes. None: the last one of outputs called ``logits`` and of outputs of two
            dimensions, and the second one where logits have four or more (N, C, H, W); other outputs are no logits
            then.

    Returns:
        The comparison, see `OutputComparison`.

    Raises:
        TypeError: a network is no module, or ``batches`` is a single batch.
        ValueError: both are one and the same network, there is no batch, the networks return no floating-point tensor,
            or tensors of different shapes, or ``class_dim`` is no dimension of them.
        ConversionError: a batch is nothing that a network can be called with.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> x = torch.randn(2, 5, 16)
        >>> mn.compare_outputs(model, mn.convert(model, x, gamma=0), [x]).difference < 1e-5
        True
        >>> comparison = mn.compare_outputs(model, mn.convert(model, x), [x])
        >>> comparison.difference < 1 and comparison.agreement is None
        True
    """
    _check_models(before, after)
    measured = _Measured(class_dim)
    for batch in _checked(batches):
        first = _outputs(_run(before, batch, measured.batches, "before"), "before")
        second = _outputs(_run(after, batch, measured.batches, "after"), "after")
        measured.add(first, second)
    if not measured.batches:
        raise ValueError("there is no batch to compare on; batches is empty (an iterator that has been used up?)")
    return measured.result()


class _Measured:
    """Sums over the batches."""

    def __init__(self, class_dim: int | None) -> None:
        if class_dim is not None and (isinstance(class_dim, bool) or not isinstance(class_dim, int)):
            raise ValueError(f"class_dim must be a dimension, e.g. -1, or None, got {class_dim!r}")
        self.class_dim = class_dim
        self.batches = self.agreeing = self.predictions = 0
        self._difference = self._size = 0.0

    def add(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        _check_alike(before, after)
        self.batches += 1
        for name, first in before.items():
            difference, size = _squares(first, after[name].to(first.device))
            self._difference += difference
            self._size += size
        name, first = next(iter(before.items()))
        dimension = _class_dimension(name, first, self.class_dim)
        if dimension is not None:
            found = predicted(first, dimension)
            same = (found == predicted(after[name].to(first.device), dimension)) & (found != NONE)
            self.agreeing += int(same.sum())
            self.predictions += same.numel()

    def result(self) -> OutputComparison:
        difference = math.sqrt(self._difference)
        if self._size:
            difference /= math.sqrt(self._size)
        elif difference:
            difference = math.inf
        return OutputComparison(difference, self.agreeing, self.predictions, self.batches)


def _check_models(before: nn.Module, after: nn.Module) -> None:
    for name, model in (("before", before), ("after", after)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name} must be an nn.Module, got {type(model).__name__}")
    if before is after:
        raise ValueError(
            "before and after are one and the same network, which can only agree; after convert(..., inplace=True) "
            "compare with the original function: compare_outputs(momentumnet.revert(model), model, batches)"
        )


def _checked(batches: Iterable[Any]) -> Iterable[Any]:
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        kind = type(batches).__name__
        raise TypeError(f"batches must hold batches, e.g. a list of them, got one {kind}; for one batch pass [batch]")
    return batches


def _run(model: nn.Module, batch: Any, number: int, name: str) -> Any:
    told = told_of_pairs(
        batch, f"{name} cannot be called on batch {number}", "(inputs for inputs, _ in loader)", ValueError
    )
    found = left_as_found(model, batch)
    with torch.no_grad(), found, eager_functions(), fresh_dropout_outputs(), told:
        return call_with_example(model, copied(batch))


def _outputs(output: Any, name: str) -> dict[str, Tensor]:
    """The tensors that count, by where they stand in the output."""
    logits = output.get(_LOGITS) if isinstance(output, Mapping) else getattr(output, _LOGITS, None)
    if isinstance(logits, Tensor) and floating(logits):
        return {_LOGITS: logits}
    found = _floats(output, "")
    if not found:
        raise ValueError(f"{name} returns no floating-point tensor of one dimension or more: {type(output).__name__}")
    return found


def _floats(value: Any, name: str) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        dense = value.to_padded_tensor(0.0) if floating(value) and value.is_nested else value
        return {name: dense} if floating(dense) and dense.dim() else {}
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    elif is_dataclass(value):
        items = ((field.name, getattr(value, field.name)) for field in fields(value))
    found: dict[str, Tensor] = {}
    for key, item in items:
        found.update(_floats(item, f"{name}.{key}" if name else str(key)))
    return found


def _check_alike(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the networks return different outputs: before {shapes[0]}, after {shapes[1]}")


def _class_dimension(name: str, output: Tensor, class_dim: int | None) -> int | None:
    """Where the classes stand; None for outputs that are no logits."""
    if class_dim is None:
        if name != _LOGITS and output.dim() != 2:
            return None
        class_dim = 1 if output.dim() >= 4 else -1
        return class_dim if output.dim() >= 2 and output.shape[class_dim] > 1 else None
    if not -output.dim() <= class_dim < output.dim():
        raise ValueError(f"class_dim is {class_dim}, and the outputs have the shape {tuple(output.shape)}")
    return class_dim


def _squares(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Squared norms of the difference, and of ``before``. What is the same, also infinite, is no difference."""
    wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    before, after = before.to(wide), after.to(wide)
    same = before == after
    difference = (after - before).masked_fill(same, 0)
    size = before.masked_fill(same & before.isinf(), 0)
    return tuple(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in (difference, size))  # type: ignore[return-value]


def _percent(share: float) -> str:
    percent = 100 * share
    if 100 <= percent < math.inf:
        return f"{percent:.0f} %"
    return f"{percent:.4g} %" if percent > 90 else f"{percent:.2g} %"
