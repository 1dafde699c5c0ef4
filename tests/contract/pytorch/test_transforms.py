"""Transforms of torch see every operation of a pass, or the pass is refused: never a wrong tangent or gradient.

The reference is the paper's rule, written in ordinary operations on the blocks of the unconverted network, in float64.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import momentumnet as mn
from momentumnet.core.tensors import transforms
from tests.contract.pytorch.rule_in_operations import GAMMA, network, reference, rows
from tests.contract.pytorch.transforms import TRANSFORMS, loss
from tests.models import WIDTH, Chain, ResidualMLP

CONVERSIONS = [
    {"arithmetic": arithmetic, "backward": backward, "others": others}
    for arithmetic in ("exact", "float")
    for backward in ("reversible", "stored")
    for others in ("keep", "checkpoint")
]


@pytest.fixture(autouse=True)
def _told_anew() -> Iterator[None]:
    transforms._tell_once.cache_clear()
    yield
    transforms._tell_once.cache_clear()


@pytest.mark.parametrize("options", CONVERSIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_of_every_conversion(name: str, options: dict[str, str]) -> None:
    expected = TRANSFORMS[name](reference())
    found = TRANSFORMS[name](mn.convert(network(), rows(), gamma=GAMMA, **options))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tangent_against_differences_in_float64(dtype: torch.dtype) -> None:
    """And the primal is, to the bit, what the same pass gives without a tangent."""
    net = mn.convert(network().to(dtype), rows().to(dtype), gamma=GAMMA)
    x, t = rows().to(dtype), rows(2).to(dtype)
    with torch.no_grad():
        primal, tangent = torch.func.jvp(net, (x,), (t,))
        assert torch.equal(primal, net(x))
    exact = reference()
    exact.load_state_dict({name: value.double() for name, value in net.state_dict().items()})
    step = 1e-5
    with torch.no_grad():
        expected = (exact(x.double() + step * t.double()) - exact(x.double() - step * t.double())) / (2 * step)
    assert (tangent.double() - expected).norm() <= (1e-5 if dtype == torch.float32 else 3e-2) * expected.norm()


def test_gradcheck_with_forward_mode() -> None:
    net = mn.convert(network(), rows(), gamma=GAMMA)
    x = rows().requires_grad_()
    assert torch.autograd.gradcheck(net, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(net, (x[:1],), check_fwd_over_rev=True)


@pytest.mark.parametrize("branch_is_output", [True, False])
@pytest.mark.parametrize("initial", ["zero", "module"])
def test_momentum_net_under_transforms(branch_is_output: bool, initial: str) -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(3)]
    start = nn.Linear(WIDTH, WIDTH).double() if initial == "module" else None
    net = mn.MomentumNet(
        blocks, gamma=0.9, is_residual=branch_is_output, init_speed=start is not None, init_function=start
    )

    def rule(x: Tensor) -> Tensor:
        v = torch.zeros_like(x) if start is None else start(x)
        for block in blocks:
            v = 0.9 * v + 0.1 * (block(x) if branch_is_output else block(x) - x)
            x = x + v
        return x

    gamma = float(net.stream.gamma)
    assert abs(gamma - 0.9) < 1e-12
    torch.testing.assert_close(torch.func.jvp(net, (rows(),), (rows(2),)), torch.func.jvp(rule, (rows(),), (rows(2),)))
    torch.testing.assert_close(torch.func.grad(loss(net))(rows()), torch.func.grad(loss(rule))(rows()))


def test_a_transform_is_told_once_and_only_where_memory_was_to_be_saved(caplog: pytest.LogCaptureFixture) -> None:
    net = mn.convert(network(), rows(), gamma=GAMMA)
    with caplog.at_level(logging.WARNING, logger="momentumnet"):
        with torch.no_grad():
            torch.func.jvp(net, (rows(),), (rows(2),))
        torch.jit.trace(net, rows(), check_trace=False)
        torch.func.grad(loss(mn.convert(network(), rows(), gamma=GAMMA, backward="stored")))(rows())
        assert not caplog.records
        for _ in range(2):
            torch.func.grad(loss(net))(rows())
    assert [record.message for record in caplog.records] == [
        "stream 'blocks' runs under torch.func (grad): gradients and tangents are right, but such a pass runs in "
        "floats with stored activations and saves no memory"
    ]


def test_after_a_transform_training_is_exact_again() -> None:
    nets = [mn.convert(network(), rows(), gamma=GAMMA, backward=backward) for backward in ("reversible", "stored")]
    torch.func.hessian(loss(nets[0]))(rows()[:1])
    grads = [torch.autograd.grad(loss(net)(rows()), list(net.parameters())) for net in nets]
    assert all(map(torch.equal, *grads))


class BeginsMidway(Chain):
    """Opens a dual level behind its first block."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.blocks[0](self.stem(x))
        with forward_ad.dual_level():
            for block in self.blocks[1:]:
                x = block(x)
            return forward_ad.unpack_dual(self.head(x)).primal


@pytest.mark.parametrize("gradients", [True, False])
def test_a_transform_that_begins_within_a_stream_is_refused(gradients: bool) -> None:
    net = mn.convert(network(), rows(), gamma=GAMMA)
    net.__class__ = BeginsMidway
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(mn.ConversionError, match="begin it before the stream's first"),
    ):
        net(rows())


def test_overwriting_is_refused_under_transforms_too() -> None:
    class Overwriting(ResidualMLP):
        active = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(0.5) if self.active else x)

    net = mn.convert(network(Overwriting), rows(), gamma=GAMMA)
    net.blocks[1].active = True
    with torch.no_grad(), pytest.raises(mn.ReconstructionError, match="overwrites its own input"):
        torch.func.jvp(net, (rows(),), (rows(2),))


def test_stream_inside_a_block_that_differentiates_it_itself() -> None:
    """A block takes a directional derivative of a stream of its own; its recompute does so again."""

    class Differentiating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mn.MomentumNet(
                [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2)], gamma=0.9
            )

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.func.jvp(self.inner, (x,), (torch.ones_like(x),))[1] + self.inner(x)

    grads = []
    for backward in ("stored", "reversible"):
        torch.manual_seed(0)
        model = Chain([Differentiating() for _ in range(3)]).double()
        net = mn.convert(model, streams=["blocks"], gamma=GAMMA, backward=backward)
        grads.append(torch.autograd.grad(loss(net)(rows()), list(net.parameters())))
        if backward == "reversible":
            batched = torch.autograd.grad(
                net(rows().requires_grad_()), net.stem.weight, torch.ones(2, 3, 4).double(), is_grads_batched=True
            )[0]
            torch.testing.assert_close(batched[0], batched[1])
    for found, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["backward of duals", "vmap over backward", "jvp over backward", "batched grads"])
def test_stream_inside_a_block_whose_backward_is_transformed(name: str) -> None:
    """Its forward was an ordinary pass, so its recompute is one, too."""

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            branches = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)]
            self.inner = mn.MomentumNet(branches, gamma=0.9)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    found = []
    for backward in ("stored", "reversible"):
        torch.manual_seed(0)
        model = Chain([Nested() for _ in range(3)]).double()
        net = mn.convert(model, streams=["blocks"], gamma=GAMMA, backward=backward)
        found.append(TRANSFORMS[name](net))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_dropout_in_a_recompute_under_vmap() -> None:
    class Dropping(ResidualMLP):
        def __init__(self) -> None:
            super().__init__()
            self.inner.append(nn.Dropout(0.5))

    grads = []
    for backward in ("stored", "reversible"):
        net = mn.convert(network(Dropping), rows(), gamma=GAMMA, backward=backward).train()
        torch.manual_seed(5)
        grads.append(TRANSFORMS["vmap over backward"](net))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-12)
