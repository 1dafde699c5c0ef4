"""Blocks of a stream that keeps their inputs are left in backward when all has been saved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.ending_early import Residual, Unsteady, products, rows, step, stream


def test_blocks_of_a_stream_that_keeps_their_inputs_end_early() -> None:
    """Those of a stream that is rewound do not: their output leads back to their input."""
    net = stream()
    step(net)
    found, expected = step(net), step(stream(backward="stored"))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    forward = products(stream(backward="stored"))
    assert products(stream()) == forward + 3
    assert products(stream(backward="reversible")) == forward + 6


def test_a_block_with_a_hook_runs_to_its_end() -> None:
    net = stream()
    seen: list[nn.Module] = []
    net[1].branch.last.register_forward_hook(lambda module, *_: seen.append(module))
    assert products(net) == 6 + 3 + 1
    assert len(seen) == 2 * 2


def test_one_value_of_a_block_that_differs_is_seen() -> None:
    net = stream(Unsteady)
    step(net)
    net[1].branch.steady = False
    with pytest.raises(mn.ReconstructionError, match=r"block '1' of .* saved other values for backward"):
        step(net)


class Aside(Residual):
    """Returns something beside the stream, which is computed when nothing of the stream is saved any more."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, y.mean(-1).exp()


class Asides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Aside() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        beside = torch.zeros(())
        for block in self.blocks:
            x, own = block(x)
            beside = beside + own.sum()
        return x * beside


def test_what_blocks_return_beside_the_stream_has_its_gradient() -> None:
    torch.manual_seed(0)
    model = Asides()
    nets = [mn.convert(model, rows().detach(), gamma=0.5, backward=way) for way in ("checkpointed", "stored")]
    found, expected = map(step, nets)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_pass_that_outgrows_its_scale_or_meets_nan() -> None:
    for factor in (1e4, float("nan")):
        nets = [stream(backward=way) for way in ("checkpointed", "stored")]
        for net in nets:
            step(net)
            with torch.no_grad():
                net[0].branch.last.bias.mul_(0).add_(factor)
        found, expected = map(step, nets)
        assert all(torch.equal(found[name].isnan(), value.isnan()) for name, value in expected.items())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, equal_nan=True)
