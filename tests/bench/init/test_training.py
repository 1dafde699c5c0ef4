from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.bench.data.images import load_digits
from momentumnet.bench.init import training as init_training
from momentumnet.bench.init.methods import METHODS
from momentumnet.bench.init.training import Recipe, Training
from momentumnet.bench.trainings import initialisations
from momentumnet.bench.trainings.training import accuracy
from momentumnet.init import InitReport


def digits_training(network: str, method: str, recipe: Recipe) -> Training:
    data = load_digits().part(train=512, test=200)
    return Training(network, 0, data, recipe, torch.device("cpu"), METHODS[method])


def test_networks_learn() -> None:
    row = digits_training("resnet8_bn", "kaiming", Recipe(epochs=6, batch_size=32, lr=0.1, init_steps=None)).row()
    assert row["acc_best"] > 85
    assert row["losses"][-1] < row["losses"][0] / 2


@pytest.mark.parametrize(("method", "first"), [("kaiming", []), ("constant", [0.1] * 4), ("warmup", None)])
@pytest.mark.parametrize("network", ["resnet8", "resnet8_bn"])
def test_learning_rates_and_groups(
    monkeypatch: pytest.MonkeyPatch, network: str, method: str, first: list[float] | None
) -> None:
    seen: list[list[float]] = []
    norms: list[float] = []
    decays: set[tuple[float, ...]] = set()

    class Recorded(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            seen.append([group["lr"] for group in self.param_groups])
            norms.append(float(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).norm()))
            decays.add(tuple(group["weight_decay"] for group in self.param_groups))
            assert all((p.dim() < 2) == bool(index) for index, g in enumerate(self.param_groups) for p in g["params"])
            return loss

    monkeypatch.setattr(init_training, "SGD", Recorded)
    digits_training(network, method, Recipe(epochs=2, batch_size=128, lr=0.1, init_steps=None)).row()
    extra = [0.1 * step / 5 for step in (1, 2, 3, 4)] if first is None else first
    rates = extra + [0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [large for large, _ in seen] == pytest.approx(rates)
    assert (max(norms) == pytest.approx(1, rel=1e-4)) == (network == "resnet8")  # clipped without normalisation
    share = 1 if network.endswith("_bn") else 0.1
    assert [small for _, small in seen] == pytest.approx([share * rate for rate in rates])
    assert decays == {(1e-4, 0.0) if network.endswith("_bn") else (1e-4, 1e-4)}


@pytest.mark.parametrize(
    ("method", "function", "network", "options"),
    [
        ("metainit", "metainit_", "vgg8", {"progress": False}),
        ("gradinit", "gradinit_", "vgg8", {"progress": False, "lr": 1e-2}),
        ("gradinit", "gradinit_", "vgg8_bn", {"progress": False, "lr": 1e-1}),
        ("gradinit", "gradinit_", "resnet8", {"progress": False, "lr": 5e-2}),
        ("gradinit", "gradinit_", "resnet8_bn", {"progress": False, "lr": 1e-3}),
        ("fixup", "fixup_", "resnet8", {"remove_normalization": False}),
        ("fixup", "fixup_", "resnet8_bn", {"remove_normalization": True}),
    ],
)
@pytest.mark.parametrize("steps", [None, 3])
def test_methods_call_their_initialisation(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    function: str,
    network: str,
    options: dict[str, Any],
    steps: int | None,
) -> None:
    called: list[tuple[Any, ...]] = []

    def stand_in(model: nn.Module, *arguments: Any, **keywords: Any) -> InitReport:
        called.append((arguments, keywords))
        return InitReport(method, {}, (3.0, 2.0, 1.0))

    monkeypatch.setattr(initialisations.init, function, stand_in, raising=False)
    row = digits_training(network, method, Recipe(epochs=1, batch_size=128, lr=0.1, init_steps=steps)).row()
    ((arguments, keywords),) = called
    learns = method != "fixup"
    assert keywords == (options | ({"steps": steps} if learns and steps else {}))
    assert row["init_objective"] == [3, 1]
    if not learns:
        assert arguments[0].shape == (8, 3, 8, 8)
        return
    loss_fn, batches = arguments
    rounds = [list(batches) for _ in range(2)]
    assert [len(round_) for round_ in rounds] == [8, 8]
    assert rounds[0][0][0].shape == (64, 3, 8, 8)
    assert not torch.equal(rounds[0][0][0], rounds[1][0][0])
    assert float(loss_fn(torch.zeros(2, 10), torch.tensor([0, 1]))) == pytest.approx(math.log(10))


def test_gradinit_says_that_it_knows_no_rate_for_a_family() -> None:
    row = digits_training("vit2x16", "gradinit", Recipe(epochs=1, batch_size=32, lr=0.1, init_steps=1)).row()
    assert row["error"] == "GradInit has no learning rate for vit2x16: its authors have run none of this family"


def test_a_network_that_puts_out_no_numbers_has_no_accuracy() -> None:
    """``argmax`` takes NaN for the largest, so that it had the first class's share."""

    class NoNumbers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 10), torch.nan)

    assert accuracy(NoNumbers(), load_digits().part(train=8, test=200), torch.device("cpu")) == 0
