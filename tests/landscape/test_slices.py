"""Lines and planes against the loss of a network that was moved by hand."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn

from momentumnet.landscape import LossLine, LossPlane, filter_normalised_direction, loss_along, loss_plane
from tests.init.networks import network, small

Batch = tuple[Tensor, Tensor]


def moved_loss(model: nn.Module, batch: Batch, *moves: tuple[float, Mapping[str, Tensor]]) -> float:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            for distance, direction in moves:
                parameter.add_(direction.get(name, torch.zeros_like(parameter)), alpha=distance)
        return float(F.cross_entropy(moved(batch[0]), batch[1]))


@pytest.mark.parametrize("chunk", [None, 4])
def test_line(chunk: int | None) -> None:
    model, (batch, *_) = small()
    direction = filter_normalised_direction(model, vectors=True)
    distances = [-1.5, 0.0, 0.25, 3.0]
    line = loss_along(model, F.cross_entropy, batch, direction, distances=distances, chunk=chunk)
    assert line.distances.tolist() == distances
    assert line.losses.tolist() == pytest.approx([moved_loss(model, batch, (t, direction)) for t in distances])


def test_line_of_some_parameters() -> None:
    model, (batch, *_) = small()
    direction = {"2.weight": torch.randn(5, 5)}  # the model is of float64
    line = loss_along(model, F.cross_entropy, batch, direction, distances=iter(torch.tensor([0.5])))
    assert line.losses.tolist() == pytest.approx([moved_loss(model, batch, (0.5, direction))])


def test_line_to_another_network() -> None:
    model, (batch, *_) = small()
    torch.manual_seed(9)
    other = copy.deepcopy(model)
    for p in other.parameters():
        nn.init.normal_(p)
    ends = dict(model.named_parameters()), dict(other.named_parameters())
    direction = {name: ends[1][name] - ends[0][name] for name in ends[0]}  # with a graph of its own
    line = loss_along(model, F.cross_entropy, batch, direction, distances=[1.0])
    assert line.losses.tolist() == pytest.approx([F.cross_entropy(other(batch[0]), batch[1]).item()])


def test_converted_line() -> None:
    model, (batch, *_) = network("converted")
    direction = filter_normalised_direction(model)
    line = loss_along(model, F.cross_entropy, batch, direction, distances=[-0.5, 0.0, 0.5])
    expected = [moved_loss(model, batch, (t, direction)) for t in (-0.5, 0.0, 0.5)]
    assert line.losses.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("given", [False, True])
def test_plane(given: bool) -> None:
    model, (batch, *_) = small()
    generator = torch.Generator().manual_seed(0 if not given else 5)
    first, second = (filter_normalised_direction(model, generator=generator) for _ in range(2))
    plane = loss_plane(model, F.cross_entropy, batch, directions=(first, second) if given else None, span=0.5, points=5)
    steps = [-0.5, -0.25, 0, 0.25, 0.5]
    assert plane.first.tolist() == plane.second.tolist() == steps
    expected = [[moved_loss(model, batch, (a, first), (b, second)) for b in steps] for a in steps]
    torch.testing.assert_close(plane.losses, torch.tensor(expected, dtype=torch.float64))
    assert not torch.allclose(plane.losses, plane.losses.T)


def test_plane_of_another_generator() -> None:
    model, (batch, *_) = small()
    default = loss_plane(model, F.cross_entropy, batch, points=2)
    other = loss_plane(model, F.cross_entropy, batch, points=2, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(default.losses, other.losses)


@pytest.mark.parametrize("points", [3, 7, 11, 21])
def test_the_middle_is_the_network_itself(points: int) -> None:
    model, (batch, *_) = small()
    plane = loss_plane(model, F.cross_entropy, batch, span=0.3, points=points)
    assert plane.first[points // 2] == 0
    assert plane.losses[points // 2, points // 2] == F.cross_entropy(model(batch[0]), batch[1])


def test_values_that_are_not_finite() -> None:
    model = nn.Linear(1, 1, bias=False)
    line = loss_along(
        model, lambda y, _: y.exp().sum(), (torch.ones(1, 1), None), {"weight": torch.ones(1, 1)}, distances=[0, 1e3]
    )
    assert line.losses.isfinite().tolist() == [True, False]


def test_one_mask_throughout() -> None:
    """In training mode with dropout, the same distance gives the same loss, that of the generator's next numbers."""
    model, (batch, *_) = network("dropout")
    state = torch.get_rng_state()
    line = loss_along(model, F.cross_entropy, batch, {}, distances=[0.0, 0.0, 1.0])
    assert torch.equal(torch.get_rng_state(), state)
    assert line.losses.tolist() == [F.cross_entropy(model(batch[0]), batch[1]).item()] * 3


def test_what_does_not_fit() -> None:
    model, (batch, *_) = small()
    direction = filter_normalised_direction(model)
    with pytest.raises(ValueError, match=r"the direction names no\.such, which the model has not"):
        loss_along(model, F.cross_entropy, batch, {**direction, "no.such": torch.ones(1)}, distances=[1])
    with pytest.raises(ValueError, match=r"direction\['0.bias'\] has shape \(2,\), the parameter \(5,\)"):
        loss_along(model, F.cross_entropy, batch, {"0.bias": torch.ones(2)}, distances=[1])
    with pytest.raises(ValueError, match="directions must be two, got 3"):
        loss_plane(model, F.cross_entropy, batch, directions=(direction,) * 3)
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        loss_plane(model, F.cross_entropy, batch, points=1)
    with pytest.raises(ValueError, match="span must be"):
        loss_plane(model, F.cross_entropy, batch, span=-1.0)


LINE = LossLine(torch.tensor([-1.0, 0, 1]), torch.tensor([2.0, 1, torch.inf]))
PLANE = LossPlane(torch.tensor([-1.0, 0, 1]), torch.tensor([-1.0, 0, 1]), torch.arange(9.0).view(3, 3))


@pytest.mark.parametrize("result", [LINE, PLANE])
def test_plots(result: LossLine | LossPlane, tmp_path: Path) -> None:
    result.plot(tmp_path / "a.png")
    result.plot(str(tmp_path / "a.svg"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_contours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib wants the first direction in the columns; what is not finite is left out."""
    drawn = []
    contour = Axes.contour
    monkeypatch.setattr(Axes, "contour", lambda *args, **kwargs: drawn.append(args[3]) or contour(*args, **kwargs))
    losses = PLANE.losses.clone()
    losses[0, 2] = torch.inf
    LossPlane(PLANE.first, PLANE.second, losses).plot(tmp_path / "a.png")
    expected = [[0, 3, 6], [1, 4, 7], [torch.nan, 5, 8]]
    torch.testing.assert_close(torch.tensor(drawn[0]), torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize("result", [LINE, PLANE])
def test_without_matplotlib(result: LossLine | LossPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=rf"{type(result).__name__}.plot needs matplotlib: pip install"):
        result.plot(tmp_path / "a.png")
