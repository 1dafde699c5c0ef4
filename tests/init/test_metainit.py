"""MetaInit against closed forms, finite differences in float64, and the rule of its Algorithm 1."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from momentumnet.init import gradient_quotient, metainit_
from momentumnet.init.composite_norms import composite_norms
from momentumnet.init.metainit import ScaledWeight, differentiable_quotient
from momentumnet.loss.derivatives import ParametricLoss, gradient_of
from tests.init.networks import (
    CLASSES,
    NETWORKS,
    Spectral,
    assert_unchanged,
    converted,
    fails_in_call,
    network,
    small,
    state_of,
)
from tests.models import ResidualMLP

EPS = 1e-5


@pytest.mark.parametrize("curvature", [0.0, 0.3, 2.0])
def test_quotient_of_a_parabola_is_its_curvature(curvature: float) -> None:
    """L = k w^2 / 2 + w: g = k w + 1, H g = k g, so |(g - k g) / g - 1| = k."""
    model = nn.Linear(1, 1, bias=False).double()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (curvature * output.square() / 2 + output).sum()

    assert gradient_quotient(model, loss, (torch.ones(1, 1).double(), None), eps=1e-13) == pytest.approx(curvature)


def by_differences(model: nn.Module, batch: tuple[Tensor, Tensor], h: float = 1e-6) -> float:
    """Equation 1 with H g by central differences of gradients."""
    names, parameters = zip(*model.named_parameters(), strict=True)

    def gradient(theta: list[Tensor]) -> list[Tensor]:
        theta = [t.detach().requires_grad_() for t in theta]
        loss = F.cross_entropy(functional_call(model, dict(zip(names, theta, strict=True)), batch[0]), batch[1])
        return list(torch.autograd.grad(loss, theta))

    g = gradient(list(parameters))
    ahead = gradient([p + h * d for p, d in zip(parameters, g, strict=True)])
    behind = gradient([p - h * d for p, d in zip(parameters, g, strict=True)])
    terms = []
    for d, a, b in zip(g, ahead, behind, strict=True):
        hg = (a - b) / (2 * h)
        terms.append(((d - hg) / (d + torch.where(d >= 0, EPS, -EPS)) - 1).abs().flatten())
    return float(torch.cat(terms).mean())


def test_quotient_against_finite_differences() -> None:
    model, batches = small()
    assert gradient_quotient(model, F.cross_entropy, batches[0]) == pytest.approx(
        by_differences(model, batches[0]), rel=1e-5
    )


def slope_by_differences(model: nn.Module, index: int, batch: tuple[Tensor, Tensor], h: float = 1e-6) -> float:
    """The derivative of the gradient quotient with respect to the norm of one weight."""
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        weight = list(moved.parameters())[index]
        with torch.no_grad():
            weight.mul_((weight.norm() + sign * h) / weight.norm())
        values.append(gradient_quotient(moved, F.cross_entropy, batch))
    return (values[0] - values[1]) / (2 * h)


def test_derivative_by_norms_against_finite_differences() -> None:
    model, batches = small()
    loss = ParametricLoss(model, F.cross_entropy)
    theta = loss.leaves()
    derivative = gradient_of(differentiable_quotient(loss, theta, batches[0], EPS)[0], theta)
    for index in (0, 2, 4):
        weight = theta[index].detach()
        slope = float((derivative[index] * weight).sum() / weight.norm())
        assert slope == pytest.approx(slope_by_differences(model, index, batches[0]), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("change", "steps", "norm"), [(-0.01, 400, 28.0), (-0.75, 43, -0.25), (-0.75, 44, 0.5)])
def test_small_changes_of_a_norm_add_up(dtype: torch.dtype, change: float, steps: int, norm: float) -> None:
    """A 3000th is below half a bit of bfloat16. Below zero the sign turns, and the norm grows again."""
    parameter = nn.Parameter(torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    direction = parameter.detach() / parameter.detach().norm()
    parameter.data = (32 * direction).to(dtype)
    weight = ScaledWeight(parameter)
    for _ in range(steps):
        weight.change_norm(change)
    tolerance = max(32 * torch.finfo(dtype).eps, 1e-10)
    assert (parameter.detach().double() - norm * direction).norm() <= tolerance


def test_two_steps_by_hand() -> None:
    """Signs of the slopes by finite differences; velocities and norms by the rule."""
    model, batches = small(batches=2)
    expected = copy.deepcopy(model)
    velocities = dict.fromkeys((0, 2, 4), 0.0)
    for batch in batches:
        slopes = {index: slope_by_differences(expected, index, batch) for index in velocities}
        for index, slope in slopes.items():
            weight = list(expected.parameters())[index]
            velocities[index] = 0.5 * velocities[index] - 0.03 * (1 if slope > 0 else -1)
            with torch.no_grad():
                weight.mul_((weight.norm() + velocities[index]) / weight.norm())
    report = metainit_(model, F.cross_entropy, batches, steps=2, lr=0.03, momentum=0.5, progress=False)
    for (name, got), value in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, value, rtol=1e-12, atol=0, msg=name)
    assert {name for name, scale in report.scales.items() if scale != 1} == {"0.weight", "2.weight", "4.weight"}
    assert len(report.losses) == len(report.gradient_norms) == 2


def test_the_quotient_falls() -> None:
    model, batches = small(count=32, batches=1)
    report = metainit_(model, F.cross_entropy, batches, steps=40, lr=0.02, progress=False)
    assert report.losses[-1] < 0.6 * report.losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    model, batches = network(name)
    before = state_of(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad and p.dim() >= 2}
    report = metainit_(model, F.cross_entropy, batches, steps=2, progress=False)
    assert {n for n, scale in report.scales.items() if scale != 1} <= trainable
    assert any(report.scales[n] != 1 for n in trainable)
    learned = trainable | ({"head.weight"} if name == "embedding" else set())  # its second name
    assert_unchanged(model, {n: value if n in learned else before[n] for n, value in model.state_dict().items()})
    assert model.training
    copy.deepcopy(model)(*_arguments(batches[0][0]))


def _arguments(inputs: object) -> tuple[object, ...]:
    if isinstance(inputs, dict):
        return tuple(inputs.values())
    return inputs if isinstance(inputs, tuple) else (inputs,)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("training", [True, False])
def test_norms_in_elementary_operations_compute_the_same(norm: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(norm(3, affine=True, track_running_stats=True)).double(), torch.randn(4, 3, 5, 5).double()
    model(x)
    nn.init.normal_(model[0].weight)
    model.train(training)
    expected, before = model.eval()(x) if not training else copy.deepcopy(model)(x), state_of(model)
    with composite_norms(model):
        torch.testing.assert_close(model(x), expected)
    before["0.num_batches_tracked"] = model[0].num_batches_tracked  # the module counts its calls itself
    assert_unchanged(model, before)
    assert "forward" not in model[0].__dict__


def test_converted_equals_stored() -> None:
    results = []
    for backward in ("reversible", "stored"):
        torch.manual_seed(3)
        model = converted(ResidualMLP, backward)
        batches = [(torch.randn(4, 16), torch.randint(4, (4,)))]
        results.append(metainit_(model, F.cross_entropy, batches, steps=2, progress=False))
    assert results[0].losses == pytest.approx(results[1].losses, rel=1e-5)
    assert results[0].scales == pytest.approx(results[1].scales, rel=1e-5)


def test_the_same_under_a_seed() -> None:
    reports = []
    for _ in range(2):
        model, batches = network("dropout")
        torch.manual_seed(1)
        reports.append(metainit_(model, F.cross_entropy, batches, steps=2, progress=False))
    assert reports[0] == reports[1]


@pytest.mark.parametrize(("error", "raised"), [(None, FloatingPointError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_failing_midway_changes_nothing(error: type[BaseException] | None, raised: type[BaseException]) -> None:
    model, batches = network("resnet18")
    before = state_of(model)
    with pytest.raises(raised, match="step 2.*nan.*lower lr" if error is None else None):
        metainit_(model, fails_in_call(2, error), batches, steps=3, progress=False)
    assert_unchanged(model, before)


@pytest.mark.parametrize("option", [{"steps": 0}, {"lr": -1.0}, {"momentum": 1.0}, {"eps": 0.0}])
def test_options(option: dict[str, float]) -> None:
    model, batches = small()
    with pytest.raises(ValueError, match=f"{next(iter(option))} must .*, got"):
        metainit_(model, F.cross_entropy, batches, **option)


def test_nothing_to_learn() -> None:
    model, batches = small()
    with pytest.raises(ValueError, match="no trainable parameter has two dimensions"):
        metainit_(nn.LayerNorm(3).double(), lambda output, target: output.sum(), batches)
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        metainit_(model.requires_grad_(False), F.cross_entropy, batches)
    with pytest.raises(ValueError, match=r"must return a scalar, got a tensor of shape \(6,\)"):
        gradient_quotient(small()[0], lambda output, target: output.sum(1), batches[0])


def test_complex_parameters_count_as_pairs_of_real_ones() -> None:
    batches = [(torch.randn(8, 5, dtype=torch.float64), torch.randint(CLASSES, (8,))) for _ in range(3)]
    reports = [
        metainit_(Spectral(paired=paired), F.cross_entropy, batches, steps=4, progress=False)
        for paired in (False, True)
    ]
    assert reports[0].losses == pytest.approx(reports[1].losses, rel=1e-9)
    assert dict(reports[0].scales) == pytest.approx(dict(reports[1].scales), rel=1e-9)
