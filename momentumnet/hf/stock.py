"""What the stock class computes with the weights of a converted model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.conversion.reversion import revert
from momentumnet.core.passes.coupled_stream import CoupledStream
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.description.model_config import base_of
from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.converted import named_streams


@dataclass(frozen=True)
class StockReport:
    """What a stock class computes with the weights of a converted model.

    Attributes:
        gammas: of each stream, by the name of its first block.
        difference: how far the stock class's first output lies from the converted model's, relative to its norm; None
            if no example was given.

    Example:
        >>> print(StockReport({"layers": 0.125}, difference=0.02))
        the stock class computes another function: gamma is 0.125, and it takes it for 0; on the example its output ...
    """

    gammas: Mapping[str, float]
    difference: float | None = None

    @property
    def same(self) -> bool:
        """Whether the stock class computes the same function: gamma is 0 everywhere."""
        return not any(self.gammas.values())

    def __str__(self) -> str:
        if self.same:
            return "the stock class computes the same function: gamma is 0"
        gammas = ", ".join(f"{gamma:g}" for gamma in sorted(set(self.gammas.values())))
        measured = "" if self.difference is None else f"; on the example its output differs by {self.difference:.2g}"
        return (
            f"the stock class computes another function: gamma is {gammas}, and it takes it for 0{measured}. "
            "Load the checkpoint by momentumnet.hf.from_pretrained, or end fine-tuning at gamma 0 "
            "(momentumnet.hf.GammaCallback)"
        )


def export(model: nn.Module, example_inputs: Any = None) -> StockReport:
    """Say what a stock class will compute with this model's weights, in any library that loads the checkpoint.

    Args:
        model: a converted model of transformers, or one of peft around it. It is left as it is; save what a stock class
            loads by ``momentumnet.revert(model).save_pretrained(folder)``.
        example_inputs: a dict of keyword arguments, to measure the difference on: both networks run in eval mode.

    Raises:
        ConversionError: the model holds no stream; or the example is no dict.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3))
        >>> batch = {"input_ids": torch.randint(32, (2, 8))}
        >>> report = mn.hf.export(mn.convert(model, batch), batch)
        >>> report.same, report.difference < 1
        (False, True)
    """
    base = base_of(model)
    streams = named_streams(base)
    if not streams:
        raise ConversionError("the model holds no momentum stream: its class computes what it always did")
    gammas = {name: _gamma_of(name, stream) for name, stream in streams.items()}
    if example_inputs is None:
        return StockReport(gammas)
    if not isinstance(example_inputs, Mapping):
        kind = type(example_inputs).__name__
        raise ConversionError(f"example_inputs must be a dict of keyword arguments, got {kind}")
    ours, stock = _first_output(model, example_inputs), _first_output(revert(model), example_inputs)
    return StockReport(gammas, float((stock - ours).norm() / ours.norm()))


def _gamma_of(name: str, stream: MomentumStream) -> float:
    """That of a stream; 0 where it computes the residual network in eval mode."""
    if stream.has_gamma:
        return float(stream.gamma)
    if isinstance(stream, CoupledStream) and stream.rule.is_residual_in_eval:
        return 0.0
    raise ConversionError(
        f"stream {name!r} moves by another coupling than momentum, without a gamma that could be 0: compare the "
        "outputs by momentumnet.compare_outputs, and save the model with its config"
    )


def _first_output(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    was_training = model.training
    with torch.no_grad():
        output = model.eval()(**inputs)
    model.train(was_training)
    floats = [leaf for leaf in pytree.tree_leaves(_plain(output)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    return floats[0].double()


def _plain(output: Any) -> Any:
    return dict(output) if isinstance(output, Mapping) else output
