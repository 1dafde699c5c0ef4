from __future__ import annotations

import pytest
import torch

from momentumnet.bench.data.images import ImageData
from momentumnet.bench.data.label_noise import with_wrong_labels


def images(count: int, classes: int) -> ImageData:
    labels = torch.arange(count) % classes
    pixels = torch.zeros(count, 3, 2, 2, dtype=torch.uint8)
    return ImageData("none", pixels, labels, pixels, labels, augmented=False)


@pytest.mark.parametrize(("percent", "wrong"), [(0, 0), (20, 201), (33.3, 334), (60, 602), (99, 993)])
def test_share_is_exact_and_wrong_labels_are_wrong(percent: float, wrong: int) -> None:
    data = images(1003, 7)
    noisy = with_wrong_labels(data, percent, seed=3)
    assert int((noisy.y_train != data.y_train).sum()) == wrong
    assert (int(noisy.y_train.min()), int(noisy.y_train.max())) == (0, 6)
    assert torch.equal(noisy.y_test, data.y_test)
    assert torch.equal(data.y_train, torch.arange(1003) % 7)  # not changed in place


def test_every_other_class_is_as_likely() -> None:
    # Zhang and Sabuncu's matrix: 1 - eta on the diagonal, eta / (c - 1) beside it.
    count, classes, eta = 40_000, 4, 0.6
    data = images(count, classes)
    noisy = with_wrong_labels(data, 100 * eta, seed=0)
    found = torch.zeros(classes, classes)
    found.index_put_((data.y_train, noisy.y_train), torch.ones(count), accumulate=True)
    expected = torch.full((classes, classes), eta / (classes - 1)).fill_diagonal_(1 - eta)
    # Standard deviation of a share of 10 000 images: at most 0.005.
    torch.testing.assert_close(found / (count / classes), expected, atol=0.02, rtol=0)


def test_seed_decides_and_less_noise_is_part_of_more() -> None:
    data = images(500, 10)
    labels = with_wrong_labels(data, 40, seed=1).y_train
    assert torch.equal(labels, with_wrong_labels(data, 40, seed=1).y_train)
    assert not torch.equal(labels, with_wrong_labels(data, 40, seed=2).y_train)
    fewer = with_wrong_labels(data, 20, seed=1).y_train
    wrong = fewer != data.y_train
    assert torch.equal(fewer[wrong], labels[wrong])


@pytest.mark.parametrize("percent", [-1, 100, float("nan")])
def test_impossible_shares_are_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent must be at least 0 and less than 100"):
        with_wrong_labels(images(10, 2), percent, seed=0)


def test_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="a single class cannot be wrong"):
        with_wrong_labels(images(10, 1), 20, seed=0)
