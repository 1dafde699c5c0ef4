"""The rules by which a model's streams move, as plain data: what schedules have made of them since the conversion."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet import couplings
from momentumnet.core.passes.coupled_stream import CoupledStream
from momentumnet.description import model_config
from momentumnet.description.description import rule_of
from momentumnet.streams.blocks.converted import named_streams

Rules = dict[str, dict[str, Any]]


def rules_of(model: nn.Module) -> Rules:
    """Gamma or coupling of each stream, by the names of `named_streams`."""
    return {name: rule_of(stream) for name, stream in named_streams(model).items()}


def set_rules(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the streams of a model, converted alike, what `rules_of` has told."""
    for name, stream in named_streams(model).items():
        if isinstance(stream, CoupledStream):
            stream.set_rule(couplings.from_description(rules[name]["coupling"]))
        elif stream.has_gamma:
            stream.set_gamma(Fraction(rules[name]["gamma"]))
    model_config.renew(model)
