from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from momentumnet.bench.data.images import load_digits, normalised
from momentumnet.bench.data.label_noise import with_wrong_labels
from momentumnet.bench.networks.cifar_networks import build
from momentumnet.bench.sam import training as sam_training
from momentumnet.bench.sam.methods import METHODS, Recipe
from momentumnet.bench.sam.training import Training
from momentumnet.init import kaiming_

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.1, rho=0.05, asam_rho=0.5)


def training(
    method: str, *, noise: float = 0, network: str = "resnet8_bn", recipe: Recipe = RECIPE, seed: int = 0
) -> Training:
    data = load_digits().part(train=128, test=100)
    return Training(network, seed, data, recipe, torch.device("cpu"), noise, METHODS[method])


@pytest.mark.parametrize(("network", "noise"), [("resnet8_bn", 40), ("resnet8", 0)])
@pytest.mark.parametrize("method", list(METHODS))
def test_training_is_the_method_written_out(method: str, network: str, noise: float) -> None:
    """Losses against a loop of its own: plain SGD, and the papers' formulas for the point of the second gradient."""
    row = training(method, noise=noise, network=network)
    found = run_without_landscape(row)
    torch.manual_seed(0)
    model = build(network, classes=10)
    kaiming_(model)
    epochs = 4 if method == "sgd_2x" else 2
    data = with_wrong_labels(row.data, noise, 0)
    momenta: dict[str, torch.Tensor] = {}
    losses, step = [], 0
    for epoch in range(epochs):
        losses.append(0.0)
        for x, y in data.train_batches(32, epoch):
            rate = 0.05 * (1 + math.cos(math.pi * step / (4 * epochs)))
            losses[-1] += reference_step(model, x, y, method, rate, momenta) / 4
            step += 1
    assert found["losses"] == pytest.approx(losses, rel=2e-3)
    assert (found["epochs"], found["passes"]) == (epochs, 2 if method == "sgd" else 4)


def run_without_landscape(row: Training) -> dict[str, Any]:
    row._landscape = lambda model: {}  # type: ignore[method-assign]
    return row.row()


def reference_step(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, method: str, rate: float, momenta: dict[str, torch.Tensor]
) -> float:
    bare = not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    parameters = dict(model.named_parameters())
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    rates = {name: rate / 10 if bare and p.dim() == 1 else rate for name, p in parameters.items()}

    def gradients() -> tuple[float, dict[str, torch.Tensor]]:
        loss = F.cross_entropy(model.train()(x), y)
        found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        norm = float(torch.cat([g.flatten() for g in found.values()]).norm())
        scale = min(1.0, 1 / norm) if bare else 1.0
        return float(loss.detach()), {name: scale * g for name, g in found.items()}

    loss, g = gradients()
    if not method.startswith("sgd"):
        statistics_after = {name: b.clone() for name, b in model.named_buffers()}
        t = {name: torch.ones_like(kept[name]) for name in parameters}
        if method == "asam":
            t = {name: t[name] if name.endswith("bias") else kept[name].abs() + 0.01 for name in parameters}
        norm = float(torch.cat([(t[name] * g[name]).flatten() for name in g]).norm())
        rho = {"sam": 0.05, "asam": 0.5}.get(method, 0)
        with torch.no_grad():
            for name, p in parameters.items():
                p += -rates[name] * g[name] if method == "extragradient" else rho * t[name] ** 2 * g[name] / norm
        _, g = gradients()
        model.load_state_dict({**kept, **statistics_after})
    with torch.no_grad():
        for name, p in parameters.items():
            decay = 1e-4 if bare or p.dim() > 1 else 0.0
            momenta[name] = 0.9 * momenta[name] + g[name] + decay * p if name in momenta else g[name] + decay * p
            p -= rates[name] * momenta[name]
    return loss


def test_landscape_is_that_of_the_trained_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_training, "PROBES", 48)
    seen: dict[str, tuple[Any, ...]] = {}

    def eigenvalues(model: nn.Module, *arguments: Any) -> torch.Tensor:
        assert not model.training
        seen["eigenvalues"] = arguments
        return torch.tensor([7.5])

    def sharpness(model: nn.Module, *arguments: Any) -> float:
        assert not model.training
        seen["sharpness"] = arguments
        return 0.25

    monkeypatch.setattr(sam_training.landscape, "hessian_top_eigenvalues", eigenvalues)
    monkeypatch.setattr(sam_training.landscape, "sharpness", sharpness)
    row = training("sgd", noise=60, seed=2, recipe=replace(RECIPE, rho=0.2))  # looked at within 0.05 all the same
    found = row.row()
    assert (found["sharpness"], found["eigenvalue"]) == (0.25, 7.5)
    for name, last in (("eigenvalues", 1), ("sharpness", 0.05)):
        loss_fn, (x, y), option = seen[name]
        assert (loss_fn, option) == (F.cross_entropy, last)
        assert torch.equal(x, normalised(row.data.x_train[:48]))
        assert torch.equal(y, with_wrong_labels(row.data, 60, 2).y_train[:48])
    row._landscape(row.new_model().train())  # looks in eval mode whatever the training has left
