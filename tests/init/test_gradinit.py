"""GradInit against finite differences in float64, and against its Algorithm 1 written out with plain autograd."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from momentumnet.init import InitReport, gradinit_
from momentumnet.init.first_step import FirstStep
from momentumnet.init.gradinit import after_first_step
from momentumnet.loss.derivatives import Gradient, ParametricLoss, inner_products, norm, twice_differentiable
from tests.init.gradinit_cases import ALWAYS_MET, NEVER_MET, OPTIMIZERS
from tests.init.networks import (
    CLASSES,
    NETWORKS,
    Batches,
    Spectral,
    assert_unchanged,
    converted,
    fails_in_call,
    network,
    small,
    state_of,
)
from tests.models import DepthDropBlock, ResidualMLP


def plain_gradient(model: nn.Module, theta: dict[str, Tensor], batch: tuple[Any, Tensor]) -> list[Tensor]:
    loss = F.cross_entropy(functional_call(model, theta, batch[0]), batch[1])
    return list(torch.autograd.grad(loss, list(theta.values()), create_graph=True))


def plain_figures(
    model: nn.Module, m: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], optimizer: str, eta: float
) -> tuple[Tensor, Tensor]:
    """(||g||_p, L(theta_m - eta A[g]; S2)) as functions of the scales, in one autograd graph."""
    theta = {name: scale * p.detach() for (name, p), scale in zip(model.named_parameters(), m, strict=True)}
    g = plain_gradient(model, theta, first)
    entries = torch.cat([d.flatten() for d in g])
    size = entries.norm() if optimizer == "sgd" else entries.abs().sum()
    steps = g if optimizer == "sgd" else [d.sign() for d in g]
    stepped = {name: t - eta * a for (name, t), a in zip(theta.items(), steps, strict=True)}
    return size, F.cross_entropy(functional_call(model, stepped, second[0]), second[1])


def plain_gradinit(
    model: nn.Module, batches: Batches, optimizer: str, eta: float, gamma: float, lr: float, steps: int
) -> tuple[Tensor, list[str]]:
    """Algorithm 1 with Adam written out; the scales, and the case of each step."""
    m = torch.ones(len(list(model.parameters())), dtype=torch.float64)
    moments = {case: [torch.zeros_like(m), torch.zeros_like(m), 0] for case in ("norm", "loss")}
    drawn, cases = 0, []
    for _ in range(steps):
        x, y = batches[drawn % len(batches)]
        fresh_x, fresh_y = batches[(drawn + 1) % len(batches)]
        half, rest = len(x) // 2, len(x) - len(x) // 2
        second = torch.cat([x[:half], fresh_x[:rest]]), torch.cat([y[:half], fresh_y[:rest]])
        m.requires_grad_()
        size, objective = plain_figures(model, m, (x, y), second, optimizer, eta)
        case, goal = ("norm", size) if size > gamma else ("loss", objective)
        slope = torch.autograd.grad(goal, m)[0].clamp(-1, 1)
        first_moment, second_moment, count = moments[case]
        first_moment, second_moment = 0.9 * first_moment + 0.1 * slope, 0.999 * second_moment + 0.001 * slope**2
        count += 1
        moments[case] = [first_moment, second_moment, count]
        root = (second_moment / (1 - 0.999**count)).sqrt() + 1e-8
        m = (m.detach() - lr * first_moment / (1 - 0.9**count) / root).clamp(min=0.01)
        cases.append(case)
        drawn += 1 if case == "norm" else 2
    return m, cases


def scales_of(report: InitReport) -> list[float]:
    return list(report.scales.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("gamma", "steps", "cases"),
    [(NEVER_MET, 1, {"norm"}), (ALWAYS_MET, 1, {"loss"}), (NEVER_MET, 4, {"norm"}), (ALWAYS_MET, 4, {"loss"})],
)
def test_iterations_by_hand(optimizer: str, gamma: float, steps: int, cases: set[str]) -> None:
    model, batches = small(count=5)
    expected, seen = plain_gradinit(model, batches, optimizer, 0.3, gamma, 0.05, steps)
    report = gradinit_(
        model, F.cross_entropy, batches, optimizer=optimizer, step_size=0.3, gradient_norm=gamma, lr=0.05, steps=steps,
        progress=False,
    )  # fmt: skip
    assert set(seen) == cases
    assert len(report.losses) == seen.count("loss")
    assert scales_of(report) == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_both_cases_in_turn(optimizer: str) -> None:
    """A bound that the first gradients exceed and the later ones meet."""
    model, batches = small(count=5)
    first = gradinit_(copy.deepcopy(model), F.cross_entropy, batches, optimizer=optimizer, steps=1, progress=False)
    gamma = 0.98 * first.gradient_norms[0]
    expected, seen = plain_gradinit(model, batches, optimizer, 0.01, gamma, 0.02, 12)
    report = gradinit_(
        model, F.cross_entropy, batches, optimizer=optimizer, step_size=0.01, gradient_norm=gamma, lr=0.02, steps=12,
        progress=False,
    )  # fmt: skip
    assert set(seen) == {"norm", "loss"}
    assert [size <= gamma for size in report.gradient_norms] == [case == "loss" for case in seen]
    assert f"in {seen.count('loss')} of 12 steps" in str(report)
    assert scales_of(report) == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_derivatives_against_finite_differences(optimizer: str) -> None:
    model, batches = small()
    first, second = batches[:2]
    rule, loss = FirstStep.of(optimizer, 0.2), ParametricLoss(model, F.cross_entropy)
    theta = loss.leaves()
    gradient = Gradient(loss, theta, first, products=True)
    objective, derivative = after_first_step(loss, theta, gradient, second, rule)
    again = Gradient(loss, theta, first, products=True)
    size = norm(again.value, rule.order)
    slopes = inner_products(derivative, theta)
    norm_slopes = inner_products(again.times(rule.norm_derivative(again.value, size)), theta)

    def figures(m: Tensor) -> tuple[float, float]:
        values = plain_figures(model, m.requires_grad_(), first, second, optimizer, 0.2)
        return float(values[0].detach()), float(values[1].detach())

    ones, h = torch.ones(len(theta), dtype=torch.float64), 1e-6
    assert (size, objective) == pytest.approx(figures(ones))
    for index in range(len(theta)):
        ahead, behind = ones.detach().clone(), ones.detach().clone()
        ahead[index] += h
        behind[index] -= h
        by_differences = [(a - b) / (2 * h) for a, b in zip(figures(ahead), figures(behind), strict=True)]
        assert [float(norm_slopes[index]), float(slopes[index])] == pytest.approx(by_differences, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, optimizer: str) -> None:
    model, batches = network(name)
    before = state_of(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    report = gradinit_(model, F.cross_entropy, batches, optimizer=optimizer, gradient_norm=1e3, steps=2, progress=False)
    assert {n for n, scale in report.scales.items() if scale != 1} <= trainable
    assert sum(report.scales[n] != 1 for n in trainable) > len(trainable) / 2
    learned = trainable | ({"head.weight"} if name == "embedding" else set())  # its second name
    assert_unchanged(model, {n: value if n in learned else before[n] for n, value in model.state_dict().items()})
    for n in trainable:
        torch.testing.assert_close(model.state_dict()[n], report.scales[n] * before[n])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    copy.deepcopy(model)


@pytest.mark.parametrize("block", [ResidualMLP, DepthDropBlock])
@pytest.mark.parametrize("gamma", [NEVER_MET, ALWAYS_MET])
def test_converted_equals_stored(block: Callable[[], nn.Module], gamma: float) -> None:
    results = []
    for backward in ("reversible", "stored"):
        torch.manual_seed(3)
        model = converted(block, backward)
        batches = [(torch.randn(4, 16), torch.randint(4, (4,))) for _ in range(2)]
        results.append(gradinit_(model, F.cross_entropy, batches, steps=3, gradient_norm=gamma, progress=False))
    assert results[0].losses == pytest.approx(results[1].losses, rel=1e-6)
    assert results[0].scales == pytest.approx(results[1].scales, rel=1e-6)


def test_one_scale_for_a_tied_parameter() -> None:
    model, batches = network("embedding")
    report = gradinit_(model, F.cross_entropy, batches, steps=2, progress=False)
    assert list(report.scales) == ["embedding.weight"]
    assert model.head.weight is model.embedding.weight


def test_the_smallest_scale() -> None:
    model, batches = small()
    report = gradinit_(model, F.cross_entropy, batches, steps=3, lr=0.5, min_scale=0.2, gradient_norm=NEVER_MET)
    assert min(scales_of(report)) == pytest.approx(0.2)


def test_zero_stays_zero() -> None:
    model, batches = small()
    nn.init.zeros_(model[0].bias)
    report = gradinit_(model, F.cross_entropy, batches, steps=2, progress=False)
    assert report.scales["0.bias"] == 1
    assert not model[0].bias.any()


def test_the_same_under_a_seed() -> None:
    reports = []
    for _ in range(2):
        model, batches = network("dropout")
        torch.manual_seed(1)
        reports.append(gradinit_(model, F.cross_entropy, batches, steps=3, progress=False))
    assert reports[0] == reports[1]


@pytest.mark.parametrize(("error", "raised"), [(None, FloatingPointError), (KeyboardInterrupt, KeyboardInterrupt)])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_failing_midway_changes_nothing(
    call: int, error: type[BaseException] | None, raised: type[BaseException], checkpoint: bool
) -> None:
    model, batches = network("resnet18")
    before = state_of(model)
    message = rf"step {1 + call // 3}: the .* is nan.*Lower step_size" if error is None else None
    with pytest.raises(raised, match=message):
        gradinit_(
            model, fails_in_call(call, error), batches, steps=3, gradient_norm=1e3, checkpoint=checkpoint,
            progress=False,
        )  # fmt: skip
    assert_unchanged(model, before)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of 'sgd', 'adam', got 'lion'"),
        ({"step_size": 0.0}, "step_size must be .*, got 0.0"),
        ({"gradient_norm": math.inf}, "gradient_norm must be .*, got inf"),
        ({"lr": -1.0}, "lr must be .*, got -1.0"),
        ({"min_scale": 0.0}, "min_scale must be .*, got 0.0"),
        ({"steps": 0}, "steps must be .*, got 0"),
        ({"steps": True}, "steps must be .*, got True"),
        ({"chunk": 0}, "chunk must be .*, got 0"),
    ],
)
def test_options(option: dict[str, Any], message: str) -> None:
    model, batches = small()
    with pytest.raises(ValueError, match=message):
        gradinit_(model, F.cross_entropy, batches, **option)


def test_user_settings_come_back() -> None:
    model, batches = network("lstm")
    before = torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()
    with torch.no_grad():
        gradinit_(model, F.cross_entropy, batches, steps=1, progress=False)
        assert not torch.is_grad_enabled()
    assert (torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()) == before
    assert all(weight is own for weight, own in zip(model.lstm._flat_weights, model.lstm.parameters(), strict=True))


def test_second_derivatives_of_attention_need_no_choice_of_the_user() -> None:
    model, batches = network("vit")
    loss = ParametricLoss(model, F.cross_entropy)
    with twice_differentiable(model):
        theta = loss.leaves()
        gradient = Gradient(loss, theta, batches[0], products=True)
        assert all(torch.isfinite(p).all() for p in gradient.times(gradient.value))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("gamma", [NEVER_MET, ALWAYS_MET])
def test_complex_parameters_count_as_pairs_of_real_ones(optimizer: str, gamma: float) -> None:
    batches = [(torch.randn(8, 5, dtype=torch.float64), torch.randint(CLASSES, (8,))) for _ in range(3)]
    reports = [
        gradinit_(
            Spectral(paired=paired), F.cross_entropy, batches, optimizer=optimizer, gradient_norm=gamma, lr=0.05,
            steps=6, progress=False,
        )
        for paired in (False, True)
    ]  # fmt: skip
    assert scales_of(reports[0]) == pytest.approx(scales_of(reports[1]), rel=1e-9)
    assert reports[0].gradient_norms == pytest.approx(reports[1].gradient_norms, rel=1e-9)
