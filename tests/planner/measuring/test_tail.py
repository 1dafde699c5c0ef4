"""The backward behind the last unit: temporaries of single operations there, which no graph tells of."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import momentumnet as mn
from momentumnet.conversion.planning_options import gammas_within_budget
from momentumnet.planner.advice import _in_chunks
from momentumnet.planner.fit import measured_steps
from momentumnet.planner.searching.rescaled import rescaled
from momentumnet.streams.tracing.trace import call_with_example
from tests.models import ResidualMLP

WIDTH, ROWS = 32, 512


class Tailed(nn.Module):
    """A stream, and what stands behind it."""

    def __init__(self, tail: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.blocks = nn.ModuleList(ResidualMLP(WIDTH) for _ in range(4))
        self._tail = tail

    def forward(self, x: Tensor) -> Any:
        h = stem = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self._tail(self, h, stem)


def own_loss(model: Any, h: Tensor, stem: Tensor) -> Tensor:
    """As ViT-MAE computes its own."""
    return ((model.head(h) - 1) ** 2).mean(dim=-1).mean()


def overwritten(model: Any, h: Tensor, stem: Tensor) -> Tensor:
    h += 1
    h.mul_(2)
    output: Tensor = model.head(h)
    return output


def joined(model: Any, h: Tensor, stem: Tensor) -> tuple[Tensor, Tensor]:
    """What the stem has made goes past all blocks."""
    return model.head(h), torch.sinh(h * stem)


def whole(output: Any) -> Tensor:
    found = output if isinstance(output, tuple) else (output,)
    return torch.stack([((made - 0.5) ** 2).mean() + F.softplus(made).sum() for made in found]).sum()


def masked_autoencoder() -> tuple[nn.Module, Any]:
    more = {f"decoder_{name}": size for name, size in SIZES.items()}
    model = ViTMAEForPreTraining(ViTMAEConfig(image_size=64, patch_size=8, **SIZES, **more))
    return model, {"pixel_values": torch.randn(8, 3, 64, 64)}


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], Callable[[Any], Tensor]]] = {
    "its own loss": (lambda: (Tailed(own_loss), torch.randn(ROWS, WIDTH)), lambda output: output),
    "another loss": (lambda: (Tailed(overwritten), torch.randn(ROWS, WIDTH)), whole),
    "past the blocks": (lambda: (Tailed(joined), torch.randn(ROWS, WIDTH)), whole),
    "masked autoencoder": (masked_autoencoder, lambda output: output.loss),
}


def measured_peak(net: nn.Module, example: Any, loss: Callable[[Any], Tensor], *, present: bool) -> int:
    def step() -> None:
        output = call_with_example(net, example)
        loss(output).backward()

    step()
    net.zero_grad(set_to_none=not present)
    there = sum(p.grad.nbytes for p in net.parameters() if p.grad is not None)
    return there + mn.measure_memory(step).peak_bytes


@pytest.mark.parametrize("gradients", ["anew", "present"])
@pytest.mark.parametrize("name", CASES)
def test_peaks_are_predicted_by_themselves(name: str, gradients: str) -> None:
    torch.manual_seed(0)
    build, loss = CASES[name]
    model, example = build()
    steps = measured_steps(model.train(), example, gammas=gammas_within_budget(None), loss=loss, gradients=gradients)
    for step in steps:
        for plan in (step.plan(None), step.plan(1 << 40)):
            found = measured_peak(mn.convert(model, plan=plan), example, loss, present=gradients == "present")
            assert plan.peak == pytest.approx(found, rel=0.01), (step.gamma, plan.budget)


def test_nothing_is_left_of_it() -> None:
    model, x = Tailed(own_loss).train(), torch.randn(ROWS, WIDTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mn.plan(model, x, budget="least", gamma=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_grows_with_the_batch_and_is_cut_into_chunks() -> None:
    torch.manual_seed(0)
    model = Tailed(own_loss).train()

    def profile_of(rows: int) -> Any:
        [step] = measured_steps(model, torch.randn(rows, WIDTH), gammas=(Fraction(0),), loss=lambda output: output)
        return step.options.profile

    half, full = profile_of(ROWS // 2), profile_of(ROWS)
    assert rescaled(half, 2.0).backward_behind == pytest.approx(full.backward_behind, rel=0.02)
    gradients = 4 * 4 * WIDTH * (WIDTH + 1)
    assert gradients < _in_chunks(full, 16).backward_behind < full.backward_behind
