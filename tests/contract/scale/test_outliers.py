"""One huge value must not cost the others their precision: massive activations, as transformers have them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn

WIDTH, TOKENS = 32, 10


class PreNorm(nn.Module):
    """x + f(norm(x)): the norm divides by the huge value's row, and other rows do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


def tokens(outlier: float) -> Tensor:
    """Values of about 1, and two huge ones in the first token."""
    x = torch.randn(4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    x[:, 0, 0], x[:, 0, 1] = outlier, -outlier / 2
    return x


def gradient_of_others(net: nn.Module, x: Tensor) -> Tensor:
    """The parameters' gradient of a loss on the tokens beside the first."""
    weights = torch.randn(4, TOKENS - 1, WIDTH, generator=torch.Generator().manual_seed(2))
    net.zero_grad(set_to_none=True)
    (net(x)[:, 1:].float().tanh() * weights).mean().backward()
    return torch.cat([parameter.grad.double().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("by_hand", [False, True], ids=["example", "streams by hand"])
@pytest.mark.parametrize("outlier", [200.0, 1e3, 2e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [4, 16, 48])
def test_error_of_the_gradient_is_that_of_floats(depth: int, dtype: torch.dtype, outlier: float, by_hand: bool) -> None:
    """At most twice that of the same rule in floats with stored activations, both against float64."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(*(PreNorm() for _ in range(depth)))).to(dtype), tokens(outlier).to(dtype)
    floats = {"arithmetic": "float", "backward": "stored"}
    exact = gradient_of_others(mn.convert(copy.deepcopy(model).double(), x.double(), **floats), x.double())
    plain = gradient_of_others(mn.convert(model, x, **floats), x)
    net = mn.convert(model, streams=["0"]) if by_hand else mn.convert(model, x)
    for _ in range(2):  # the first pass, and one that knows it
        ours = gradient_of_others(net, x)
        assert (ours - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("outlier", [200.0, 2e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [4, 16])
def test_outliers_that_come_after_the_conversion(depth: int, dtype: torch.dtype, outlier: float, when: str) -> None:
    """In a training, or with weights that are loaded behind the conversion: from the third pass on as if known."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(*(PreNorm() for _ in range(depth)))).to(dtype), tokens(outlier).to(dtype)
    floats = {"arithmetic": "float", "backward": "stored"}
    exact = gradient_of_others(mn.convert(copy.deepcopy(model).double(), x.double(), **floats), x.double())
    plain = gradient_of_others(mn.convert(model, x, **floats), x)
    net, usual = mn.convert(model, tokens(1.0).to(dtype)), tokens(1.0).to(dtype)
    mn.set_range_check(net, when)
    for batch in (usual, usual, x, x, x):
        try:
            gradient_of_others(net, batch)
        except mn.StateRangeError:
            assert when == "backward"
    for _ in range(2):
        assert (gradient_of_others(net, x) - exact).norm() <= 2 * (plain - exact).norm()


def test_outliers_that_come_behind_two_passes_of_huge_values() -> None:
    """Which were huge as a whole: the second one, that is looked at, says nothing of those that come later."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(*(PreNorm() for _ in range(4)))), tokens(2e4)
    floats = {"arithmetic": "float", "backward": "stored"}
    exact = gradient_of_others(mn.convert(copy.deepcopy(model).double(), x.double(), **floats), x.double())
    plain = gradient_of_others(mn.convert(model, x, **floats), x)
    net, usual = mn.convert(model, tokens(1.0)), tokens(1.0)
    for batch in (usual, 1e6 * usual, 1e6 * usual, usual, usual, x, x, x):
        ours = gradient_of_others(net, batch)
    assert (ours - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("factor", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("gamma", [1 / 8, 9 / 10])
def test_one_pass_of_huge_values_costs_no_precision_for_good(gamma: float, factor: float, when: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(*(PreNorm() for _ in range(12)))), tokens(1.0)
    exact = mn.convert(copy.deepcopy(model).double(), x.double(), gamma=gamma, arithmetic="float", backward="stored")
    expected, net = gradient_of_others(exact, x.double()), mn.convert(model, x, gamma=gamma)
    mn.set_range_check(net, when)
    errors = []
    for step in range(14):
        handle = net[0][5].inner.register_forward_hook(lambda _, __, y: factor * y) if step in (3, 4) else None
        try:
            errors.append(float((gradient_of_others(net, x) - expected).norm() / expected.norm()))
        except mn.StateRangeError:
            assert when == "backward"
            errors.append(float("nan"))
        if handle is not None:
            handle.remove()
    assert max(errors[-4:]) <= 8 * errors[2]


class Spiking(nn.Module):
    """x + tanh(layer(x)), times ``factor``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(WIDTH, WIDTH), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).tanh() * self.factor


def errors_beside_spikes(
    dtype: torch.dtype,
    gamma: float,
    factor: float | Sequence[float],
    is_huge: Callable[[int], bool],
    *,
    last: float = 1.0,
) -> list[float]:
    """Of the gradients of usual passes, over those of the same rule in floats with stored activations."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Spiking() for _ in range(6))).to(dtype)
    floats = {"arithmetic": "float", "backward": "stored", "gamma": gamma, "streams": [""]}
    exact, plain = mn.convert(copy.deepcopy(model).double(), **floats), mn.convert(model, **floats)
    net, errors = mn.convert(model, streams=[""], gamma=gamma), []
    for step in range(40):
        x = torch.randn(8, WIDTH).to(dtype)
        found = []
        for each in (exact, plain, net):
            factors = [factor] if isinstance(factor, float) else factor
            for number, own in enumerate(factors, start=2):
                each[number].factor = own if is_huge(step) else 1.0
            each[-1].factor = last
            each.zero_grad(set_to_none=True)
            each(x.double() if each is exact else x).double().div(last).sin().sum().backward()
            found.append(torch.cat([parameter.grad.double().flatten() for parameter in each[:3].parameters()]))
        if not is_huge(step):
            errors.append(float((found[2] - found[0]).norm() / (found[1] - found[0]).norm()))
    return errors


@pytest.mark.parametrize("every", [10, 40], ids=["again and again", "once"])
@pytest.mark.parametrize("factor", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("gamma", [1 / 8, 9 / 10])
def test_half_types_keep_their_precision_beside_passes_of_huge_values(gamma: float, factor: float, every: int) -> None:
    """In the scale of these, usual values would have a bit or two, or none."""
    errors = errors_beside_spikes(torch.bfloat16, gamma, factor, lambda step: step % every == 5)
    assert max(errors) <= 4


def test_values_that_grow_over_several_blocks_leave_no_scale_behind() -> None:
    """Each block asks for a scale that is little coarser than what the one before it has asked for."""
    errors = errors_beside_spikes(torch.float16, 9 / 10, [3e3, 1e4], lambda step: step % 10 == 5)
    assert max(errors) <= 4


def test_an_early_scale_becomes_finer_in_front_of_a_later_one() -> None:
    """A scale holds to the next place that has one: the last block, whose values are large in every pass."""
    errors = errors_beside_spikes(torch.bfloat16, 1 / 8, 1e4, lambda step: step in (5, 6), last=1e4)
    before, behind = errors[:5], errors[-10:]
    assert max(behind) <= 2 * max(before)


def test_values_that_have_grown_for_good_are_played_again_twice(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net, x, found = mn.convert(nn.Sequential(*(Spiking() for _ in range(6))), streams=[""]), torch.randn(8, WIDTH), []
    for step in range(12):
        net[2].factor = 1e5 if step > 2 else 1.0
        caplog.clear()
        net(x).sum().backward()
        found += [step] if "played again" in caplog.text else []
    assert found == [3, 4]


def passes_played_again(
    net: nn.Module, huge: Callable[[int], bool], steps: int, caplog: pytest.LogCaptureFixture
) -> list[int]:
    """Which passes of a training, some of which have huge values in one block."""
    found, x = [], tokens(1.0)
    for step in range(steps):
        handle = net[0][5].inner.register_forward_hook(lambda _, __, y: 1e4 * y) if huge(step) else None
        caplog.clear()
        gradient_of_others(net, x)
        found += [step] if "played again" in caplog.text else []
        if handle is not None:
            handle.remove()
    return found


@pytest.mark.parametrize("every", [2, 3, 10])
def test_huge_values_that_keep_coming_have_few_passes_played_again(
    every: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    net = mn.convert(nn.Sequential(nn.Sequential(*(PreNorm() for _ in range(12)))), tokens(1.0))
    found = passes_played_again(net, lambda step: step % every == every - 1, 100, caplog)
    assert found[0] == every - 1, "else this tests nothing"
    assert len(found) <= 4


def test_a_resumed_training_waits_as_long_before_scales_become_finer(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = mn.convert(nn.Sequential(nn.Sequential(*(PreNorm() for _ in range(12)))), tokens(1.0))
    passes_played_again(net, lambda step: step % 10 == 9, 33, caplog)
    state = json.loads(json.dumps(mn.training_state(net)))
    fresh = copy.deepcopy(net)
    mn.load_training_state(fresh, state)
    for each in (net, fresh):
        passes_played_again(each, lambda step: step == 6, 20, caplog)
    assert mn.training_state(net) == mn.training_state(fresh)
    (scale,) = (stream["scale"] for stream in state["streams"].values())
    assert scale["wait"] > 0, "else this tests nothing"


def test_a_state_of_before_waits_for_nothing() -> None:
    net = mn.convert(nn.Sequential(nn.Sequential(*(PreNorm() for _ in range(12)))), tokens(1.0))
    state = mn.training_state(net)
    for stream in state["streams"].values():
        for name in ("spread_at", "looks_for_spread", "wait", "calm", "refined", "once"):
            del stream["scale"][name]
        stream["scale"]["reached"] = [[5, 20]]
    mn.load_training_state(net, state)
    for _ in range(2):
        gradient_of_others(net, tokens(1.0))
    (scale,) = (stream["scale"] for stream in mn.training_state(net)["streams"].values())
    assert scale["reached"][0][1] < 20


class Linear(nn.Module):
    """As many times as large where its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


@pytest.mark.parametrize(("factors", "is_told"), [((1, 0.1, 1, 0.1), False), ((1, 1e-3, 1e-3, 1, 1e-3), True)])
def test_a_pass_of_far_smaller_values_is_told_once(
    factors: tuple[float, ...], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The one behind it has a finer scale."""
    torch.manual_seed(0)
    x = torch.randn(8, WIDTH)
    net = mn.convert(nn.Sequential(*[Linear() for _ in range(6)]), x, gamma=1 / 2, backward="reversible")
    exact = mn.convert(mn.revert(copy.deepcopy(net)).double(), x.double(), gamma=1 / 2, backward="stored")
    errors = []
    with caplog.at_level("WARNING", logger="momentumnet"):
        for factor in factors:
            got, expected = net(factor * x), exact(factor * x.double()).detach()
            errors.append(float((got.detach() - expected).norm() / expected.norm()))
            got.sum().backward()
    assert len([record for record in caplog.records if "so much smaller" in record.message]) == is_told
    assert (errors[1] > 1e-4) == is_told
    assert errors[0] < 1e-5
    assert errors[2] < 1e-4


def test_a_pass_of_zeros_is_told_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its values are no smaller ones: there is nothing that its scale could be too coarse for."""
    torch.manual_seed(0)
    x = 1e6 * torch.randn(8, WIDTH)
    net = mn.convert(nn.Sequential(*[Linear() for _ in range(6)]), x, gamma=1 / 2, backward="reversible")
    with caplog.at_level("WARNING", logger="momentumnet"):
        for factor in (1, 0, 1):
            net(factor * x).sum().backward()
    assert not caplog.records
