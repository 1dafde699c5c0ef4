"""Which weights go: the number is exact and the choice is that of a stable sort, ties and special values included."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from momentumnet.prune import (
    apply_masks,
    lowest_masks,
    magnitude_masks,
    magnitude_scores,
    masks_of,
    prunable,
    random_masks,
    random_scores,
    shuffled_masks,
)
from tests.prune.nets import Tied, perceptron, random_like

# Few values, so that ties are the rule.
VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.0 + 2**-10, 3.0, -math.inf, math.inf])
TENSORS = st.lists(st.lists(VALUES, max_size=9), max_size=4)
HUNDREDTHS = st.integers(0, 1000)


def rounded(thousandths: int, count: int) -> int:
    """thousandths/1000 * count, half up, in integers."""
    return (2 * thousandths * count + 1000) // 2000


def removed_by_sorting(scores: list[list[float]], kept: list[list[bool]], count: int) -> set[tuple[int, int]]:
    order = sorted((value, i, j) for i, row in enumerate(scores) for j, value in enumerate(row) if kept[i][j])
    return {(i, j) for _, i, j in order[:count]}


def removed(masks: dict[str, Tensor], kept: list[list[bool]]) -> set[tuple[int, int]]:
    flat = [mask.flatten().tolist() for mask in masks.values()]
    assert not any(f and not k for row, own in zip(flat, kept, strict=True) for f, k in zip(row, own, strict=True))
    return {(i, j) for i, row in enumerate(kept) for j, keep in enumerate(row) if keep and not flat[i][j]}


@given(TENSORS, HUNDREDTHS, st.randoms(use_true_random=False), st.sampled_from(["global", "layer"]))
def test_the_lowest_go_in_the_order_of_a_stable_sort(
    values: list[list[float]], thousandths: int, random: object, scope: str
) -> None:
    kept = [[random.random() < 0.6 for _ in row] for row in values]  # type: ignore[attr-defined]
    scores = {f"w{9 - i}": torch.tensor(row, dtype=torch.float64) for i, row in enumerate(values)}
    previous = {name: torch.tensor(row, dtype=torch.bool) for name, row in zip(scores, kept, strict=True)}
    masks = lowest_masks(scores, fraction=thousandths / 1000, scope=scope, previous=previous)
    assert list(masks) == list(scores)
    if scope == "global":
        expected = removed_by_sorting(values, kept, rounded(thousandths, sum(map(sum, kept))))
    else:
        expected = set()
        for i in range(len(values)):
            own = [row if j == i else [False] * len(row) for j, row in enumerate(kept)]
            expected |= removed_by_sorting(values, own, rounded(thousandths, sum(kept[i])))
    assert removed(masks, kept) == expected


@given(st.integers(1, 200), HUNDREDTHS, st.sampled_from([0.0, 1.0, -2.5]))
def test_counts_are_exact_where_all_weights_are_equal(size: int, thousandths: int, value: float) -> None:
    layer = nn.Linear(size, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    mask = magnitude_masks(layer, fraction=thousandths / 1000)["weight"]
    count = rounded(thousandths, size)
    assert mask.flatten().tolist() == [False] * count + [True] * (size - count)


@given(st.integers(1, 60), st.lists(HUNDREDTHS, max_size=4))
def test_rounds_of_pruning_count_what_is_still_kept(size: int, rounds: list[int]) -> None:
    layer = nn.Linear(size, 3, bias=False)
    left, previous = 3 * size, None
    for thousandths in rounds:
        previous = magnitude_masks(layer, fraction=thousandths / 1000, previous=previous)
        left -= rounded(thousandths, left)
        assert int(previous["weight"].sum()) == left


@pytest.mark.parametrize(
    ("fraction", "size", "expected"),
    [
        *[(0.2, 5, 1), (0.1, 5, 1), (0.35, 10, 4), (0.29, 100, 29), (0.58, 100, 58), (0.045, 100, 5), (1e-3, 1000, 1)],
        *[(Fraction(1, 3), 9, 3), (np.float32(0.2), 5, 1), (np.float64(0.35), 10, 4), (0, 5, 0), (1, 5, 5)],
    ],
)
def test_fractions_are_the_numbers_that_were_written(fraction: float, size: int, expected: int) -> None:
    mask = lowest_masks({"w": torch.zeros(size)}, fraction=fraction)["w"]
    assert size - int(mask.sum()) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_values_of_different_precision_tie(dtype: torch.dtype) -> None:
    scores = {"a": torch.tensor([0.5, 1.0], dtype=dtype), "b": torch.tensor([0.5, 0.25], dtype=torch.float64)}
    masks = lowest_masks(scores, fraction=0.5)
    assert masks["a"].tolist() == [False, True]
    assert masks["b"].tolist() == [True, False]
    close = {"a": torch.tensor([1.0], dtype=dtype), "b": torch.tensor([1.0 - 2**-40], dtype=torch.float64)}
    assert lowest_masks(close, fraction=0.5)["a"].item()


def test_half_and_brain_floats_are_compared_exactly() -> None:
    scores = {"a": torch.tensor([1 + 2**-10]).half(), "b": torch.tensor([1.0]).bfloat16()}
    assert lowest_masks(scores, fraction=0.5)["a"].item()


def test_masks_do_not_depend_on_the_layout_in_memory() -> None:
    score = torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 1.0]])
    transposed = score.t().contiguous().t()
    assert torch.equal(
        lowest_masks({"w": score}, fraction=0.5)["w"], lowest_masks({"w": transposed}, fraction=0.5)["w"]
    )


def test_each_layer_may_have_its_fraction() -> None:
    net = perceptron()
    masks = magnitude_masks(net, fraction={"0.weight": 0.2, "2.weight": 0.1}, scope="layer")
    assert [int((~mask).sum()) for mask in masks.values()] == [8, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.01}, "fraction"),
        ({"fraction": -0.1}, "fraction"),
        ({"fraction": math.nan}, "fraction"),
        ({"fraction": math.inf}, "fraction"),
        ({"fraction": True}, "fraction"),
        ({"fraction": "0.5"}, "fraction"),
        ({"fraction": 0.5, "scope": "local"}, "scope must be one of 'global', 'layer', got 'local'"),
        ({"fraction": {"w": 0.5}}, "needs scope='layer'"),
        ({"fraction": {"w": 0.5, "v": 0.5}, "scope": "layer"}, r"has \['v'\]"),
        ({"fraction": {}, "scope": "layer"}, r"lacks \['w'\]"),
        ({"fraction": 0.5, "previous": {}}, r"previous .* lacks \['w'\]"),
        ({"fraction": 0.5, "previous": {"w": torch.ones(3, dtype=torch.bool)}}, r"shape \(2,\), got .* \(3,\)"),
        ({"fraction": 0.5, "previous": {"w": torch.ones(2)}}, "torch.bool"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lowest_masks({"w": torch.zeros(2)}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("score", "message"), [(torch.tensor([1.0, math.nan]), "NaN"), (torch.tensor([1, 2]), "floating point")]
)
def test_scores_without_an_order_are_refused(score: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lowest_masks({"w": score}, fraction=0.5)


def test_magnitudes_are_absolute_values_of_what_the_masks_keep() -> None:
    net = perceptron()
    parameters = {name: p.detach().clone() for name, p in prunable(net).items()}
    assert all(torch.equal(score, parameters[name].abs()) for name, score in magnitude_scores(net).items())
    masks = random_like(prunable(net))
    apply_masks(net, masks)
    for name, score in magnitude_scores(net).items():
        assert torch.equal(score, parameters[name].abs().where(masks[name], 0))
    again = magnitude_masks(net, fraction=0.0, previous=masks_of(net))
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())


def test_skipped_weights_are_in_no_mask() -> None:
    net = perceptron()
    assert list(magnitude_masks(net, fraction=0.5, skip=["0"])) == ["2.weight"]
    assert list(random_masks(net, fraction=0.5, skip=["2.weight"])) == ["0.weight"]
    assert lowest_masks({}, fraction=0.5) == {}


def test_shared_weights_count_once() -> None:
    masks = magnitude_masks(Tied(), fraction=0.5)
    assert [(name, mask.numel(), int(mask.sum())) for name, mask in masks.items()] == [("first.weight", 256, 128)]


def test_random_masks_follow_their_generator() -> None:
    net = perceptron()
    seeded = [random_masks(net, fraction=0.4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert all(torch.equal(seeded[0][name], seeded[1][name]) for name in seeded[0])
    assert not all(torch.equal(seeded[0][name], seeded[2][name]) for name in seeded[0])
    assert sum(int((~mask).sum()) for mask in seeded[0].values()) == 26  # 0.4 of 64 is 25.6
    torch.manual_seed(0)
    unseeded = random_masks(net, fraction=0.4)
    torch.manual_seed(0)
    assert all(torch.equal(mask, unseeded[name]) for name, mask in random_masks(net, fraction=0.4).items())


def test_random_scores_are_even_on_all_weights() -> None:
    net = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 50))
    masks = random_masks(net, fraction=0.5, generator=torch.Generator().manual_seed(0))
    scores = random_scores(net, generator=torch.Generator().manual_seed(0))
    for name, mask in masks.items():  # five standard deviations of a binomial count
        count = mask.numel()
        assert abs(int(mask.sum()) - count / 2) < 5 * math.sqrt(count) / 2
        assert abs(float(scores[name].mean()) - 0.5) < 5 / math.sqrt(12 * count)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=3), st.integers(0, 99))
def test_shuffled_masks_keep_the_counts(rows: list[list[bool]], seed: int) -> None:
    masks = {f"w{i}": torch.tensor([row, row]) for i, row in enumerate(rows)}
    shuffled = shuffled_masks(masks, generator=torch.Generator().manual_seed(seed))
    again = shuffled_masks(masks, generator=torch.Generator().manual_seed(seed))
    for name, mask in masks.items():
        assert shuffled[name].shape == mask.shape
        assert int(shuffled[name].sum()) == int(mask.sum())
        assert torch.equal(shuffled[name], again[name])


def test_shuffled_masks_move_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = {"w": torch.arange(10) < 3}
    counts = sum(shuffled_masks(mask, generator=generator)["w"].double() for _ in range(2000))
    assert (counts - 600).abs().max() < 5 * math.sqrt(2000 * 0.3 * 0.7)
