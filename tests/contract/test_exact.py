"""Contract lines 1 and 2: reconstruction bit for bit, and no wrong gradient in silence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.resolution import NARROW_BLOCKS
from tests.contract.reference import COUPLED, assert_same, loss_of, pair, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP
from tests.tally import Tally


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


def rule_in_float64(net: mn.MomentumNet, x: Tensor, grid: float | None = None) -> Tensor:
    """The rule of the paper, written out; ordinary autograd differentiates it.

    With a ``grid``, x and what is added to v are rounded to its multiples, rounding taken for the identity.
    """

    def rounded(values: Tensor) -> Tensor:
        return values if grid is None else values + ((values / grid).round() * grid - values).detach()

    x, v, gamma = rounded(x), torch.zeros_like(x), float(net.stream.gamma)
    for function in net.functions:
        v = gamma * v + rounded((1 - gamma) * function(x))
        x = rounded(x + v)
    return x


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


class Undetermined(ResidualMLP):
    """Draws from a generator that nobody replays."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = Tally([torch.Generator().manual_seed(0)])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.randn(x.shape, generator=self.generators[0])


class Shuffling(ResidualMLP):
    """Permutes its output from a counter: sums over the elements do not change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return super().forward(x).roll(self.calls[0], dims=-1)


class Overwriting(ResidualMLP):
    """Starts with an in-place activation on its input."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(x)
        return x + self.inner(x)


class ZeroScaled(ResidualMLP):
    """A branch that is zero at the start, so that the state cannot tell a changed parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x)


class TwoPaths(ResidualMLP):
    """Takes another path, with the same result, when it is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return x + (self.inner(x) if self.calls[0] % 2 else self.inner(x).clone().tanh().atanh() * 1.0)


def chain_of(middle: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    chain = Chain([ResidualMLP(), middle(), ResidualMLP()])
    return mn.convert(chain, streams=["blocks"])


@pytest.mark.parametrize("middle", [Undetermined, Shuffling, TwoPaths])
def test_block_that_is_not_deterministic_raises(middle: type[nn.Module]) -> None:
    net = chain_of(middle)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1"):
        loss.backward()


def test_block_that_overwrites_its_input_raises() -> None:
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1.*in place"):
        chain_of(Overwriting)(torch.randn(5, WIDTH))


@pytest.mark.parametrize("middle", [ResidualMLP, ZeroScaled])
def test_parameter_changed_between_forward_and_backward_raises(middle: type[nn.Module]) -> None:
    net = chain_of(middle)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with torch.no_grad():
        net.get_parameter("blocks.1.inner.0.weight").mul_(1.5)
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1.*inner|blocks\.1.*weight"):
        loss.backward()


@pytest.mark.parametrize("changed", [torch.float64, torch.bfloat16])
def test_parameters_of_another_type_in_backward_are_named(changed: torch.dtype) -> None:
    """Changed through .data, which no counter counts: the error is that, and not the block's own."""
    net = chain_of(ResidualMLP)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    net.blocks.to(changed)
    with pytest.raises(mn.ReconstructionError, match=f"parameter 'weight' was torch.float32 .* is {changed} now"):
        loss.backward()


class ReadingABuffer(ZeroScaled):
    """A zero branch that reads a buffer: the state cannot tell that the buffer was changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * (self.inner(x) * self.mask)


class ZeroNorm(ResidualMLP):
    """Ends its branch in a norm whose weight is zero, as residual networks are initialised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.inner(x))


@pytest.mark.parametrize(("middle", "buffer"), [(ReadingABuffer, "mask"), (ZeroNorm, "norm.running_mean")])
def test_buffer_changed_between_forward_and_backward_raises(middle: type[nn.Module], buffer: str) -> None:
    net = chain_of(middle).eval()
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with torch.no_grad():
        net.get_buffer(f"blocks.1.{buffer}").add_(1)
    with pytest.raises(mn.ReconstructionError, match=rf"blocks\.1.*buffer '{buffer.rpartition('.')[2]}' was changed"):
        loss.backward()


def test_running_statistics_of_a_further_forward_leave_backward_alone() -> None:
    net = chain_of(ZeroNorm)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    net(torch.randn(5, WIDTH))
    loss.backward()


def with_checkpointed_head(run: Any, others: str = "checkpoint") -> nn.Module:
    """A stream, and after it a module that is recomputed too, called as the given function says."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return run(self.inner, x)

    torch.manual_seed(0)
    chain = Chain([ResidualMLP(), ResidualMLP()])
    chain.head = Head()
    return mn.convert(chain, (torch.randn(5, WIDTH),), others=others)


def test_checkpointed_module_that_is_not_deterministic_raises() -> None:
    generator = torch.Generator().manual_seed(0)
    net = with_checkpointed_head(lambda inner, x: torch.tanh(inner(x) + torch.randn(WIDTH, generator=generator)))
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match="'head'"):
        loss.backward()


def test_what_a_checkpointed_module_adds_behind_all_that_it_saves_is_compared_once() -> None:
    """It changes no gradient, but only a recompute that runs to its end shows what follows there."""
    generator = torch.Generator().manual_seed(0)
    net = with_checkpointed_head(lambda inner, x: torch.tanh(inner(x)) + torch.randn(WIDTH, generator=generator))
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match="'head' did not compute the same"):
        loss.backward()


def test_checkpointed_module_that_overwrites_its_input_is_kept() -> None:
    x, gradients = torch.randn(5, WIDTH), []
    for others in ("checkpoint", "keep"):
        net = with_checkpointed_head(lambda inner, x: inner(torch.relu_(x)), others=others)
        loss_of(net(x)).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_checkpointed_module_that_overwrites_its_input_in_training_alone_raises() -> None:
    net = with_checkpointed_head(lambda inner, x: inner(torch.relu_(x) if inner.training else x))
    with pytest.raises(mn.ReconstructionError, match=r"'head'.*in place"):
        net(torch.randn(5, WIDTH))


def test_side_input_changed_between_forward_and_backward_raises() -> None:
    class Biased(ResidualMLP):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return x + self.inner(x + bias)

    net = mn.convert(Chain([Biased(), Biased()]), streams=["blocks"])
    bias = torch.randn(WIDTH)
    loss = loss_of(net(torch.randn(5, WIDTH), bias))
    bias.add_(1)
    with pytest.raises(mn.ReconstructionError, match="argument"):
        loss.backward()


def test_saved_tensor_changed_in_place_inside_the_block_raises() -> None:
    class Changing(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.exp(self.inner(x))  # exp saves its result
            return x + y.mul_(2)

    net = chain_of(Changing)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match="in place"):
        loss.backward()


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
