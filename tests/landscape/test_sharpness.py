"""Sharpness against closed forms on quadratic forms, SAM's first step, and points of the ball."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import MomentumNetError
from momentumnet.landscape import sharpness
from momentumnet.optim import SAM
from tests.init.networks import network, small
from tests.landscape.reference import Quadratic, highest_rise, itself
from tests.models import Chain, ResidualMLP

SIZE = 7


def quadratic(eigenvalues: list[float], slope: float = 1.0) -> tuple[Quadratic, Tensor, Tensor]:
    """A model at a random point with that curvature, and the gradient and Hessian there."""
    torch.manual_seed(4)
    axes = torch.linalg.qr(torch.randn(SIZE, SIZE).double())[0]
    matrix = axes @ torch.diag(torch.tensor(eigenvalues).double()) @ axes.T
    return Quadratic(torch.randn(SIZE).double()), slope * torch.randn(SIZE).double(), (matrix + matrix.T) / 2


CURVATURES = {
    "convex": [0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 9.0],
    "saddle": [-6.0, -4.0, -1.0, 0.0, 1.0, 2.0, 3.0],
    "concave": [-9.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0],
}


@pytest.mark.parametrize("rho", [0.01, 0.3, 4.0])
@pytest.mark.parametrize("name", CURVATURES)
def test_quadratic_form(name: str, rho: float) -> None:
    model, slope, matrix = quadratic(CURVATURES[name])
    w = torch.cat([model.head, model.tail]).detach()
    expected = highest_rise(slope + matrix @ w, matrix, rho)
    assert sharpness(model, itself, ((slope, matrix), None), rho, steps=400) == pytest.approx(expected, rel=1e-6)
    default = sharpness(model, itself, ((slope, matrix), None), rho)
    assert default == pytest.approx(expected, rel=1e-3)
    if name == "convex":  # where no step is taken back, and steps of constant length would still be 1e-5 off
        assert default == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_adaptive_on_a_quadratic_form(rho: float) -> None:
    """In u = e / T the ball is round, the gradient T g and the Hessian T A T."""
    model, slope, matrix = quadratic(CURVATURES["saddle"])
    w = torch.cat([model.head, model.tail]).detach()
    scale = w.abs() + 0.2
    expected = highest_rise(scale * (slope + matrix @ w), scale[:, None] * matrix * scale, rho)
    found = sharpness(model, itself, ((slope, matrix), None), rho, adaptive=True, eta=0.2, steps=400)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("curvature", [-0.5, 0.0, 3.0])
def test_round_quadratic_form(curvature: float) -> None:
    """rho |g| + c rho^2 / 2; with c = 0 a linear function. Both are found by the first step."""
    model, slope, matrix = quadratic([curvature] * SIZE)
    g = slope + curvature * torch.cat([model.head, model.tail]).detach()
    expected = 0.3 * float(g.norm()) + curvature * 0.3**2 / 2
    assert sharpness(model, itself, ((slope, matrix), None), 0.3, steps=1) == pytest.approx(expected, rel=1e-12)
    assert sharpness(model, itself, ((slope, matrix), None), 0.3) == pytest.approx(expected, rel=1e-12)


def test_minimum_without_a_slope() -> None:
    """The gradient is zero, and the rise is rho^2 lambda / 2."""
    model, slope, matrix = quadratic(CURVATURES["convex"], slope=0.0)
    nn.init.zeros_(model.head), nn.init.zeros_(model.tail)
    found = sharpness(model, itself, ((slope, matrix), None), 0.5, steps=100)
    assert found == pytest.approx(0.5**2 * 9 / 2, rel=1e-6)


def test_maximum() -> None:
    """Nothing is higher, so the rise is that of standing still."""
    model, slope, matrix = quadratic(CURVATURES["concave"], slope=0.0)
    nn.init.zeros_(model.head), nn.init.zeros_(model.tail)
    assert sharpness(model, itself, ((slope, matrix), None), 0.5) == 0


def test_ends_on_top() -> None:
    """The first step leads from -rho to the maximum at 0, where there is no direction to go on."""
    model = Quadratic(torch.tensor([-0.25, 0.0]).double())
    inputs = torch.zeros(2).double(), -torch.eye(2).double()
    assert sharpness(model, itself, (inputs, None), 0.25) == 0.25**2 / 2


def test_ends_where_it_no_longer_moves() -> None:
    """On a linear function that is after the first step."""
    calls = []

    def counting(output: Tensor, target: object) -> Tensor:
        calls.append(output)
        return output

    model, slope, matrix = quadratic([0.0] * SIZE)
    sharpness(model, counting, ((slope, matrix), None), 0.25)
    assert len(calls) == 2


@pytest.mark.parametrize(("starts", "highest"), [(1, 0.6), (8, 1.4)])
def test_further_starts_find_the_higher_of_two_maxima(starts: int, highest: float) -> None:
    """w / 10 + w^2 - w^3 / 2 on [-1, 1]: from 0 the slope leads to w = 1, and the maximum is at -1."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)

    def loss(w: Tensor, target: object) -> Tensor:
        return (w / 10 + w**2 - w**3 / 2).sum()

    found = sharpness(model, loss, (torch.ones(1, 1).double(), None), 1.0, starts=starts)
    assert found == pytest.approx(highest, rel=1e-9)


@pytest.mark.parametrize("adaptive", [False, True])
def test_first_step_is_sams(adaptive: bool) -> None:
    model, (batch, *_) = small()
    moved = copy.deepcopy(model)
    optimizer = SAM(moved.parameters(), torch.optim.SGD, lr=0.1, rho=0.05, adaptive=adaptive)
    before = F.cross_entropy(moved(batch[0]), batch[1])
    before.backward()
    optimizer.first_step()
    rise = (F.cross_entropy(moved(batch[0]), batch[1]) - before).item()
    assert sharpness(model, F.cross_entropy, batch, 0.05, steps=1, adaptive=adaptive) == pytest.approx(rise, rel=1e-9)


def test_no_point_of_the_ball_is_higher() -> None:
    model, (batch, *_) = small()
    found = sharpness(model, F.cross_entropy, batch, 2.0, steps=100)
    start = [p.detach().clone() for p in model.parameters()]
    rises = []
    with torch.no_grad():
        base = F.cross_entropy(model(batch[0]), batch[1])
        for _ in range(500):
            e = torch.randn(sum(p.numel() for p in start)).double()
            parts = (2.0 * e / e.norm()).split([p.numel() for p in start])
            for p, w, part in zip(model.parameters(), start, parts, strict=True):
                p.copy_(w + part.view_as(w))
            rises.append(float(F.cross_entropy(model(batch[0]), batch[1]) - base))
    assert found > max(rises)


def test_chunks_are_the_whole_batch() -> None:
    model, (batch, *_) = small(count=7)
    whole = sharpness(model, F.cross_entropy, batch, 0.3)
    assert sharpness(model, F.cross_entropy, batch, 0.3, chunk=3) == pytest.approx(whole, rel=1e-9)


def test_converted_equals_stored() -> None:
    found = []
    for backward in ("reversible", "stored"):
        torch.manual_seed(3)
        model = mn.convert(Chain([ResidualMLP() for _ in range(4)]), torch.randn(2, 16), gamma=0.9, backward=backward)
        found.append(sharpness(model, F.cross_entropy, (torch.randn(4, 16), torch.randint(4, (4,))), 0.5))
    assert found[0] == found[1] > 0


def test_dropout_is_one_function() -> None:
    """With one mask throughout, a linear function of the weights rises by rho |g|; the mask is the generator's next."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 1, bias=False)), torch.randn(1, 50)
    state = torch.get_rng_state()
    g = model[0](x)
    torch.set_rng_state(state)
    found = sharpness(model, lambda y, _: y.sum(), (x, None), 0.5)
    assert found == pytest.approx(0.5 * float(g.norm()), rel=1e-5)


def test_half_precision_parameters() -> None:
    model = nn.Linear(8, 1, bias=False).bfloat16()
    x = torch.randn(1, 8).bfloat16()
    found = sharpness(model, lambda y, _: y.float().sum(), (x, None), 4.0)
    assert found == pytest.approx(4 * float(x.float().norm()), rel=0.03)


def test_frozen_parameters_stand_still() -> None:
    model = nn.Linear(3, 1)
    model.weight.requires_grad_(False)
    assert sharpness(model, lambda y, _: y.sum(), (torch.randn(2, 3), None), 0.5) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho must be a finite number above 0"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"starts": 0}, "starts must be a whole number"),
        ({"adaptive": True, "eta": 0.0}, "eta must be"),
        ({"chunk": 0}, "chunk must be a whole number"),
    ],
)
def test_options(options: dict[str, float], message: str) -> None:
    model, (batch, *_) = small()
    with pytest.raises(ValueError, match=message):
        sharpness(model, F.cross_entropy, batch, **options)


def test_what_cannot_be_measured() -> None:
    model, (batch, *_) = small()
    with pytest.raises(MomentumNetError, match="the loss is nan at the parameters"):
        sharpness(model, lambda y, t: y.sum() * torch.nan, batch)
    with pytest.raises(MomentumNetError, match="the loss is inf at a point of the ball"):
        sharpness(nn.Linear(1, 1, bias=False), lambda y, t: (1e4 * y).exp().sum(), (torch.ones(1, 1) / 1e4, None), 1e3)
    with pytest.raises(MomentumNetError, match="depends on none of the trainable parameters"):
        sharpness(model, lambda y, t: y.detach().sum(), batch)
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        sharpness(copy.deepcopy(model).requires_grad_(False), F.cross_entropy, batch)
    with pytest.raises(TypeError, match=r"pair \(inputs, target\), got Tensor"):
        sharpness(model, F.cross_entropy, batch[0])
    with pytest.raises(ValueError, match="complex parameters cannot be measured: weight"):
        sharpness(nn.Linear(2, 2, dtype=torch.cfloat), F.cross_entropy, batch)
    with pytest.raises(ValueError, match="must return a scalar, got float"):
        sharpness(model, lambda y, t: 0.0, batch)


@pytest.mark.parametrize("name", ["vit", "lstm", "embedding", "group_norm"])
def test_networks(name: str) -> None:
    model, batches = network(name)
    assert sharpness(model, F.cross_entropy, batches[0], 0.05, steps=3) > 0
