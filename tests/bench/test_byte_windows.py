"""Texts as windows of bytes, and the course of a training on them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from momentumnet.bench.data.byte_windows import VOCABULARY, windows
from momentumnet.bench.networks.language_models import CausalDecoder
from momentumnet.bench.trainings.language_training import TextCourse

TEXT = bytes(range(250)) * 2


def test_windows_are_the_text_and_every_tenth_is_held_out() -> None:
    data = windows("numbers", TEXT, 7)
    rows = [*data.x_train.tolist(), *data.x_validation.tolist()]
    assert sorted(rows) == sorted(list(TEXT[start : start + 7]) for start in range(0, 497, 7))
    assert data.x_validation.tolist() == [list(TEXT[start : start + 7]) for start in range(0, 497, 70)]
    with pytest.raises(ValueError, match="numbers has 500 bytes, less than 10 windows of 51"):
        windows("numbers", TEXT, 51)


def test_an_epoch_has_each_window_once_and_the_seed_decides_the_order() -> None:
    data = windows("numbers", TEXT, 10)
    (first, same, other) = ([x for x, _ in data.train_batches(15, seed)] for seed in (1, 1, 2))
    assert sorted(torch.cat(first).tolist()) == sorted(data.x_train.tolist())
    assert all(map(torch.equal, first, same))
    assert not torch.equal(first[0], other[0])
    assert all(torch.equal(x, y) for x, y in data.train_batches(15, 1))
    part = data.part(train=12, validation=3)
    assert (len(part.x_train), len(part.x_validation)) == (12, 3)
    assert part.digest != data.digest == windows("numbers", TEXT, 10).digest


def test_validation_loss_against_the_logits_of_all_predictions() -> None:
    torch.manual_seed(0)
    data = windows("numbers", TEXT, 6)
    model = CausalDecoder(depth=1, width=8, length=6, vocabulary=VOCABULARY, chunk=4 * 5)
    course = TextCourse(data, 0, batch_size=4, device=torch.device("cpu"))
    assert len(data.x_validation) % 4  # the last batch is a smaller one
    course.evaluate(model)
    tokens = data.x_validation.long()
    logits = model.head(model.hidden(tokens)).detach().double()
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert course.validation_losses == [pytest.approx(float(expected), rel=1e-5)]
