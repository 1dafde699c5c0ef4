"""`schedule_gamma`: what gamma is at each step, on which models, and in checkpoints."""

from __future__ import annotations

import copy
import json
import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import momentumnet as mn
from momentumnet.arithmetic.fixed_point import has_short_store
from momentumnet.streams.blocks.converted import streams_of
from tests.configured import EXAMPLE, configured
from tests.models import WIDTH, Chain, ResidualMLP


def converted(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return mn.convert(Chain([ResidualMLP() for _ in range(4)]), EXAMPLE, **options)


def gammas_of(model: nn.Module) -> set[Fraction]:
    return {stream.gamma for stream in streams_of(model)}


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(EXAMPLE).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("shape", ["linear", "cosine", "geometric"])
@pytest.mark.parametrize(("start", "end"), [(1 / 64, 0.9), (0.9, 1 / 64), (1 / 8, 0.95), (0.3, 0.897)])
def test_every_step_is_a_fraction_between_the_ends(start: float, end: float, shape: str) -> None:
    steps = 400
    schedule = mn.schedule_gamma(converted(), steps, start, end, shape=shape)
    gammas = [schedule.at(step) for step in range(steps + 3)]
    assert float(gammas[0]) == pytest.approx(start, abs=1e-4)
    assert gammas[-3:] == [schedule.end] * 3
    assert gammas == sorted(gammas, reverse=start > end)
    assert all(gamma.denominator <= 128 and 0 < gamma < 1 for gamma in gammas)
    between = [gamma for gamma in gammas if gamma not in (schedule.start, schedule.end)]
    assert all(has_short_store(gamma) or gamma > Fraction(10, 11) for gamma in between)


def test_shapes_against_their_formulas() -> None:
    steps, start, end = 200, 1 / 8, 0.75
    formulas = {
        "linear": lambda t: start + (end - start) * t,
        "cosine": lambda t: end + (start - end) * (1 + torch.cos(torch.tensor(torch.pi * t)).item()) / 2,
        "geometric": lambda t: start * (end / start) ** t,
    }
    model = converted()
    for shape, formula in formulas.items():
        schedule = mn.schedule_gamma(model, steps, start, end, shape=shape)
        far = max(abs(float(schedule.at(step)) - formula(step / steps)) for step in range(steps + 1))
        assert far <= 1 / 200, shape


def test_between_the_ends_gamma_is_never_zero_nor_one() -> None:
    model = mn.MomentumNet([nn.Linear(4, 4)] * 3, 0.5, use_backprop=False)
    schedule = mn.schedule_gamma(model, 1000, 0, 1)
    gammas = [schedule.at(step) for step in range(1001)]
    assert gammas[0] == 0
    assert gammas[-1] == 1
    assert all(0 < gamma < 1 for gamma in gammas[1:-1])


def test_the_model_follows_and_holds_the_end() -> None:
    model = converted(gamma=0.9)
    schedule = mn.schedule_gamma(model, 3, 1 / 8, 1 / 2)
    seen = []
    for _ in range(6):
        seen.append(gammas_of(model))
        assert seen[-1] == {schedule.gamma}
        schedule.step()
    assert seen == [{Fraction(n, 8)} for n in (1, 2, 3, 4, 4, 4)]


def test_a_network_annealed_to_0_is_a_stock_one() -> None:
    model = converted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = mn.schedule_gamma(model, 5, 1 / 8, 0)
    for _ in range(5):
        training_step(model, optimizer)
        schedule.step()
    stock = Chain([ResidualMLP() for _ in range(4)])
    stock.load_state_dict(model.state_dict())
    assert torch.equal(stock(EXAMPLE), model(EXAMPLE))
    assert torch.equal(mn.revert(model)(EXAMPLE), model(EXAMPLE))
    with torch.no_grad():
        assert torch.equal(stock(EXAMPLE), model(EXAMPLE))


def test_a_resumed_training_has_the_bits_of_the_uninterrupted_one() -> None:
    def begun() -> tuple[nn.Module, torch.optim.Optimizer, mn.GammaSchedule]:
        model = converted()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, optimizer, mn.schedule_gamma(model, 6, 1 / 64, 0.9, shape="geometric")

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: mn.GammaSchedule, steps: int) -> list[Tensor]:
        for _ in range(steps):
            training_step(model, optimizer)
            schedule.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    whole = begun()
    run(*whole, 3)
    saved = copy.deepcopy([whole[0].state_dict(), whole[1].state_dict(), mn.training_state(whole[0])])
    place = json.loads(json.dumps(whole[2].state_dict()))
    expected = run(*whole, 5)

    resumed = begun()
    resumed[0].load_state_dict(saved[0])
    resumed[1].load_state_dict(saved[1])
    mn.load_training_state(resumed[0], saved[2])
    resumed[2].load_state_dict(place)
    assert gammas_of(resumed[0]) == {resumed[2].at(3)}
    assert all(map(torch.equal, run(*resumed, 5), expected))


def test_a_state_of_another_schedule_is_refused() -> None:
    model = converted()
    schedule = mn.schedule_gamma(model, 10, 1 / 8, 0.9)
    schedule.step()
    state = schedule.state_dict()
    before = gammas_of(model)
    for other, message in (
        ({**state, "end": "1/2"}, r"it has \{'end': '1/2'\}, this one \{'end': '9/10'\}"),
        ({**state, "more": 1}, "expected what state_dict"),
        (None, "expected what state_dict"),
        ({**state, "steps_done": -1}, "0 or more, got -1"),
        ({**state, "steps_done": True}, "0 or more, got True"),
    ):
        with pytest.raises(mn.CheckpointError, match=message):
            schedule.load_state_dict(other)  # type: ignore[arg-type]
    assert gammas_of(model) == before
    longer = mn.schedule_gamma(model, 20, 1 / 8, 0.9)
    longer.load_state_dict({**state, "optimizer_steps": 20})
    assert longer.steps_done == 1


def test_copies_have_a_gamma_of_their_own() -> None:
    model = converted()
    schedule = mn.schedule_gamma(model, 4, 1 / 8, 1 / 2)
    other = copy.deepcopy(model)
    both = copy.deepcopy(schedule)
    schedule.step()
    assert gammas_of(other) == gammas_of(both.model) == {Fraction(1, 8)}
    both.step()
    assert gammas_of(both.model) == gammas_of(model) == {schedule.gamma}
    mn.schedule_gamma(other, 4, 1 / 2, 1 / 8)
    assert gammas_of(model) == {schedule.gamma}


def test_inside_of_wrappers_the_config_follows(tmp_path: Any) -> None:
    """A wrapper has no config; saving the model inside would have said the gamma of its conversion."""
    inner = mn.convert(configured(), EXAMPLE)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(inner)
        schedule = mn.schedule_gamma(model, 2, 1 / 8, 1 / 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            training_step(model, optimizer)
            schedule.step()
    finally:
        dist.destroy_process_group()
    assert gammas_of(inner) == {Fraction(1, 2)}
    assert inner.config.momentumnet == mn.describe(inner)


def test_the_config_of_a_model_inside_names_its_blocks_as_it_did() -> None:
    """As an adapter does, a wrapper may pass on to the config inside, whose names are not its own."""

    class Adapter(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.base = model

        @property
        def config(self) -> Any:
            return self.base.config

    inner = mn.convert(configured(), EXAMPLE)
    inner.blocks.config = inner.config  # as the parts of transformers hold it
    mn.set_gamma(Adapter(inner), 1 / 2)
    assert inner.config.momentumnet == mn.describe(inner)
    assert inner.config.momentumnet["streams"][0]["gamma"] == "1/2"
    mn.set_gamma(inner.blocks, 3 / 4)
    assert inner.config.momentumnet == mn.describe(inner)


def two_streams() -> nn.Module:
    """Two in one container, which both have its name."""
    torch.manual_seed(0)
    narrow = WIDTH // 2
    model = Chain(
        [*(ResidualMLP() for _ in range(2)), nn.Linear(WIDTH, narrow), *(ResidualMLP(narrow) for _ in range(3))]
    )
    model.head = nn.Linear(narrow, 4)
    model.config = configured().config
    return model


def test_a_part_whose_blocks_hold_the_config_writes_into_it() -> None:
    """As those of transformers do: what is inside of a block knows of no stream."""
    model = mn.convert(configured(), EXAMPLE)
    for block in model.blocks:
        block.inner.config = model.config
    mn.set_gamma(model.blocks, 1 / 2)
    assert model.config.momentumnet == mn.describe(model)
    assert model.config.momentumnet["streams"][0]["gamma"] == "1/2"


@pytest.mark.parametrize("coupling", ["momentum", "dr2net"])
def test_streams_of_one_container_are_told_apart_in_the_config(coupling: str) -> None:
    """Both were given the rule of the last one, and a part without a config changed nothing there: in silence."""
    model = mn.convert(two_streams(), EXAMPLE, coupling=coupling)
    for model in (model, copy.deepcopy(model)):  # noqa: B020
        if coupling == "momentum":
            mn.set_gamma(model.blocks[:2], 1 / 2)
        else:
            mn.set_dr2net(model.blocks[:2], mn.Dr2Net(alpha=1 / 2, beta=1 / 2))
        first, second = streams_of(model)
        assert (first.name, first.gamma) == (second.name, Fraction(1, 2))
        assert second.gamma != first.gamma
        assert model.config.momentumnet == mn.describe(model)
        mn.set_gamma(model, 1 / 4) if coupling == "momentum" else mn.set_dr2net(model, mn.Dr2Net(beta=1 / 4))
        assert model.config.momentumnet == mn.describe(model)
        mn.set_gamma(model.blocks[3:], 3 / 4) if coupling == "momentum" else None
        assert model.config.momentumnet == mn.describe(model)
        again = mn.convert(two_streams(), like=model.config.momentumnet)
        assert [stream.gamma for stream in streams_of(again)] == [stream.gamma for stream in streams_of(model)]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"shape": "sine"}, ValueError, "shape must be one of 'linear', 'cosine', 'geometric', got 'sine'"),
        ({"optimizer_steps": 0}, ValueError, "positive integer, got 0"),
        ({"optimizer_steps": 2.5}, ValueError, "positive integer"),
        ({"optimizer_steps": True}, ValueError, "positive integer"),
        ({"end": 1.5}, ValueError, "gamma must be in"),
        ({"end": "1/2"}, TypeError, "gamma must be a number"),
        ({"end": 1}, ValueError, "nothing to flush"),
        ({"end": 0.999}, ValueError, "use gamma from 1/128"),
        ({"end": 0, "shape": "geometric"}, ValueError, "neither end can be 0"),
        ({"model": nn.Linear(2, 2)}, mn.ConversionError, "no momentum stream"),
    ],
    ids=str,
)
def test_what_is_refused_changes_nothing(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    model = converted()
    given = {"model": model, "optimizer_steps": 5, "start": 1 / 2, "end": 0.9, **changed}
    with pytest.raises(error, match=message):
        mn.schedule_gamma(**given)
    assert gammas_of(model) == {Fraction(1, 8)}


def test_a_gamma_that_one_stream_cannot_have_changes_none() -> None:
    flushed = converted()
    both = nn.ModuleList([mn.MomentumNet([nn.Linear(WIDTH, WIDTH)] * 2, 0.5, use_backprop=False), flushed])
    with pytest.raises(ValueError, match="nothing to flush"):
        mn.set_gamma(both, 1)
    assert gammas_of(both) == {Fraction(1, 2), Fraction(1, 8)}


def test_float_arithmetic_is_warned_of_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = converted(gamma=1 / 64, arithmetic="float", backward="reversible")
        schedule = mn.schedule_gamma(model, 8, 1 / 128, 1 / 32)
        for _ in range(8):
            schedule.step()
    assert [str(warning.message) for warning in caught if "arithmetic='exact'" in str(warning.message)][1:] == []
    assert caught
