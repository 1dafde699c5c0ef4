"""Fixup: residual networks without normalisation that start as the identity and change at the rate of one block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from momentumnet.errors import ConversionError
from momentumnet.init.attempt import all_or_nothing
from momentumnet.init.attention import stacked_in
from momentumnet.init.branches import Anatomy, dissected
from momentumnet.init.matrices import biases_of, maps_of
from momentumnet.init.normalisation import normalisations_in, remove_normalisations
from momentumnet.init.placement import Placement, place_scalars
from momentumnet.init.report import InitReport, norms_of, scales_between
from momentumnet.init.scalars import add_scalar
from momentumnet.listing import listed
from momentumnet.options import check_generator, check_is_whole, one_of, true_or_false

Mode = Literal["fan_in", "fan_out"]
MODES: tuple[Mode, ...] = ("fan_in", "fan_out")


def fixup_(
    model: nn.Module,
    example_inputs: Any,
    *,
    remove_normalization: bool = False,
    mode: Mode = "fan_out",
    generator: torch.Generator | None = None,
) -> InitReport:
    r"""Initialise a residual network so that it trains without normalisation layers.

    With L the number of residual branches of the network, those of downsampling blocks included, and m the number of
    weight layers on the longest way through a branch:

    1. the classifier (the last layer of the network) and the last layer of each branch are zero;
    2. all other layers are drawn by He's method, N(0, 2 / fan); those inside a branch are multiplied by
       L^(-1/(2m-2)); a branch with one layer has none inside;
    3. each branch gets a scalar multiplier, 1 at the start, and a scalar bias, 0 at the start, stands before each
       convolution, linear layer and element-wise activation.

    Biases of the layers become zero. Blocks, branches, their layers and the layers' order are read on the autograd
    graph of one traced forward pass: no layer type, class or name is known in advance. A shortcut by a projection is no
    branch: its layer is drawn by He's method. A transformer layer has two branches, three in a decoder.

    The scalars are parameters ``fixup_input_bias``, ``fixup_multiplier`` and ``fixup_output_bias`` of shape (1,) of the
    layers that they stand beside. A bias before an activation is the ``fixup_output_bias`` of the layer that feeds it,
    so it also reaches activations that are functions, or modules called in several places. Existing names stay.
    Embeddings, also those that are the classifier's weight too, positions and other parameters that no product or
    convolution uses stay as they are.

    Args:
        model: a residual network, before or after `momentumnet.convert`; changed in place.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; run once.
        remove_normalization: replace every normalisation layer by ``nn.Identity``. Fixup is for networks without: a
            zero layer under a BatchNorm has a gradient of 1/sqrt(eps) times its usual size.
        mode: "fan_out" (as the authors' program) or "fan_in": which fan He's method divides by.
        generator: draws the weights; PyTorch's default one where None.

    Returns:
        The report: for each parameter, its norm after over its norm before; what was removed or left alone as notes.

    Raises:
        ConversionError: no residual block was found, the message says what was looked at; or a weight is computed from
            parameters (weight normalisation). The model is as it was.
        ValueError: the model holds normalisation layers and ``remove_normalization`` is False, or an option has a value
            that it does not take.

    Example:
        >>> import torch, torchvision
        >>> from momentumnet.init import fixup_
        >>> model = torchvision.models.resnet18()
        >>> report = fixup_(model, torch.zeros(1, 3, 64, 64), remove_normalization=True)
        >>> model(torch.randn(2, 3, 64, 64)).abs().max().item()
        0.0

    References:
        Zhang, Dauphin, Ma: Fixup Initialization: Residual Learning Without Normalization, ICLR 2019, arXiv 1901.09321,
        section 3, "Fixup initialization".
    """
    one_of("mode", mode, MODES)
    true_or_false(remove_normalization=remove_normalization)
    check_generator(generator)
    check_is_whole(model)
    present = normalisations_in(model)
    if present and not remove_normalization:
        raise ValueError(
            f"{type(model).__name__} has {len(present)} normalisation layers ({listed(present)}); Fixup is for "
            "networks without: pass remove_normalization=True to take them out"
        )
    with all_or_nothing(model):
        before = norms_of(model)
        removed = remove_normalisations(model)
        with dissected(model, example_inputs) as anatomy:
            if not anatomy.blocks:
                raise ConversionError(_nothing_found(model, anatomy))
            factors = dict(_factors(anatomy))
            stacks = {anatomy.names[weight]: count for weight, count in stacked_in(anatomy.blocks).items()}
            placement = place_scalars(anatomy)
            notes = [*_notes(anatomy, removed), *placement.notes]
            looked_up = anatomy.graph.lookups
            weights = {name: weight for name, weight in anatomy.weights().items() if weight not in looked_up}
        trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        for name, weight in trained.items():
            owner, _, own = name.rpartition(".")
            for matrix in maps_of(model.get_submodule(owner), own, weight, stacked=stacks.get(name, 1)):
                _draw(matrix, factors.get(name, 1.0), mode, generator)
            for bias in biases_of(model, name):
                bias.zero_()
        _add_scalars(model, placement)
        frozen = [name for name in weights if name not in trained]
    if frozen:
        notes.append(f"frozen, left as they are: {', '.join(frozen)}")
    return InitReport("fixup", scales_between(before, norms_of(model)), notes=tuple(notes))


def _factors(anatomy: Anatomy) -> Iterator[tuple[str, float]]:
    """For each weight that is not drawn by He's method alone, what the draw is multiplied by."""
    branches = [(block, join) for block in anatomy.blocks for join in block.joins]
    inner: dict[str, float] = {}
    for block, join in branches:
        for name in anatomy.names_of(block.graph, join.inner(block.table)):
            inner[name] = len(branches) ** (-1 / (2 * join.depth - 2))
    yield from inner.items()
    for block, join in branches:
        for name in anatomy.names_of(block.graph, join.last):
            if name not in inner:  # shared by branches that use it in two places
                yield name, 0.0
    for name in anatomy.names_of(anatomy.graph, anatomy.final_layers()):
        if name not in inner:
            yield name, 0.0


def _draw(matrix: torch.Tensor, factor: float, mode: Mode, generator: torch.Generator | None) -> None:
    if factor:
        nn.init.kaiming_normal_(matrix, mode=mode, nonlinearity="relu", generator=generator).mul_(factor)
    else:
        matrix.zero_()


def _add_scalars(model: nn.Module, placement: Placement) -> None:
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    for module, scalar in placement.scalars:
        target = model.get_submodule(module)
        add_scalar(target, scalar, next((p for p in target.parameters() if p.is_floating_point()), like))


def _notes(anatomy: Anatomy, removed: list[str]) -> Iterator[str]:
    branches = [join for block in anatomy.blocks for join in block.joins]
    depths = ", ".join(map(str, sorted({join.depth for join in branches})))
    yield f"{len(branches)} residual branches in {len(anatomy.blocks)} blocks, of {depths} weight layers"
    if removed:
        yield f"{len(removed)} normalisation layers removed: {', '.join(removed)}"
    final = anatomy.names_of(anatomy.graph, anatomy.final_layers())
    looked_up = {anatomy.names[parameter] for parameter in anatomy.graph.lookups}
    if not final:
        yield "no classifier: the network ends in a residual sum"
    for name in looked_up.intersection(final):
        yield f"the classifier's weight {name} is an embedding too, so it stays as it is"


def _nothing_found(model: nn.Module, anatomy: Anatomy) -> str:
    looked = "\n".join(f"  - {line}" for line in anatomy.looked_at[:20])
    return (
        f"no residual block found in {type(model).__name__}, so Fixup has no branch to scale. A residual block is a "
        "module that adds its input, or a projection of it, to the output of a branch with weight layers.\n"
        + (f"Looked at:\n{looked}" if looked else "No module with children maps a tensor to one of its own shape.")
    )
