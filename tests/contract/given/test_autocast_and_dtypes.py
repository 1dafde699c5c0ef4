"""Contract line 5: autocast, dtypes and memory formats; and eval mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import momentumnet as mn
from tests.contract.reference import assert_same, loss_of, pair, relative_error, train_step
from tests.models import CASES, WIDTH, Case, Chain, ResidualMLP


def test_eval_mode_with_gradients(case: Case, coupled: dict[str, Any]) -> None:
    stored, reversible = pair(case, **coupled)
    assert_same(train_step(reversible.eval(), case.example()), train_step(stored.eval(), case.example()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_replayed_although_backward_runs_outside(
    case: Case, coupled: dict[str, Any], dtype: torch.dtype
) -> None:
    outcomes = []
    for net in pair(case, **coupled):
        # The context ends before backward: the recompute has to enter it again.
        forward = net.forward

        def inside(*inputs: Tensor, forward=forward) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return forward(*inputs)

        net.forward = inside
        outcomes.append(train_step(net, case.example()))
    assert_same(outcomes[1], outcomes[0])


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_cache_is_replayed(enabled: bool) -> None:
    seen: list[bool] = []

    class Seeing(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.is_autocast_cache_enabled())
            return super().forward(x)

    net = mn.convert(Chain([Seeing(), Seeing()]), streams=["blocks"])
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=enabled):
        loss = loss_of(net(torch.randn(5, WIDTH)))
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=not enabled):
        loss.backward()
    assert seen == 4 * [enabled]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype(case: Case, coupled: dict[str, Any], dtype: torch.dtype) -> None:
    stored, reversible = (net.to(dtype) for net in pair(case, **coupled))
    example = tuple(x.to(dtype) for x in case.example())
    got, expected = train_step(reversible, example), train_step(stored, example)
    assert got.output.dtype == dtype
    assert_same(got, expected)


def test_float64_is_carried_with_more_than_float32_precision(case: Case) -> None:
    """Against the plain rule in float64, differentiated by ordinary autograd."""
    if case.draws:
        pytest.skip("the float rule of a network that draws has no second run with the same draws here")
    exact = mn.convert(case.model(), case.example()).double()
    plain = mn.convert(case.model(), case.example(), arithmetic="float", backward="stored").double()
    example = tuple(x.double() for x in case.example())
    assert relative_error(train_step(exact, example), train_step(plain, example)) < 1e-12


def test_half_precision_keeps_gradients_near_float32(case: Case) -> None:
    stored, _ = pair(case)
    half = mn.convert(case.model(), case.example()).bfloat16()
    error = relative_error(
        train_step(half, tuple(x.bfloat16() for x in case.example())), train_step(stored, case.example())
    )
    assert error < (1.0 if case.draws else 0.25)


def test_channels_last_input() -> None:

    case = next(case for case in CASES if case.name == "basic_block")
    stored, reversible = (net.to(memory_format=torch.channels_last) for net in pair(case))
    example = tuple(x.to(memory_format=torch.channels_last) for x in case.example())
    assert_same(train_step(reversible, example), train_step(stored, example))
