"""Each variant trains what it says: its first function, its gamma, its rate, and what that takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.bench.data.images import load_digits
from momentumnet.bench.networks.cifar_networks import build
from momentumnet.bench.networks.language_models import CausalDecoder
from momentumnet.bench.quality.tasks import ImageTask, Recipe, TextTask, parse
from momentumnet.bench.quality.texts import load_text
from momentumnet.bench.quality.training import Training
from momentumnet.bench.quality.variants import VARIANTS, Variant
from momentumnet.bench.trainings.training import Course
from momentumnet.init import kaiming_
from momentumnet.prune.lottery.trainings import Trainings
from momentumnet.streams.blocks.converted import streams_of

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, adam_lr=2e-3, finetune_epochs=2, finetune_scale=0.5)
DATA = load_digits().part(train=128, test=100)


@pytest.fixture
def originals() -> Trainings:
    return Trainings(None, {})


def training(
    originals: Trainings, variant: str | Variant, network: str = "vit4x16", recipe: Recipe = RECIPE
) -> Training:
    task = ImageTask(DATA, recipe, CPU)
    return Training(task, network, 1, recipe, VARIANTS.get(variant, variant), originals)  # type: ignore[arg-type]


def by_hand(vit: Any, images: Tensor, gamma: float) -> Tensor:
    """The momentum rule with the flush, written out on the blocks of an unconverted network."""
    x = vit.patches(images).flatten(2).transpose(1, 2) + vit.positions
    v = torch.zeros_like(x)
    for block in vit.blocks:
        v = gamma * v + (1 - gamma) * (block(x) - x)
        x = x + v
    x = x + gamma / (1 - gamma) * v
    output: Tensor = vit.linear(vit.norm(x).mean(1))
    return output


def images() -> Tensor:
    return DATA.examples(16)


@torch.no_grad()
def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_from_scratch_is_a_momentum_resnet_of_gamma_0_9_with_the_original_s_first_weights(originals: Trainings) -> None:
    model = training(originals, "scratch").start().train()
    torch.manual_seed(1)
    plain = build("vit4x16", classes=10, side=8).train()
    assert difference(model(images()), by_hand(plain, images(), 0.9)) < 1e-4
    assert difference(model(images()), by_hand(plain, images(), 0.5)) > 1e-3
    assert torch.equal(training(originals, "original").start()(images()), plain(images()))


def test_converted_begins_nearly_as_the_trained_original_and_at_gamma_0_exactly(originals: Trainings) -> None:
    first = training(originals, "original").start()
    trained = training(originals, "continued").start().train()
    model = training(originals, "converted").start().train()
    expected = trained(images())
    assert difference(model(images()), by_hand(trained, images(), 1 / 8)) < 1e-4
    assert 0 < difference(model(images()), expected) < 0.1
    assert difference(first(images()), expected) > 0.3  # it has been trained
    unmoved = training(originals, Variant(Fraction(0), fine_tuned=True)).start().train()
    assert torch.equal(unmoved(images()), expected)


def test_rows_say_the_gamma_of_the_model_itself(originals: Trainings) -> None:
    rows = {name: training(originals, name, "resnet14_bn").row() for name in VARIANTS}
    assert {name: (row["gamma_first"], row["gamma_last"]) for name, row in rows.items()} == {
        "original": (None, None),
        "scratch": ("9/10", "9/10"),
        "continued": (None, None),
        "converted": ("1/8", "1/8"),
        "scheduled": ("1/8", "9/10"),
    }
    assert {name for name, row in rows.items() if "score_first" in row} == {"continued", "converted", "scheduled"}
    assert rows["continued"]["score_first"] == rows["original"]["score_last"] == rows["original"]["scores"][-1]
    assert {len(row["scores"]) for row in rows.values()} == {2}


def test_a_schedule_comes_to_its_end_in_the_middle_of_the_fine_tuning(
    originals: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, used = training(originals, "scheduled"), []
    model = own.start()
    loss = Course.loss

    def watched(self: Course, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        used.extend({stream.gamma for stream in streams_of(model)})
        return loss(self, model, x, y)

    monkeypatch.setattr(Course, "loss", watched)
    own._run(model, lambda: None)
    assert (used[0], used[4:]) == (Fraction(1, 8), [Fraction(9, 10)] * 4)  # eight steps
    assert used == sorted(used)
    assert len(set(used)) == 5


@pytest.mark.parametrize("variant", ["original", "continued"])
@pytest.mark.parametrize("network", ["vit2x16", "resnet8_bn"])
def test_losses_are_those_of_a_loop_written_out(originals: Trainings, network: str, variant: str) -> None:
    torch.manual_seed(1)
    model = build(network, classes=10, side=8)
    if network.startswith("resnet"):
        kaiming_(model)
    losses = written_out(model, network, 1.0)
    if variant == "continued":
        losses = written_out(model, network, 0.5)
    assert training(originals, variant, network).row()["losses"] == pytest.approx(losses, rel=2e-3)


def written_out(model: nn.Module, network: str, scale: float) -> list[float]:
    """Two epochs by torch's own optimizers, the rate a cosine from ``scale`` times the recipe's."""
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    optimizer: torch.optim.Optimizer
    if network.startswith("vit"):
        rate, optimizer = 2e-3, torch.optim.AdamW([*vectors, *matrices], weight_decay=0.01)
    else:
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        rate, optimizer = 0.05, torch.optim.SGD(groups, lr=1, momentum=0.9, weight_decay=1e-4)
    losses, step = [], 0
    model.train()
    for epoch in range(2):
        losses.append(0.0)
        for x, y in DATA.train_batches(32, 1_000_000 + epoch):
            for group in optimizer.param_groups:
                group["lr"] = scale * rate * (1 + math.cos(math.pi * step / 8)) / 2
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if network.startswith("vit"):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses[-1] += float(loss.detach()) / 4
            step += 1
    return losses


def test_an_original_is_trained_once_for_all_rows_in_any_order(
    originals: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[object] = []
    run = Course.run

    def counted(self: Course, *arguments: Any, **options: Any) -> None:
        runs.append(self)
        run(self, *arguments, **options)

    monkeypatch.setattr(Course, "run", counted)
    first = training(originals, "converted").row()
    assert len(runs) == 2
    original = training(originals, "original").row()
    assert (len(runs), original["score_last"]) == (2, original["scores"][-1])
    fresh = Trainings(None, {})
    assert training(fresh, "original").row()["losses"] == original["losses"]
    assert training(fresh, "converted").row()["losses"] == first["losses"]
    assert len(runs) == 4


def test_memory_grows_with_depth_but_for_momentum(originals: Trainings) -> None:
    peaks = {}
    for gamma in (None, Fraction(1, 8), Fraction(9, 10)):
        for depth in (4, 12):
            own = training(originals, Variant(gamma), f"vit{depth}x16")
            peaks[gamma, depth] = own._look(own.start(), "first")["peak_bytes_first"]
    stored, small, large = (peaks[gamma, 12] / peaks[gamma, 4] for gamma in (None, Fraction(1, 8), Fraction(9, 10)))
    assert stored > 2.4
    assert large < 1.2
    assert small < 1.5
    assert peaks[Fraction(9, 10), 12] < peaks[Fraction(1, 8), 12] < peaks[None, 12] / 3


def test_time_of_a_pass_is_the_model_s_to_the_original_s(originals: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(networks: dict[str, nn.Module], step: Callable[[nn.Module], None], *, repeats: int) -> dict[str, float]:
        return {name: 6.0 if streams_of(network) else 4.0 for name, network in networks.items()}

    monkeypatch.setattr("momentumnet.bench.quality.training.step_seconds", seconds)
    assert training(originals, "scratch").row()["step_ratio"] == 1.5
    assert training(originals, "original").row()["step_ratio"] == 1.0


def test_error_stands_in_the_row(originals: Trainings) -> None:
    recipe = dataclasses.replace(RECIPE, adam_lr=1e30)
    row = training(originals, "converted", recipe=recipe).row()
    assert row["error"].startswith("diverged: loss")


def test_score_of_a_text_is_the_mean_cross_entropy_of_all_predictions(originals: Trainings) -> None:
    data = load_text(None, length=16, most=4000)
    small = dataclasses.replace(RECIPE, batch_size=20)
    task = TextTask(data, small, CPU)
    model = task.model("gpt2x16", 1)
    assert isinstance(model, CausalDecoder)
    held_out = data.test[:400].view(25, 16)
    logits = model.eval().head(model.hidden(held_out))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), held_out[:, 1:].flatten()).detach()
    course = task.course(1)  # batches of 20 and 5
    course.evaluate(model)
    assert task.scores(course) == pytest.approx([float(expected)], rel=1e-5)
    found = Training(task, "gpt2x16", 1, small, VARIANTS["scheduled"], originals).row()
    assert (found["gamma_last"], found["score_last"] < found["score_first"] < float(expected)) == ("9/10", True)


@pytest.mark.parametrize("name", ["vgg8", "lenet300", "gpt", "gpt2x100", "resnet21"])
def test_networks_without_residual_blocks_or_of_no_depth_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no residual blocks|not a network|no whole heads|there is no"):
        parse(name)
