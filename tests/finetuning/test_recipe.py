"""What the options of a training do, beside the same written out in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import data, recipe
from momentumnet.finetuning.data import ImageData, Reading
from momentumnet.finetuning.images import Preprocessing
from momentumnet.finetuning.recipe import Recipe
from momentumnet.finetuning.training import Trainer

PLAIN = Recipe(epochs=1, batch_size=4, lr=0.1, seed=0, base="sgd", weight_decay=0.01, schedule="constant")


def noise() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = [(torch.randn(3, 4, 4, generator=generator), index % 2) for index in range(12)]
    return ImageData("noise", images, images, ("a", "b"), Preprocessing(4), workers=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))


def trainer(how: Recipe, path: Path = Path("checkpoint.pt"), model: nn.Module | None = None) -> Trainer:
    settings = {"model": "tiny", "epochs": how.epochs}
    return Trainer(model or network(), noise(), torch.device("cpu"), recipe=how, path=path, settings=settings)


def trained(how: Recipe) -> dict[str, Tensor]:
    one = trainer(how)
    while not one.finished:
        one.run_epoch(lambda: None)
    return one.model.state_dict()


def test_batches_that_are_accumulated_make_one_step_of_their_mean_gradient() -> None:
    found = trained(replace(PLAIN, accumulate=2, label_smoothing=0.2))
    model, images = network(), noise()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    batches = list(images.batches(images.train, 4, shuffle_seed=1))
    for group in (batches[:2], batches[2:]):  # the last step has one batch
        inputs, labels = torch.cat([x for x, _ in group]), torch.cat([y for _, y in group])
        optimizer.zero_grad()
        logarithms = model(inputs).log_softmax(dim=1)
        wanted = F.one_hot(labels, 2) * 0.8 + 0.1
        (-(wanted * logarithms).sum(dim=1)).mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("cosine", [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4))]),
    ],
)
def test_learning_rate_rises_and_falls(schedule: str, expected: list[float]) -> None:
    how = replace(PLAIN, epochs=2, schedule=schedule, warmup=2 / 3)
    optimizer = how.optimizer(network())
    scheduler, found = how.scheduler(optimizer, steps_per_epoch=3), []
    for _ in range(6):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx([0.1 * value for value in expected])


@pytest.mark.parametrize("how", [replace(PLAIN, schedule="cosine"), replace(PLAIN, base="adamw", schedule="onecycle")])
def test_a_longer_training_goes_on_at_its_place_in_the_longer_schedule(how: Recipe) -> None:
    trainer(how).run_epoch(lambda: None)
    longer = trainer(replace(how, epochs=3))
    assert longer.resume(pytest.fail)
    reference = replace(how, epochs=3).optimizer(network())
    scheduler = replace(how, epochs=3).scheduler(reference, longer.steps_per_epoch)
    for _ in range(3):
        reference.step()
        scheduler.step()
    group = longer._optimizer.param_groups[0]
    for name in ("lr", "momentum", "betas"):
        assert group.get(name) == pytest.approx(reference.param_groups[0].get(name)), name
    while not longer.finished:
        longer.run_epoch(lambda: None)
    assert [epoch.number for epoch in longer.done] == [1, 2, 3]
    with pytest.raises(UsageError, match="epochs 3 there, 2 now"):
        trainer(replace(how, epochs=2)).resume(pytest.fail)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_resumes_to_the_bit_and_is_near_float32(precision: str) -> None:
    how = replace(PLAIN, epochs=2, precision=precision)
    whole = trained(how)
    Path("checkpoint.pt").unlink()
    first = trainer(how, Path("other.pt"))
    first.run_epoch(lambda: None)
    second = trainer(how, Path("other.pt"))
    assert second.resume(pytest.fail)
    second.run_epoch(lambda: None)
    exact = trained(replace(how, precision="float32"))
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, whole[name])
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02)
        assert not torch.equal(value, exact[name])


def test_patience_ends_a_training_that_gets_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    monkeypatch.setattr("momentumnet.finetuning.training.evaluate", lambda *_, **__: (next(accuracies), 0.0))
    one = trainer(replace(PLAIN, epochs=9, patience=2))
    while not one.finished:
        one.run_epoch(lambda: None)
    assert len(one.done) == 4
    assert one.out_of_patience
    assert one.best.number == 2


def test_frozen_modules_stay_as_they_are() -> None:
    def small() -> nn.Module:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4)
        return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), norm), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))

    for what, learning in (("backbone", {"3.weight", "3.bias"}), (1, {"0.1.weight", "0.1.bias", "3.weight", "3.bias"})):
        model = small()
        recipe.freeze(model, what)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trainer(replace(PLAIN, weight_decay=0.0), Path(f"{what}.pt"), model).run_epoch(lambda: None)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        statistics = {name for name in before if "running" in name or "num_batches" in name}
        assert changed == (learning if what == "backbone" else learning | statistics)
    with pytest.raises(UsageError, match=r"--freeze 3 leaves nothing to train: there are 3 modules, 0\.0, 0\.1, 3"):
        recipe.freeze(small(), 3)
    assert len(recipe.freeze(get_model("resnet18", num_classes=2), 2)) == 2  # the stem: a convolution and a norm


def test_share_that_is_held_out_is_of_each_class_and_always_the_same(photos: Path) -> None:
    def names(part: Any) -> list[str]:
        return [path for path, _ in part.samples]

    folder, reading = str(photos / "train"), Reading(validation=0.25, augment="none", workers=0)
    images = data.load_images(folder, image_size=8, say=pytest.fail, reading=reading)
    assert [images.validation.targets.count(label) for label in (0, 1)] == [2, 2]
    assert sorted(names(images.train) + names(images.validation)) == sorted(map(str, Path(folder).glob("*/*")))
    again = data.load_images(folder, image_size=8, say=pytest.fail, reading=reading)
    assert names(again.validation) == names(images.validation)
    with pytest.raises(UsageError, match="has a folder val of its own: leave out --validation"):
        data.load_images(str(photos), image_size=8, say=pytest.fail, reading=reading)


@pytest.mark.parametrize("name", list(data.AUGMENTATIONS))
def test_augmentations_leave_validation_images_alone(photos: Path, name: str) -> None:
    reading = Reading(augment=name, workers=0)
    images = data.load_images(str(photos), image_size=16, say=pytest.fail, reading=reading)
    torch.manual_seed(0)
    drawn = [images.train[0][0] for _ in range(12)]
    assert all(image.shape == (3, 16, 16) for image in drawn)
    assert all(torch.equal(image, drawn[0]) for image in drawn) == (name == "none")
    expected = Preprocessing(16).transform()(Image.open(images.validation.samples[0][0]).convert("RGB"))
    assert torch.equal(images.validation[0][0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optimizer", "sam", "--precision", "fp16"), "which the two passes of sam do not allow: take bf16"),
        (("--warmup", "1"), "--schedule onecycle has a warmup of its own"),
        (("--augment", "randaugment"), "--augment randaugment is for photographs"),
        (("--validation", "0.2"), "--validation is for folders of images"),
        (("--skip-broken",), "--skip-broken is for folders of images; digits is one data set"),
        (
            ("--schedule", "cosine", "--warmup", "2.5", "--epochs", "2"),
            "--warmup 2.5 is longer than --epochs 2: the learning rate would never come to --lr 0.001",
        ),
        (
            ("--freeze", "99", "--model", "mobilenet_v3_small", "--weights", "none"),
            "--freeze 99 leaves nothing to train",
        ),
    ],
)
def test_options_that_do_not_fit_together(command: Callable[..., Any], options: tuple[str, ...], message: str) -> None:
    done = command("finetune", *options)
    assert done.status == 2
    assert message in done.err
