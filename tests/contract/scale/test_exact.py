"""Contract line 1: reconstruction bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.scaling.resolution import NARROW_BLOCKS
from tests.contract.reference import COUPLED, assert_same, loss_of, pair, rule_in_float64, train_step
from tests.contract.unequal_blocks import chain_of
from tests.models import WIDTH, Case, Chain, ResidualMLP


@pytest.mark.parametrize("options", [{"gamma": 0.01}, {"gamma": 1 / 8}, {"gamma": 0.9}, *COUPLED], ids=str)
def test_gradients_and_states_equal_stored(case: Case, options: dict[str, Any], watched: list[bool]) -> None:
    stored, reversible = pair(case, **options)
    expected = train_step(stored, case.example())
    assert not watched
    got = train_step(reversible, case.example())
    assert_same(got, expected)
    blocks = sum(len(stream) for stream in mn.find_streams(case.model(), case.example()))
    assert len(watched) >= blocks  # an overflow takes a step back once more
    assert all(watched)


@pytest.mark.parametrize("gamma", [0.01, 1 / 64, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("depth", [1, 50, 1000])
def test_every_depth_and_gamma(depth: int, gamma: float, watched: list[bool]) -> None:
    torch.manual_seed(0)
    functions = [nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(depth)]
    start = nn.Linear(8, 8)
    options: dict[str, Any] = {"gamma": gamma, "init_speed": True, "init_function": start}
    x = torch.randn(4, 8)
    stored = mn.MomentumNet(functions, use_backprop=True, **options)
    expected = train_step(stored, (x,))
    stored.zero_grad(set_to_none=True)
    got = train_step(mn.MomentumNet(functions, use_backprop=False, **options), (x,))
    assert_same(got, expected)
    assert len(watched) >= depth  # an overflow takes a step back once more
    assert all(watched)


@pytest.mark.parametrize("depth", [2, 8, 10, 100, 400])
@pytest.mark.parametrize("gamma", [0.125, 0.5, 0.9])
def test_against_float64_autograd(depth: int, gamma: float) -> None:
    """At most twice the error of float32's own backpropagation plus the state's resolution.

    The resolution is what rounding to the state's grid does to a float64 gradient: 22 bits of the magnitude in short
    streams of small gamma, 29 in all others, where it does not count beside float32's error.
    """
    torch.manual_seed(0)
    functions = [nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(depth)]
    net = mn.MomentumNet(functions, gamma=gamma, use_backprop=False)
    x = torch.randn(8, 64)

    def gradient(dtype: torch.dtype, run: Any) -> Tensor:
        net.to(dtype).zero_grad(set_to_none=True)
        loss_of_double = run(x.to(dtype)).square().mean()
        loss_of_double.backward()
        return torch.cat([p.grad.double().flatten() for p in net.parameters()])

    short = depth <= 8 and gamma <= 0.5
    room = math.frexp(4 * float(x.abs().max()))[1]  # without example inputs: four times what the stream starts from
    grid = math.ldexp(1.0, room - (22 if short else 29))
    exact = gradient(torch.float64, lambda x: rule_in_float64(net, x))
    plain = gradient(torch.float32, lambda x: rule_in_float64(net, x))
    coarse = gradient(torch.float64, lambda x: rule_in_float64(net, x, grid))
    ours = gradient(torch.float32, net)
    resolution = (coarse - exact).norm() if short else 0
    assert (ours - exact).norm() <= 2 * (plain - exact).norm() + resolution


def test_values_that_outgrow_the_scale_stay_exact(caplog: pytest.LogCaptureFixture, watched: list[bool]) -> None:
    class Growing(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            return 8 * x + self.inner(x)

    torch.manual_seed(0)
    chain = Chain([Growing() for _ in range(NARROW_BLOCKS + 1)])  # a scale that uses the whole word
    for name, parameter in chain.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    small = 1e-3 * torch.randn(5, WIDTH)
    x = torch.randn(5, WIDTH)
    outcomes = []
    for backward in ("stored", "reversible"):
        net = mn.convert(chain, (small,), backward=backward, gamma=0.5)
        with caplog.at_level("INFO", logger="momentumnet"):
            caplog.clear()
            outcomes.append(train_step(net, (x,)))
        assert "widened" in caplog.text
    assert_same(outcomes[1], outcomes[0])
    assert watched
    assert all(watched)
    with torch.no_grad():
        plain = net(x)
    assert (outcomes[1].output - plain).abs().max() <= 1e-5 * plain.abs().max()
    # The wider scale is kept: behind a pass that looks how far values lie apart now, there is nothing to learn.
    train_step(net, (x,))
    before = mn.training_state(net)
    train_step(net, (x,))
    assert mn.training_state(net) == before


def test_values_that_no_scale_can_carry_raise_with_stream_and_magnitude() -> None:
    class Exploding(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1e12 * self.inner(x)

    with pytest.raises(mn.StateRangeError, match=r"blocks.*e\+1"):
        chain_of(Exploding)(torch.randn(5, WIDTH))


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_branch_with_nan_reaches_the_loss_and_keeps_other_rows(
    bad: float, arithmetic: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Poisoned(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.cat([y[:1] * bad, y[1:]])

    outcomes = []
    for backward in ("stored", "reversible"):
        torch.manual_seed(0)
        chain = Chain([ResidualMLP(), ResidualMLP(), Poisoned(), ResidualMLP()])
        net = mn.convert(chain, streams=["blocks"], backward=backward, arithmetic=arithmetic)
        caplog.clear()
        with caplog.at_level("WARNING", logger="momentumnet"):
            outcomes.append(
                train_step(net, (torch.ones(3, WIDTH),), backward=lambda y: y[1:].square().sum().backward())
            )
        assert "NaN or Inf" in caplog.text or (backward, arithmetic) == ("stored", "float")
    stored, reversible = outcomes
    assert not reversible.output[0].isfinite().any()
    assert reversible.output[1:].isfinite().all()
    tolerance = 0 if arithmetic == "exact" else 1e-5
    torch.testing.assert_close(reversible.gradients, stored.gradients, equal_nan=True, rtol=tolerance, atol=tolerance)


def test_float_arithmetic_warns_where_it_is_no_longer_good_and_raises_where_it_is_wrong() -> None:
    torch.manual_seed(0)
    chain = Chain([ResidualMLP() for _ in range(40)])
    with pytest.warns(UserWarning, match="arithmetic='exact'"):
        net = mn.convert(chain, streams=["blocks"], gamma=0.25, arithmetic="float")
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match="arithmetic='exact'"):
        loss.backward()


def test_float_arithmetic_is_close_where_it_does_not_warn(case: Case) -> None:
    stored, _ = pair(case, gamma=0.9)
    model = mn.convert(case.model(), case.example(), gamma=0.9, arithmetic="float")
    got, expected = train_step(model, case.example()), train_step(stored, case.example())
    for name, grad in expected.gradients.items():
        torch.testing.assert_close(got.gradients[name], grad, rtol=1e-3, atol=1e-4)
