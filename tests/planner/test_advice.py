"""A budget that is too small: what the error says is computed, and is what one finds when following it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import momentumnet as mn
from momentumnet.planner.advice import fullest_moment
from momentumnet.planner.fit import measured_step
from momentumnet.planner.machine.budget import MARGIN, bytes_of
from momentumnet.planner.profiles.flow import Flow
from momentumnet.planner.searching.moments import peak_of
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.rescaled import rescaled
from momentumnet.planner.searching.search import least
from momentumnet.planner.searching.simulate import simulated
from tests.models import Chain, ResidualMLP
from tests.planner.networks import encoder, tokens
from tests.planner.searching.profiles import all_choices, random_profile


def said(model: nn.Module, x: Tensor, budget: int, **options: object) -> str:
    with pytest.raises(mn.ConversionError, match="no choice fits") as caught:
        mn.plan(model, x, budget=budget, **options)  # type: ignore[call-overload]
    return str(caught.value)


def figure(message: str, pattern: str) -> int:
    """The bytes that stand where the pattern has a group."""
    found = re.search(pattern, message)
    assert found is not None, message
    size = bytes_of(found[1])
    assert size is not None
    return size


@pytest.mark.parametrize("seed", range(4))
def test_the_parts_make_up_the_peak(seed: int) -> None:
    profile = random_profile(seed, 1)
    outside = max(profile.sizes) + 1  # kept by code in front of the first unit
    places = 2 * len(profile.units) + 1
    profile = dataclasses.replace(
        profile,
        glue=((0, frozenset({outside})), *profile.glue),
        sizes={**profile.sizes, outside: 50},
        flow=Flow(
            waiting=(3,) * places, work=(40,) * places, parameters=(2,) * places, left=(2,) * places, sums=(0,) * places
        ),
    )
    for choices in list(all_choices(profile))[:200]:
        fullest = fullest_moment(profile, choices)
        parts = (fullest.gradients, fullest.kept, fullest.states, fullest.working)
        assert min(parts) >= 0
        assert sum(parts) == fullest.moment.bytes == peak_of(simulated(profile, choices)).bytes


def test_the_least_is_named_and_a_smaller_batch_that_fits() -> None:
    torch.manual_seed(0)
    model = encoder().train()
    plan = mn.plan(model, tokens(16), budget="least")
    budget = int(0.6 * plan.peak)
    message = said(model, tokens(16), budget)
    assert f"({plan.measured_peak} bytes) as measured, for" in message
    found = re.search(r"a batch of (\d+) instead of 16", message)
    assert found is not None, message
    assert mn.plan(model, tokens(int(found[1])), budget=budget).peak <= budget
    assert "no choice fits" in said(model, tokens(int(found[1]) + 2), budget)


def test_a_size_that_is_not_known_is_a_percentage() -> None:
    class Added(Chain):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x + shift)

    torch.manual_seed(0)
    model, x = Added([ResidualMLP() for _ in range(4)]), torch.randn(512, 16)
    with pytest.raises(mn.ConversionError, match=r"What would help: a batch of \d+ % of this size \(about"):
        mn.plan(model, (x, torch.zeros(16)), budget=60000)


def test_a_larger_gamma_where_states_take_the_most() -> None:
    torch.manual_seed(0)
    model, x = Chain([ResidualMLP() for _ in range(24)]), torch.randn(2048, 16)
    message = said(model, x, 1 << 20)
    predicted = figure(message, r"gamma=\d+/\d+, which is another function to train \(about ([\d.]+ \wiB)\)")
    gamma = re.search(r"gamma=(\d+/\d+)", message)
    assert gamma is not None
    least = mn.plan(model, x, budget="least", gamma=Fraction(gamma[1])).peak
    assert predicted == pytest.approx(least / (1 - MARGIN), rel=0.02)
    assert re.search(r"[\d.]+ \wiB states of streams", message)
    assert "gamma=" not in said(model, x, 1 << 20, gamma=0.9)


def test_chunks_where_it_is_the_loss_that_takes_the_most() -> None:
    def wide(output: Tensor) -> Tensor:
        return (output[..., None] * torch.ones(200)).exp().mean()

    torch.manual_seed(0)
    model, x = Chain([ResidualMLP() for _ in range(4)]), torch.randn(1024, 16)
    message = said(model, x, 1 << 20, loss=wide)
    assert "for the loss: " in message
    found = re.search(r"the loss computed in (\d+) chunks \(about", message)
    assert found is not None, message
    assert "chunks" not in said(model, x, 1 << 16)

    def in_chunks(count: int) -> Callable[[Tensor], Tensor]:
        def loss(output: Tensor) -> Tensor:
            pieces = [checkpoint(wide, piece, use_reentrant=False) for piece in output.chunk(count)]
            return torch.stack(pieces).mean()

        return loss

    assert mn.plan(model, x, budget=1 << 20, loss=in_chunks(int(found[1]))).peak <= 1 << 20
    said(model, x, 1 << 20, loss=in_chunks(int(found[1]) // 2))


def test_chunks_where_the_model_computes_its_own_loss() -> None:
    def in_chunks(count: int) -> Callable[..., Tensor]:
        def loss(logits: Tensor, labels: Tensor, **_: object) -> Tensor:
            pieces = zip(logits.flatten(0, 1).chunk(count), labels.flatten().chunk(count), strict=True)
            return torch.stack([checkpoint(F.cross_entropy, *piece, use_reentrant=False) for piece in pieces]).mean()

        return loss

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8000, use_cache=False, **sizes))
    tokens = torch.randint(0, 8000, (4, 64))
    example = {"input_ids": tokens, "labels": tokens}
    message = said(model, example, 4 << 20)
    found = re.search(r"the loss computed in (\d+) chunks \(about", message)
    assert found is not None, message
    predicted = figure(message, r"chunks \(about ([\d.]+ \wiB)\)") * (1 - MARGIN)
    model.loss_function = in_chunks(int(found[1]))
    assert mn.plan(model, example, budget="least").measured_peak == pytest.approx(predicted, rel=0.1)


def test_no_batch_is_small_enough_for_the_gradients_of_parameters() -> None:
    torch.manual_seed(0)
    model, x = Chain([ResidualMLP(16, 4096) for _ in range(4)]), torch.randn(2, 16)
    message = said(model, x, 1 << 20)
    assert re.search(r"for [^:]*: [\d.]+ MiB gradients of parameters, ", message), message
    assert "batch of" not in message


def test_an_estimate_at_another_batch_is_what_is_measured_there() -> None:
    torch.manual_seed(0)
    model = Chain([ResidualMLP() for _ in range(4)])
    options = {batch: options_at(model, torch.randn(batch, 16)) for batch in (256, 768)}
    estimated, _ = least(Options(rescaled(options[256].profile, 3)))
    measured, _ = least(options[768])
    assert estimated == pytest.approx(measured, rel=0.02)


def options_at(model: nn.Module, x: Tensor) -> Options:
    return measured_step(model, x, gamma=Fraction(1, 8)).options
