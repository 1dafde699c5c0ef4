"""Distances between masks, and the early-bird rule against the formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from momentumnet.prune import EarlyBird, magnitude_masks, mask_distance
from tests.prune.nets import perceptron


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8), max_size=4))
def test_distance_is_the_normalised_hamming_distance(rows: list[list[tuple[bool, bool]]]) -> None:
    a = {str(i): torch.tensor([pair[0] for pair in row]) for i, row in enumerate(rows)}
    b = {str(i): torch.tensor([pair[1] for pair in row]) for i, row in enumerate(rows)}
    pairs = list(itertools.chain(*rows))
    expected = sum(p != q for p, q in pairs) / len(pairs) if pairs else 0.0
    assert mask_distance(a, b) == expected == mask_distance(b, a)
    assert mask_distance(a, a) == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [({"v": torch.ones(2, dtype=torch.bool)}, r"\['v', 'w'\]"), ({"w": torch.ones(3, dtype=torch.bool)}, "shape")],
)
def test_masks_of_different_models_are_refused(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_distance({"w": torch.ones(2, dtype=torch.bool)}, other)


class Walk:
    """A layer of which each epoch swaps so many pairs of large and small weights: the distances are known."""

    def __init__(self, size: int = 100) -> None:
        self.layer = nn.Linear(size, 1, bias=False)
        self.large = torch.arange(size) % 2 == 0
        self.next = 0
        self.write()

    def write(self) -> None:
        with torch.no_grad():
            self.layer.weight.copy_(torch.where(self.large, 2.0, 1.0))

    def epoch(self, pairs: int) -> Tensor:
        places = torch.arange(self.next, self.next + 2 * pairs) % len(self.large)
        self.next += 2 * pairs
        self.large[places] = ~self.large[places]
        self.write()
        return self.large.clone()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(2, 5), st.sampled_from([0.02, 0.1, 1.0]))
def test_the_ticket_emerges_by_the_rule(epochs: list[int], window: int, tolerance: float) -> None:
    walk = Walk()
    bird = EarlyBird(walk.layer, fraction=0.5, window=window, tolerance=tolerance)
    history: list[Tensor] = []
    largest: list[float] = []
    for pairs in epochs:
        history.append(walk.epoch(pairs))
        distances = [float((history[-1] != other).double().mean()) for other in history[-window:-1]]
        largest += [max(distances)] if distances else []
        full = len(history) >= window
        assert bird.update() == (full and max(distances) < tolerance)
        assert torch.equal(bird.masks["weight"].flatten(), history[-1])
    assert bird.distances == pytest.approx(largest)


def test_a_distance_of_the_tolerance_is_not_below_it() -> None:
    walk = Walk()
    bird = EarlyBird(walk.layer, fraction=0.5, window=2, tolerance=0.1)
    answers = []
    for pairs in (0, 5, 4):
        walk.epoch(pairs)
        answers.append(bird.update())
    assert bird.distances == [0.1, 0.08]
    assert answers == [False, False, True]


def test_the_state_resumes(tmp_path: object) -> None:
    walk = Walk()
    straight = EarlyBird(walk.layer, fraction=0.5, window=3)
    resumed = EarlyBird(walk.layer, fraction=0.5, window=3)
    for pairs in (30, 4, 3, 2, 1):
        walk.epoch(pairs)
        expected = straight.update()
        assert resumed.update() == expected
        torch.save(resumed.state_dict(), f"{tmp_path}/bird.pt")
        resumed = EarlyBird(walk.layer, fraction=0.5, window=3)
        resumed.load_state_dict(torch.load(f"{tmp_path}/bird.pt"))
    assert expected
    assert resumed.distances == straight.distances


def test_options_reach_the_masks() -> None:
    net = perceptron()
    bird = EarlyBird(net, fraction={"2.weight": 0.25}, scope="layer", skip=["0"])
    bird.update()
    expected = magnitude_masks(net, fraction=0.25, skip=["0"])
    assert list(bird.masks) == ["2.weight"]
    assert torch.equal(bird.masks["2.weight"], expected["2.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window"),
        ({"window": 2.0}, "window"),
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": 2}, "tol"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyBird(perceptron(), fraction=0.5, **options)  # type: ignore[arg-type]


def test_states_that_do_not_fit_are_refused() -> None:
    bird = EarlyBird(perceptron(), fraction=0.5, window=3)
    with pytest.raises(ValueError, match="no masks yet"):
        _ = bird.masks
    with pytest.raises(ValueError, match="keys"):
        bird.load_state_dict({"masks": []})
    for _ in range(3):
        bird.update()
    with pytest.raises(ValueError, match="window"):
        EarlyBird(perceptron(), fraction=0.5, window=2).load_state_dict(bird.state_dict())
