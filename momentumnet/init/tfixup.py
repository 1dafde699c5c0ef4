"""T-Fixup: transformers that train without layer normalisation and without warmup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from momentumnet.errors import ConversionError
from momentumnet.init.attempt import all_or_nothing
from momentumnet.init.attention import attention_of, is_causal, tables_of_values
from momentumnet.init.branches import Anatomy, BlockGraph, dissected
from momentumnet.init.matrices import biases_of, maps_of, zero_padding
from momentumnet.init.normalisation import is_normalisation, normalisations_in, remove_normalisations
from momentumnet.init.report import InitReport, norms_of, scales_between
from momentumnet.options import check_generator, check_is_whole, true_or_false
from momentumnet.streams.finding.select import Judge

_EMBEDDINGS = ("Embedding", "EmbeddingBag")
# Modules that many libraries call so interleave queries, keys and values head by head: no part of theirs is the values.
_INTERLEAVED = "query_key_value"


@dataclass
class _Layers:
    """Weights to be scaled, of the encoder or of the decoder, and how many layers that has."""

    self_attentions: int = 0
    cross_attentions: int = 0
    weights: dict[str, None] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return self.self_attentions or self.cross_attentions


@dataclass
class _Plan:
    """What T-Fixup does to which parameter, by name."""

    encoder: _Layers = field(default_factory=_Layers)
    decoder: _Layers = field(default_factory=_Layers)
    weights: dict[str, None] = field(default_factory=dict)
    embeddings: dict[str, None] = field(default_factory=dict)
    stacks: dict[str, int] = field(default_factory=dict)

    def factors(self) -> dict[str, float]:
        """What each weight is multiplied by; of stacked projections only the values are."""
        factors = dict.fromkeys(self.encoder.weights, _encoder_factor(self.encoder.depth))
        factors.update(dict.fromkeys(self.decoder.weights, _decoder_factor(self.decoder.depth)))
        depth = self.decoder.depth or self.encoder.depth
        factors.update(dict.fromkeys(self.embeddings, _decoder_factor(depth)))
        return factors


def _encoder_factor(depth: int) -> float:
    return 0.67 * max(depth, 1) ** (-1 / 4)


def _decoder_factor(depth: int) -> float:
    return (9 * max(depth, 1)) ** (-1 / 4)


def tfixup_(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    remove_normalization: bool = False,
    generator: torch.Generator | None = None,
) -> InitReport:
    r"""Initialise a transformer so that it trains without layer normalisation and without learning rate warmup.

    1. Weights are drawn by Xavier's method, U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), each of stacked query, key
       and value projections by itself; biases are zero. Embeddings are drawn from a Gaussian of deviation d^(-1/2).
    2. In the N layers of a decoder, the value and output projections of every attention and all feed-forward weights
       are multiplied by (9 N)^(-1/4); so are the embeddings, of the encoder too.
    3. In the N layers of an encoder, the same weights are multiplied by 0.67 N^(-1/4).

    With example inputs, branches and projections are read on the autograd graph of one traced forward pass: what a
    softmax or a fused attention weighs is a value, what comes after it in the branch an output projection, a branch
    without is feed-forward. A stream is a decoder where it attends to something beside itself, or where its first
    positions do not depend on later ones; otherwise an encoder. Without example inputs, the layers of
    ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer`` in the model are traced one by one. Stacked
    projections are taken to stand in the order queries, keys, values.

    N counts the self-attentions. Without a decoder, N of the embeddings is the encoder's. Every ``nn.Embedding`` counts
    as an embedding, learned positions and tied output layers included; positions that are added as a parameter,
    relative ones that only say how much an attention weighs what, class tokens and normalisation weights stay as they
    are.

    Args:
        model: a transformer, before or after `momentumnet.convert`; changed in place.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; run once. None for
            models made of PyTorch's own layers.
        remove_normalization: replace every normalisation layer by ``nn.Identity``, as the paper does.
        generator: draws the weights; PyTorch's default one where None.

    Returns:
        The report: for each parameter, its norm after over its norm before; depths and what was removed as notes.

    Raises:
        ConversionError: no transformer layer was found, or the projections of one cannot be told apart (the message
            names it). The model is as it was.
        ValueError: an option has a value that it does not take.

    Example:
        >>> from torch import nn
        >>> from momentumnet.init import tfixup_
        >>> model = nn.Transformer(32, 4, 6, 6, 64, batch_first=True)
        >>> report = tfixup_(model, remove_normalization=True)
        >>> report.notes[0]
        'encoder of 6 layers, x 0.4281; decoder of 6 layers, x 0.3689'

    References:
        Huang, Perez, Ba, Volkovs: Improving Transformer Optimization Through Better Initialization, ICML 2020, PMLR
        119, the three rules of "T-Fixup".
    """
    true_or_false(remove_normalization=remove_normalization)
    check_generator(generator)
    check_is_whole(model)
    with all_or_nothing(model):
        before = norms_of(model)
        plan = _plan_of_layers(model) if example_inputs is None else _plan_of_model(model, example_inputs)
        present = normalisations_in(model)
        removed = remove_normalisations(model) if remove_normalization else []
        notes = list(_notes(plan, present, removed))
        frozen = _apply(model, plan, generator)
    if frozen:
        notes.append(f"frozen, left as they are: {', '.join(frozen)}")
    return InitReport("tfixup", scales_between(before, norms_of(model)), notes=tuple(notes))


def _plan_of_model(model: nn.Module, example_inputs: Any) -> _Plan:
    plan = _Plan()
    with dissected(model, example_inputs) as anatomy:
        if not anatomy.blocks:
            raise ConversionError(_nothing_found(model, anatomy.looked_at))
        tables = [p for p, how in anatomy.graph.lookups.items() if how in _EMBEDDINGS]
        passed_on = tables_of_values(anatomy.graph)
        plan.embeddings = {anatomy.names[table]: None for table in tables if table in passed_on}
        plan.weights = {name: None for name in anatomy.weights() if name not in plan.embeddings}
        blocks = {block.call: block for block in anatomy.blocks}
        for run in Judge().runs(blocks):
            _read(plan, anatomy, [blocks[call] for call in run], "")
    if not plan.encoder.depth + plan.decoder.depth:
        raise ConversionError(_nothing_found(model, [f"{call.name}: no attention in its branches" for call in blocks]))
    return plan


def _plan_of_layers(model: nn.Module) -> _Plan:
    plan = _Plan()
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer))
    ]
    if not layers:
        raise ConversionError(
            f"{type(model).__name__} holds no nn.TransformerEncoderLayer or nn.TransformerDecoderLayer; pass "
            "example_inputs, so that its layers can be found by a traced forward pass"
        )
    for name, layer in layers:
        parameter = layer.linear1.weight
        stream = torch.zeros(1, 2, parameter.shape[1], dtype=parameter.dtype, device=parameter.device)
        example = (stream, stream) if isinstance(layer, nn.TransformerDecoderLayer) else (stream,)
        with dissected(layer, example) as anatomy:
            _read(plan, anatomy, anatomy.blocks, f"{name}." if name else "")
    for name, module in model.named_modules():
        own = {f"{name}.{key}" if name else key: p for key, p in module._parameters.items() if p is not None}
        matrices = {key: None for key, parameter in own.items() if parameter.dim() > 1}
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            plan.embeddings.update(matrices)
        elif name and not is_normalisation(module):
            plan.weights.update(matrices)
    for name in plan.embeddings:
        plan.weights.pop(name, None)
    return plan


def _read(plan: _Plan, anatomy: Anatomy, run: list[BlockGraph], prefix: str) -> None:
    """Take up one stream: as the encoder's or the decoder's, whichever it is."""
    branches = [(block, join, attention_of(block, join)) for block in run for join in block.joins]
    attending = [(block, attention) for block, _, attention in branches if attention is not None]
    decodes = any(attention.cross for _, attention in attending) or any(is_causal(block) for block, _ in attending[:1])
    layers = plan.decoder if decodes else plan.encoder
    for block, join, attention in branches:
        if attention is None:
            scaled = anatomy.names_of(block.graph, join.layers)
        else:
            layers.self_attentions += not attention.cross
            layers.cross_attentions += attention.cross
            values = anatomy.names_of(block.graph, attention.values)
            outputs = anatomy.names_of(block.graph, attention.outputs)
            stacks = {anatomy.names[weight]: count for weight, count in attention.stacks.items()}
            _check(anatomy, prefix + block.call.name, values, outputs, stacks)
            plan.stacks.update((prefix + name, count) for name, count in stacks.items())
            scaled = (*values, *outputs)
        layers.weights.update(dict.fromkeys(prefix + name for name in scaled))


def _check(
    anatomy: Anatomy, block: str, values: tuple[str, ...], outputs: tuple[str, ...], stacks: dict[str, int]
) -> None:
    if not values or not outputs:
        missing = "value" if not values else "output"
        raise ConversionError(
            f"block {block!r} attends, but no weight layer is its {missing} projection; T-Fixup scales both. Values: "
            f"{', '.join(values) or 'none'}; outputs: {', '.join(outputs) or 'none'}"
        )
    weights = anatomy.weights()
    widths = {size for name in outputs for size in weights[name].shape}
    for name, count in stacks.items():
        if _INTERLEAVED in name or max(weights[name].shape) not in {count * width for width in widths}:
            raise ConversionError(
                f"block {block!r} stacks its projections in {name} of shape {tuple(weights[name].shape)}: they are "
                f"not {count} of one size, one after the other, so the values cannot be told from the rest; use "
                "separate projections"
            )


@torch.no_grad()
def _apply(model: nn.Module, plan: _Plan, generator: torch.Generator | None) -> list[str]:
    """Draw and scale; returns the names of frozen parameters, which stay as they are."""
    factors, frozen = plan.factors(), []
    for name, parameter in model.named_parameters():
        if name not in plan.weights and name not in plan.embeddings:
            continue
        if not parameter.requires_grad:
            frozen.append(name)
        elif name in plan.embeddings:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator).mul_(factors[name])
            zero_padding(model, [parameter])
        else:
            owner, _, own = name.rpartition(".")
            matrices = maps_of(model.get_submodule(owner), own, parameter, stacked=plan.stacks.get(name, 1))
            for matrix in matrices:
                nn.init.xavier_uniform_(matrix, generator=generator)
            for matrix in matrices[-1:] if name in plan.stacks else matrices:
                matrix.mul_(factors.get(name, 1.0))
            for bias in biases_of(model, name):
                bias.zero_()
    return frozen


def _notes(plan: _Plan, present: list[str], removed: list[str]) -> Iterator[str]:
    parts = []
    if plan.encoder.depth:
        parts.append(f"encoder of {plan.encoder.depth} layers, x {_encoder_factor(plan.encoder.depth):.4g}")
    if plan.decoder.depth:
        parts.append(f"decoder of {plan.decoder.depth} layers, x {_decoder_factor(plan.decoder.depth):.4g}")
    yield "; ".join(parts)
    if removed:
        yield f"{len(removed)} normalisation layers removed: {', '.join(removed)}"
    elif present:
        yield f"{len(present)} normalisation layers left in; remove_normalization=True takes them out, as in the paper"


def _nothing_found(model: nn.Module, looked_at: list[str]) -> str:
    looked = "\n".join(f"  - {line}" for line in looked_at[:20])
    return (
        f"no transformer layer found in {type(model).__name__}. One is a residual block with a branch in which "
        "values are weighed by a softmax. "
        + (f"Looked at:\n{looked}" if looked else "No module adds its input to a branch.")
    )
