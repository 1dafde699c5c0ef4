"""A training that was saved and goes on in a new process computes the bits of one that was not interrupted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP

EXAMPLE = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))
# Each batch outgrows the scale that the one before has left, so that what is learned stands in the bits.
BATCHES = [EXAMPLE * 40.0**n for n in range(3)]
State = dict[str, Any]


def stock() -> nn.Module:
    torch.manual_seed(0)
    chain = Chain([ResidualMLP() for _ in range(4)])
    chain.stem = nn.Identity()
    return chain


def converted() -> nn.Module:
    return mn.convert(stock(), EXAMPLE, inplace=True)


def original_package() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(mn.MomentumNet([nn.Linear(WIDTH, WIDTH) for _ in range(3)], 0.25, use_backprop=False))


def train(net: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Gradients of all steps; the parameters follow them a little."""
    gradients = []
    for batch in batches:
        net.zero_grad()
        net(batch).square().mean().sqrt().backward()
        gradients += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        with torch.no_grad():
            for p in net.parameters():
                p -= 1e-3 * (0 if p.grad is None else p.grad / p.grad.norm().clamp(min=1e-6))
    return gradients


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("build", [converted, original_package])
def test_resumed_training_has_the_bits_of_the_uninterrupted_one(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    net = build()
    train(net, BATCHES)
    torch.save({"model": net.state_dict(), "streams": mn.training_state(net)}, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    small = [EXAMPLE, BATCHES[0]]
    expected = train(net, small)

    resumed = build()
    assert resumed.state_dict().keys() == saved["model"].keys()
    resumed.load_state_dict(saved["model"])
    mn.load_training_state(resumed, saved["streams"])
    assert same(train(resumed, small), expected)

    without = build()
    without.load_state_dict(saved["model"])
    assert not same(train(without, small), expected)  # or this test would show nothing


def test_state_is_plain_data_and_whole() -> None:
    net = converted()
    train(net, BATCHES)
    state = json.loads(json.dumps(mn.training_state(net)))
    fresh = converted()
    assert mn.training_state(fresh) != state
    mn.load_training_state(fresh, state)
    assert mn.training_state(fresh) == state
    # A later pass teaches the one nothing of the other.
    train(fresh, [EXAMPLE * 1e6])
    assert mn.training_state(net) == state != mn.training_state(fresh)


def test_a_stream_that_was_left_early_stays_careful() -> None:
    net = converted()
    net.blocks[1](net.blocks[0](EXAMPLE)).sum().backward()
    net(EXAMPLE)
    fresh = converted()
    mn.load_training_state(fresh, mn.training_state(net))
    (stream,) = mn.training_state(fresh)["streams"].values()
    assert stream["may_end_early"]


def test_streams_of_models_that_were_put_together_are_told_apart() -> None:
    both = nn.Sequential(converted(), converted())
    train(both[0], BATCHES)
    state = mn.training_state(both)
    assert list(state["streams"]) == ["0.blocks.0", "1.blocks.0"]
    other = nn.Sequential(converted(), converted())
    mn.load_training_state(other, state)
    assert mn.training_state(other) == state
    assert state["streams"]["0.blocks.0"] != state["streams"]["1.blocks.0"]


def test_a_model_without_streams_has_an_empty_state() -> None:
    mn.load_training_state(stock(), mn.training_state(stock()))
    with pytest.raises(mn.CheckpointError, match=r"it lacks \[\].*has none of \['blocks.0'\]"):
        mn.load_training_state(stock(), mn.training_state(converted()))


def changed(**fields: Any) -> State:
    state = mn.training_state(converted())
    state["streams"]["blocks.0"].update(fields)
    return state


def scale(**fields: Any) -> State:
    state = mn.training_state(converted())
    state["streams"]["blocks.0"]["scale"].update(fields)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "expected what momentumnet.training_state returned"),
        ({"version": 2}, "with 'version' and 'streams'"),
        ({**changed(), "version": 1}, "has version 1, and this version of momentumnet reads version 2"),
        ({"version": 2, "streams": {}}, r"lacks \['blocks.0'\]"),
        (changed(blocks=6), "has 4 blocks, and had 6"),
        (changed(other=1), "expected a mapping of blocks"),
        (changed(may_end_early="no"), "expected a mapping of blocks"),
        (changed(scale=3), "expected a mapping of magnitude"),
        (scale(more=1), "expected a mapping of magnitude"),
        (scale(magnitude="large"), "must be finite numbers"),
        (scale(spread=float("nan")), "must be finite numbers"),
        (scale(reached=[[4, 3]]), "pairs of a place among 4 blocks"),
        (scale(reached=[[1, 2.5]]), "pairs of a place"),
        (scale(reached={"1": 2}), "pairs of a place"),
        (scale(calm=[[4, 3]]), "calm of a"),
        (scale(once=[[4, 3]]), "reached and once"),
        (scale(wait=-1), "wait must be a number of passes"),
        (scale(refined=[7]), "refined hold places"),
        (scale(refined=2), "refined hold places"),
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(state: Any, message: str) -> None:
    net = converted()
    before = copy.deepcopy(mn.training_state(net))
    with pytest.raises(mn.CheckpointError, match=message):
        mn.load_training_state(net, state)
    assert mn.training_state(net) == before
