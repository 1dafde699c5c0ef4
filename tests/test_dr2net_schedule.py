"""`set_dr2net` and `schedule_dr2net`: which coefficients at each step, on which models, in checkpoints; to the bit."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic.fixed_point import has_short_store
from momentumnet.streams.blocks.converted import streams_of
from tests.configured import EXAMPLE, configured
from tests.contract.reference import assert_same, loss_of, train_step
from tests.contract.streams.coupled_chains import by_formula, chain, rows

EIGHT = [(1, 1 / 64), (1, 1 / 8), (0.9, 0.1), (2 / 3, 1 / 3), (1 / 2, 1 / 2), (0.3, 0.7), (0, 1), (1, 1 / 100)]
START, END = mn.Dr2Net(alpha=1, beta=1 / 64), mn.Dr2Net(alpha=0.1, beta=0.9)
SHAPES = ["linear", "cosine", "geometric"]


def converted(depth: int = 4, backward: str = "reversible", **options: Any) -> nn.Module:
    return mn.convert(chain(depth), rows(), coupling="dr2net", backward=backward, **options)


def coupling_of(model: nn.Module) -> dict[str, str]:
    (stream,) = mn.describe(model)["streams"]
    found: dict[str, str] = stream["coupling"]
    return found


def trained(net: nn.Module, coefficients: Sequence[tuple[float, float]], factors: Sequence[float]) -> list[Tensor]:
    """A step at each pair, on rows of each size: all outputs, and what the parameters are at the end."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    found = []
    for (alpha, beta), factor in zip(coefficients, factors, strict=True):
        mn.set_dr2net(net, mn.Dr2Net(alpha=alpha, beta=beta))
        optimizer.zero_grad()
        output = net(rows(factor))
        (loss_of(output) / factor**2).backward()
        optimizer.step()
        found.append(output.detach())
    return [*found, *(parameter.detach().clone() for parameter in net.parameters())]


@pytest.mark.parametrize("factors", [[1] * 8, [1, 50, 3000, 1, 2e5, 1, 1e6, 1]], ids=["even", "outgrowing"])
@pytest.mark.parametrize("depth", [4, 20])
def test_training_through_eight_pairs_has_the_bits_of_stored_training(depth: int, factors: list[float]) -> None:
    stored, reversible, checkpointed = (
        trained(converted(depth, backward), EIGHT, factors) for backward in ("stored", "reversible", "checkpointed")
    )
    assert all(value.isfinite().all() for value in stored)
    assert all(map(torch.equal, reversible, stored))
    assert all(map(torch.equal, checkpointed, stored))


def test_what_was_set_is_what_is_computed_and_backward_belongs_to_the_forward_before() -> None:
    model, net = chain(6), converted(6)
    pair = mn.Dr2Net(alpha=0.3, beta=0.7)
    mn.set_dr2net(net, pair)
    torch.testing.assert_close(net(rows()), by_formula(model, pair, rows()), rtol=1e-4, atol=1e-5)
    expected = train_step(copy.deepcopy(net), (rows(),))
    loss = loss_of(net(rows()))
    mn.set_dr2net(net, mn.Dr2Net(alpha=1, beta=1 / 64))
    loss.backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, expected.gradients[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_each_step_of_a_shape_has_the_gradients_of_stored_activations(shape: str) -> None:
    """To the bit; and those of the recurrence in float64, by autograd alone, up to rounding."""
    nets = [converted(6, backward) for backward in ("stored", "reversible")]
    schedules = [mn.schedule_dr2net(net, 5, START, END, shape=shape) for net in nets]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in nets]
    pairs = []
    for _ in range(7):  # two of them behind the end
        stored, reversible = (train_step(net, (rows(),)) for net in nets)
        assert_same(reversible, stored, tolerance=0)
        reference = chain(6)
        reference.load_state_dict(nets[1].state_dict())
        loss_of(by_formula(reference.double(), schedules[1].coupling, rows().double())).backward()
        for name, parameter in reference.named_parameters():
            expected = parameter.grad.float()
            far = (reversible.gradients[name] - expected).norm() / expected.norm()
            assert far <= 1e-4, name
        pairs.append([coupling_of(net) for net in nets])
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    assert all(one == other for one, other in pairs)
    assert len({one["beta"] for one, _ in pairs}) == 6
    assert pairs[-1][0] == pairs[-2][0] == {"name": "dr2net", "alpha": "1/10", "beta": "9/10"}


def pair_by_formula(shape: str, ends: tuple[mn.Dr2Net, mn.Dr2Net], share: float) -> tuple[float, float]:
    """In floats, without the rounding: beta by its shape, and alpha as far on its way as beta is."""
    (alpha, beta), (last_alpha, last_beta) = ((float(end.alpha), float(end.beta)) for end in ends)
    if shape == "geometric" and beta != last_beta:
        bits = (1 - share) * -math.log2(beta) + share * -math.log2(last_beta)
        covered = (2**-bits - beta) / (last_beta - beta)
    else:
        covered = (1 - math.cos(math.pi * share)) / 2 if shape == "cosine" else share
    return alpha * (1 - covered) + last_alpha * covered, beta * (1 - covered) + last_beta * covered


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 7, 400])
@pytest.mark.parametrize(
    "ends",
    [
        (START, END),
        (END, START),
        (START, mn.Dr2Net(alpha=0, beta=1)),
        # Rounded betas would take alpha out of [0, 1] here, and 113/127 has no short store.
        (START, mn.Dr2Net(alpha=1, beta=1 / 2)),
        (mn.Dr2Net(alpha=0, beta=1), mn.Dr2Net(alpha=0, beta=1 / 2)),
        (mn.Dr2Net(alpha=14 / 127, beta=113 / 127), START),
        (mn.Dr2Net(alpha=1, beta=1 / 8), mn.Dr2Net(alpha=1 / 2, beta=1 / 8)),  # beta stays, alpha alone moves
    ],
    ids=str,
)
def test_every_step_against_the_formula(ends: tuple[mn.Dr2Net, mn.Dr2Net], steps: int, shape: str) -> None:
    """Alpha and beta each by itself; both are rounded to fractions no further apart than 1/90."""
    schedule = mn.schedule_dr2net(converted(), steps, *ends, shape=shape)
    found = [schedule.at(step) for step in range(steps + 3)]
    assert found[0] == ends[0]
    assert found[-3:] == [ends[1]] * 3
    for step, pair in enumerate(found[:steps]):
        wanted = pair_by_formula(shape, ends, step / steps)
        assert (float(pair.alpha), float(pair.beta)) == pytest.approx(wanted, abs=1 / 90)
        assert pair.beta.denominator <= 128
        assert step == 0 or has_short_store(pair.beta) or pair.beta > Fraction(10, 11)
    betas = [pair.beta for pair in found]
    assert betas == sorted(betas, reverse=ends[0].beta > ends[1].beta)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_of_one_is_one_in_every_step(shape: str) -> None:
    schedule = mn.schedule_dr2net(converted(), 100, mn.Dr2Net(alpha=63 / 64, beta=1 / 64), END, shape=shape)
    found = [schedule.at(step) for step in range(101)]
    assert {pair.alpha + pair.beta for pair in found} == {1}
    assert len(set(found)) > 50


def test_the_model_follows_and_holds_the_end() -> None:
    net = converted()
    schedule = mn.schedule_dr2net(net, 3, mn.Dr2Net(alpha=7 / 8, beta=1 / 8), mn.Dr2Net(alpha=1 / 2, beta=1 / 2))
    seen = []
    for _ in range(6):
        seen.append(coupling_of(net)["beta"])
        assert streams_of(net)[0].gamma == Fraction(seen[-1])
        assert schedule.coupling == schedule.at(schedule.steps_done)
        schedule.step()
    assert seen == ["1/8", "1/4", "3/8", "1/2", "1/2", "1/2"]


def test_a_resumed_training_has_the_bits_of_the_uninterrupted_one() -> None:
    def begun() -> tuple[nn.Module, torch.optim.Optimizer, mn.Dr2NetSchedule]:
        net = converted()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        return net, optimizer, mn.schedule_dr2net(net, 6, START, END, shape="geometric")

    def run(net: nn.Module, optimizer: torch.optim.Optimizer, schedule: mn.Dr2NetSchedule) -> list[Tensor]:
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(net(rows())).backward()
            optimizer.step()
            schedule.step()
        return [parameter.detach().clone() for parameter in net.parameters()]

    whole = begun()
    run(*whole)
    saved = copy.deepcopy([whole[0].state_dict(), whole[1].state_dict(), mn.training_state(whole[0])])
    place = json.loads(json.dumps(whole[2].state_dict()))
    expected = run(*whole)
    resumed = begun()
    resumed[0].load_state_dict(saved[0])
    resumed[1].load_state_dict(saved[1])
    mn.load_training_state(resumed[0], saved[2])
    resumed[2].load_state_dict(place)
    assert resumed[2].coupling == whole[2].at(4)
    assert all(map(torch.equal, run(*resumed), expected))
    for end, shape in ((mn.Dr2Net(alpha=0.5, beta=0.5), "geometric"), (END, "linear")):
        other = mn.schedule_dr2net(converted(), 6, START, end, shape=shape)
        with pytest.raises(mn.CheckpointError, match="belongs to another Dr2Net schedule"):
            other.load_state_dict(place)


def test_configs_and_descriptions_say_the_coefficients_of_now() -> None:
    net = mn.convert(configured(), EXAMPLE, coupling="dr2net")
    mn.set_dr2net(net, mn.Dr2Net(alpha=0.5, beta=0.5))
    assert net.config.momentumnet == mn.describe(net)
    assert coupling_of(net) == {"name": "dr2net", "alpha": "1/2", "beta": "1/2"}
    again = mn.convert(configured(), like=net.config.momentumnet)
    again.load_state_dict(net.state_dict())
    mn.load_training_state(again, mn.training_state(net))
    assert_same(train_step(again, (EXAMPLE,)), train_step(net, (EXAMPLE,)), tolerance=0)


def test_what_is_refused_changes_nothing() -> None:
    net, half = converted(), mn.Dr2Net(alpha=0.5, beta=0.5)
    for arguments, error, message in (
        ((net, 0, START, END), ValueError, "positive integer, got 0"),
        ((net, 5, START, 0.9), TypeError, r"momentumnet\.Dr2Net each, got 0\.9"),
        ((mn.convert(chain(3), rows()), 5, START, END), mn.ConversionError, "blocks moves by another coupling"),
        ((nn.Linear(2, 2), 5, START, END), mn.ConversionError, "no stream that moves by Dr2Net; convert it"),
    ):
        with pytest.raises(error, match=message):
            mn.schedule_dr2net(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape must be one of 'linear', 'cosine', 'geometric', got 'stepwise'"):
        mn.schedule_dr2net(net, 5, START, END, shape="stepwise")
    with pytest.raises(TypeError, match=r"expected a momentumnet\.Dr2Net, got 0\.5 of type float"):
        mn.set_dr2net(net, 0.5)  # type: ignore[arg-type]
    with pytest.raises(mn.ConversionError, match="blocks moves by another coupling"):
        mn.set_dr2net(mn.convert(chain(3), rows(), coupling="bdia"), half)
    assert coupling_of(net) == {"name": "dr2net", "alpha": "1", "beta": "1/64"}


def test_float_arithmetic_is_warned_of_where_a_change_makes_it_lossy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = mn.convert(
            chain(12),
            streams=["blocks"],
            arithmetic="float",
            coupling=mn.Dr2Net(alpha=0.3, beta=0.7),
            backward="reversible",
        )
        mn.set_dr2net(net, mn.Dr2Net(alpha=0.25, beta=0.75))
    with pytest.warns(mn.MomentumNetWarning, match=r"Dr2Net\(alpha=1, beta=1/64\)"):
        mn.set_dr2net(net, START)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mn.set_dr2net(net, mn.Dr2Net(alpha=1, beta=1 / 32))
