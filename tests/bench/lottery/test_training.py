from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.bench.data.images import load_digits
from momentumnet.bench.lottery import training as module
from momentumnet.bench.lottery.training import Lottery, Recipe
from momentumnet.prune import TrainingLog, apply_masks, random_masks


def lottery_of(folder: Path, network: str = "resnet8", initialisation: str = "kaiming", **changes: Any) -> Lottery:
    """Two steps an epoch, three epochs."""
    plain: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 32,
        "lr": 0.1,
        "warmup_epochs": 0,
        "fraction": 0.5,
        "rounds": 1,
        "rewind_epochs": 0,
        "dense_epochs": 3,
        "structure": "weight",
        "scope": "global",
        "controls": ("random mask",),
        "init_steps": None,
    }
    data = load_digits().part(train=64, test=50)
    return Lottery(network, 0, data, Recipe(**plain | changes), torch.device("cpu"), initialisation, folder)


def test_part_of_a_course_is_the_rest_of_the_whole() -> None:
    """Without pruning, the training from the weights of epoch 1 sees the batches and rates of the dense one."""
    lottery = lottery_of(Path("unused"), rewind_epochs=1)
    seen: dict[int, list[tuple[float, torch.Tensor]]] = {}
    for start in (0, 2):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        inputs: list[torch.Tensor] = []
        model.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0]))
        log = TrainingLog(start_step=start)
        lottery._train(model, log, lambda: None)
        seen[start] = inputs
        assert log.steps == 6
    tail = seen[0][-len(seen[2]) :]
    assert len(seen[2]) < len(seen[0])
    assert all(torch.equal(one, other) for one, other in zip(seen[2], tail, strict=True))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def dense_course(lottery: Lottery) -> list[dict[str, torch.Tensor]]:
    """The weights after each step of the dense training, taken by a training of our own call."""
    model = lottery.new_model()
    lottery._initialise(model)
    seen = [weights(model)]
    log = TrainingLog(on_step=lambda step: seen.append(weights(model)))
    lottery._train(model, log, lambda: None)
    return seen


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_masks_come_from_the_weights_where_the_dense_training_was_stopped(tmp_path: Path, stop: int) -> None:
    """Half of the weights by magnitude, chosen here by sorting, after 2 steps an epoch of the unstopped course."""
    seen = dense_course(lottery_of(tmp_path))
    lottery = lottery_of(tmp_path, dense_epochs=stop, controls=())._lottery(lambda: None)
    report = lottery.run()
    assert [training.steps for training in report.trainings] == [2 * stop, 6]  # the ticket is trained to the end
    masks = lottery.masks(1)
    magnitudes = torch.cat([seen[2 * stop][name].abs().flatten() for name in masks])
    kept = magnitudes.argsort(descending=True, stable=True)[: len(magnitudes) - len(magnitudes) // 2]
    expected = torch.zeros(len(magnitudes), dtype=torch.bool)
    expected[kept] = True
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), expected)


def test_ticket_is_rewound_to_the_weights_of_that_step_of_a_warmed_up_course(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rewind_epochs": 1, "warmup_epochs": 2, "controls": ()}
    seen = dense_course(lottery_of(tmp_path, **changes))
    lottery = lottery_of(tmp_path, **changes)._lottery(lambda: None)
    lottery.run()
    begun = lottery.ticket(1, trained=False)
    masks = lottery.masks(1)
    for name, mask in masks.items():
        owner, _, attribute = name.rpartition(".")
        assert torch.equal(getattr(begun.get_submodule(owner), attribute), torch.where(mask, seen[2][name], 0))
    assert any(not torch.equal(seen[2][name], seen[0][name]) for name in masks)


def test_rewound_training_has_the_rates_of_a_warmed_up_course_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lottery = lottery_of(Path("unused"), warmup_epochs=2)
    rates: list[float] = []
    real = torch.optim.SGD.step

    def counted(self: torch.optim.SGD, closure: Callable[[], float] | None = None) -> float | None:
        rates.append(self.param_groups[0]["lr"])
        return real(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    apply_masks(model, random_masks(model, fraction=0.5))
    lottery._train(model, TrainingLog(start_step=3), lambda: None)
    assert rates[-3:] == pytest.approx([0.1 * 4 / 5, 0.1, 0.1 * 0.5 * (1 + math.cos(math.pi / 2))])


def test_reinitialised_control_has_new_weights_of_the_row_s_initialisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Glorot's normal draws, of which PyTorch's own, uniform ones of LeNet's first layer have no more than 1/8."""

    def trained(self: Lottery, model: nn.Module, log: TrainingLog, advance: Callable[[], object]) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        log.step()
        log.accuracy(50.0)

    monkeypatch.setattr(Lottery, "_train", trained)
    own = lottery_of(tmp_path, "lenet300", "xavier_normal", controls=("reinitialised",))._lottery(lambda: None)
    own.run()
    mask = own.masks(1)["fc1.weight"]
    new, first = (
        own.ticket(1, arm=arm, trained=False).get_submodule("fc1").weight for arm in ("reinitialised", "ticket")
    )
    assert not (new == first)[mask].any()
    assert new[mask].abs().max() > 1.5 / 8


def test_lottery_goes_by_the_recipe_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(module, "LotteryTicket", lambda model, train_fn, **given: options.update(given))
    changes: dict[str, Any] = {"fraction": 0.3, "rounds": 4, "rewind_epochs": 2, "scope": "layer"}
    dataclasses.replace(lottery_of(Path("unused"), **changes), seed=5)._lottery(lambda: None)
    expected = {"fraction": 0.3, "rounds": 4, "rewind_to": 4, "scope": "layer", "seed": 5, "folder": Path("unused")}
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize("controls", [(), ("random mask",), ("reinitialised", "random mask")])
def test_epochs_are_those_of_all_trainings(tmp_path: Path, controls: tuple[str, ...]) -> None:
    changes: dict[str, Any] = {"rounds": 2, "rewind_epochs": 1, "dense_epochs": 2, "controls": controls}
    own, advanced = lottery_of(tmp_path, "lenet300", **changes), []
    assert "error" not in own.row(lambda: advanced.append(1))
    assert len(advanced) == own.epochs


def test_glorot_uniform_and_normal(tmp_path: Path) -> None:
    """U(-b, b) with b = sqrt(6 / (fan_in + fan_out)), and N(0, 2 / (fan_in + fan_out)) (Glorot, Bengio, eq. 16)."""
    drawn = {}
    for name in ("xavier", "xavier_normal"):
        lottery = lottery_of(tmp_path, "lenet300", name)
        model = lottery.new_model()
        lottery._initialise(model)
        drawn[name] = model.get_parameter("fc1.weight").detach()
    bound = math.sqrt(6 / (64 + 300))
    assert 0.99 * bound < drawn["xavier"].abs().max() <= bound
    assert drawn["xavier"].std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert drawn["xavier_normal"].abs().max() > 1.5 * bound
    assert drawn["xavier_normal"].std() == pytest.approx(math.sqrt(2 / (64 + 300)), rel=0.02)


def test_fixup_begins_without_normalisation_and_at_zero_and_can_be_drawn_again(tmp_path: Path) -> None:
    lottery = lottery_of(tmp_path, "resnet8_bn", "fixup")
    model = lottery.new_model()
    lottery._initialise(model)
    names = [name for name, _ in model.named_parameters()]
    first = model.get_parameter("conv1.weight").detach().clone()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not model(lottery.data.examples(4)).any()
    lottery._initialise(model)  # as for the control
    assert [name for name, _ in model.named_parameters()] == names
    assert not torch.equal(model.get_parameter("conv1.weight"), first)
