"""GradInit in chunks and with checkpoints: the same figures in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.init import gradinit_
from momentumnet.loss.derivatives import Gradient, ParametricLoss
from tests.init.gradinit_cases import ALWAYS_MET, NEVER_MET, OPTIMIZERS
from tests.init.networks import Batches, network
from tests.models import Chain, ResidualMLP


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("gamma", [NEVER_MET, ALWAYS_MET])
@pytest.mark.parametrize("name", ["vit", "lstm", "group_norm", "converted"])
@pytest.mark.parametrize("option", [{"chunk": 2}, {"checkpoint": True}, {"chunk": 3, "checkpoint": True}])
def test_chunks_and_checkpoints_change_nothing(name: str, gamma: float, optimizer: str, option: dict[str, Any]) -> None:
    reports = []
    for options in ({}, option):
        model, batches = network(name, count=5, double=True)
        options = {**options, "optimizer": optimizer, "gradient_norm": gamma, "lr": 0.05, "steps": 2}
        reports.append(gradinit_(model, F.cross_entropy, batches, progress=False, **options))
    # What the exact state rounds to its grid depends on the batch that it sees.
    tolerance = 1e-6 if name == "converted" else 1e-9
    assert reports[1].gradient_norms == pytest.approx(reports[0].gradient_norms, rel=tolerance)
    assert reports[1].losses == pytest.approx(reports[0].losses, rel=tolerance)
    assert reports[1].scales == pytest.approx(reports[0].scales, rel=1e-4 if name == "converted" else 1e-7)


@pytest.mark.parametrize("name", ["resnet18", "dropout"])
def test_checkpoints_repeat_batch_statistics_and_dropout(name: str) -> None:
    reports = []
    for checkpoint in (False, True):
        model, batches = network(name, double=True)
        torch.manual_seed(2)
        reports.append(gradinit_(model, F.cross_entropy, batches, steps=2, checkpoint=checkpoint, progress=False))
    assert reports[1].gradient_norms == pytest.approx(reports[0].gradient_norms, rel=1e-9)
    assert reports[1].scales == pytest.approx(reports[0].scales, rel=1e-7)


def test_chunks_repeat_their_dropout() -> None:
    """The product with the Hessian is that of the gradient's own masks: here the gradient's norm is its own slope."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1, bias=False)).double()
    loss = ParametricLoss(model, lambda output, target: output.square().sum())
    theta, x = loss.leaves(), torch.randn(4, 8).double()
    gradient = Gradient(loss, theta, (x, None), chunk=2, products=True)
    (hessian_times_theta,) = gradient.times([theta[0].detach()])
    torch.testing.assert_close(hessian_times_theta, gradient.value[0])  # of a quadratic form


def memory(model: nn.Module, batches: Batches, **options: Any) -> int:
    def run() -> None:
        gradinit_(model, F.cross_entropy, batches, steps=1, progress=False, **options)

    run()
    return mn.measure_memory(run).peak_bytes


@pytest.mark.parametrize("gamma", [NEVER_MET, ALWAYS_MET])
@pytest.mark.parametrize(("option", "at_most"), [({"chunk": 16}, 0.35), ({"checkpoint": True}, 0.45)])
def test_memory(option: dict[str, Any], at_most: float, gamma: float) -> None:
    torch.manual_seed(0)
    model = Chain([ResidualMLP(16, 64) for _ in range(24)])
    batches = [(torch.randn(256, 16), torch.randint(4, (256,))) for _ in range(2)]
    plain = memory(model, batches, gradient_norm=gamma)
    assert memory(model, batches, gradient_norm=gamma, **option) < at_most * plain


class Remembering(nn.Module):
    """A block that uses a tensor which its parent left on it: neither argument nor parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.left: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.left


class Leaving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Linear(3, 3), Remembering()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.block.left = x.mean()
        return self.block(x)


def test_a_block_that_cannot_be_recomputed_alone() -> None:
    batches = [(torch.randn(4, 3), torch.randint(3, (4,)))]
    gradinit_(Leaving(), F.cross_entropy, batches, steps=1, progress=False)
    with pytest.raises(mn.MomentumNetError, match=r"Remembering uses a tensor .* pass checkpoint=False"):
        gradinit_(Leaving(), F.cross_entropy, batches, steps=1, checkpoint=True, progress=False)
