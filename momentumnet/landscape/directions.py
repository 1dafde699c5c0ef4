"""Directions away from the parameters, given by the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from momentumnet.listing import listed
from momentumnet.options import check_generator, true_or_false

Direction = Mapping[str, Tensor]


def filter_normalised_direction(
    model: nn.Module, *, vectors: bool = False, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    r"""A random direction in which each filter is as long as the model's own filter.

    .. math::
        d_{i,j} \leftarrow \frac{d_{i,j}}{\lVert d_{i,j} \rVert} \lVert w_{i,j} \rVert

    (Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, section 4) with d Gaussian, i the layer
    and j the filter: an index into the first dimension of a weight, so a filter of a convolution or a neuron of a
    linear layer. A step along d then changes every filter by the same share of its norm, and networks that differ by
    the scale of their filters alone (as normalisation lets them) show the same picture.

    Args:
        model: Its trainable parameters are looked at, and not changed.
        vectors: Biases, normalisation weights and all else with fewer than two dimensions move as well, each entry as a
            filter of its own: by plus or minus its value. By default they stand still, as in the paper's plots.
        generator: Draws d; by default one with seed 0. Two directions of a plane take one generator.

    Returns:
        A tensor for each trainable parameter by its name, each parameter once.

    Raises:
        ValueError: No parameter is trainable, or ``vectors`` is neither True nor False.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> direction = filter_normalised_direction(model)
        >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
        True
        >>> direction["bias"].tolist()
        [0.0, 0.0]
    """
    true_or_false(vectors=vectors)
    generator = seeded(generator)
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad=True, so no direction to go")
    return {
        name: _scaled(weight, generator) if weight.dim() > 1 or vectors else torch.zeros_like(weight)
        for name, weight in trainable.items()
    }


def _scaled(weight: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(weight.shape, generator=generator, device=generator.device).to(weight)
    filters = (len(weight), -1) if weight.dim() else (1, 1)
    own, norms = drawn.reshape(filters), torch.linalg.vector_norm(weight.reshape(filters), dim=1, keepdim=True)
    return (own / torch.linalg.vector_norm(own, dim=1, keepdim=True) * norms).reshape(weight.shape)


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or a new one with seed 0: results can be repeated, and the global generator stays where it is."""
    check_generator(generator)
    return torch.Generator().manual_seed(0) if generator is None else generator


def parts_of(direction: Direction, names: Sequence[str], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The direction's part for each of the parameters; those that it does not name stay where they are.

    Raises:
        ValueError: a name is not that of a trainable parameter, or a shape is not the parameter's.
    """
    unknown = sorted(direction.keys() - set(names))
    if unknown:
        raise ValueError(
            f"the direction names {listed(unknown)}, which the model "
            "has not as trainable parameters; use names of model.named_parameters()"
        )
    parts = [direction.get(name, torch.zeros_like(p)) for name, p in zip(names, parameters, strict=True)]
    for name, part, parameter in zip(names, parts, parameters, strict=True):
        if part.shape != parameter.shape:
            raise ValueError(
                f"direction[{name!r}] has shape {tuple(part.shape)}, the parameter {tuple(parameter.shape)}"
            )
    return parts
