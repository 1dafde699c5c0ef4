"""Transforms of torch see every operation of a pass, or the pass is refused: never a wrong tangent or gradient.

The reference is the paper's rule, written in ordinary operations on the blocks of the unconverted network, in float64.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import momentumnet as mn
from momentumnet.core.tensors import transforms
from tests.contract.transformed import GAMMA, network, reference, rows
from tests.models import WIDTH, Chain, ResidualMLP

CONVERSIONS = [
    {"arithmetic": arithmetic, "backward": backward, "others": others}
    for arithmetic in ("exact", "float")
    for backward in ("reversible", "stored")
    for others in ("keep", "checkpoint")
]


def loss(net: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: net(x).square().sum()


def dual(net: nn.Module) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(rows(), rows(2)))).tangent


def dual_parameter(net: nn.Module) -> Tensor:
    """The tangent enters behind the stream's start."""
    name = "blocks.2.inner.0.weight"
    weight = dict(net.named_parameters())[name]
    with forward_ad.dual_level():
        made = forward_ad.make_dual(weight.detach(), torch.ones_like(weight))
        return forward_ad.unpack_dual(torch.func.functional_call(net, {name: made}, (rows(),))).tangent


def dual_under_no_grad(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return dual(net)


def backward_of_duals(net: nn.Module) -> Tensor:
    """Forward as ever; the gradients that come back have tangents."""
    x = rows().requires_grad_()
    output = net(x)
    with forward_ad.dual_level():
        (grad,) = torch.autograd.grad(output, x, forward_ad.make_dual(torch.ones_like(output), output.detach().sin()))
        return torch.stack(tuple(forward_ad.unpack_dual(grad)))


def backward_of(transform: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Callable[[nn.Module], Tensor]:
    """Forward as ever; backward inside a transform."""

    def run(net: nn.Module) -> Tensor:
        x = rows().requires_grad_()
        output = net(x)
        several = torch.stack([output.detach().sin(), output.detach().cos()])
        return transform(lambda g: torch.autograd.grad(output, x, g, retain_graph=True)[0], several)

    return run


def batched_grads(net: nn.Module) -> Tensor:
    x = rows().requires_grad_()
    output = net(x)
    return torch.autograd.grad(output, x, torch.stack([output.sin(), output.cos()]).detach(), is_grads_batched=True)[0]


def per_sample_gradients(net: nn.Module) -> Tensor:
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def of_one(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, values, (x.unsqueeze(0),)).square().sum()

    grads = torch.func.vmap(torch.func.grad(of_one), (None, 0))(parameters, rows())
    return torch.cat([grad.flatten() for grad in grads.values()])


def ensemble(net: nn.Module) -> Tensor:
    """Parameters are batched, the input is not."""
    stacked = {name: torch.stack([value, 2 * value]).detach() for name, value in net.named_parameters()}
    x = rows()
    return torch.func.vmap(lambda values: torch.func.functional_call(net, values, (x,)))(stacked)


def hessian(net: nn.Module) -> Tensor:
    return torch.func.hessian(loss(net))(rows()[:1])


def reverse_over_reverse(net: nn.Module) -> Tensor:
    return torch.autograd.functional.hessian(loss(net), rows()[:1], vectorize=True)


def forward_over_forward(net: nn.Module) -> Tensor:
    return torch.func.jacfwd(torch.func.jacfwd(loss(net)))(rows()[:1])


def reverse_over_forward(net: nn.Module) -> Tensor:
    x = rows().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(net(forward_ad.make_dual(x, rows(2)))).tangent
        return torch.autograd.grad(tangent.square().sum(), x)[0]


def program(record: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> Callable[[nn.Module], Tensor]:
    """What a recorded program computes on an input that it has not seen, and the gradient through it."""

    def run(net: nn.Module) -> Tensor:
        x = rows(4).requires_grad_()
        output = record(net)(x)
        return torch.cat([output.flatten(), torch.autograd.grad(output.sin().sum(), x)[0].flatten()])

    return run


TRANSFORMS: dict[str, Callable[[nn.Module], Tensor]] = {
    "dual": dual,
    "dual parameter": dual_parameter,
    "dual under no_grad": dual_under_no_grad,
    "backward of duals": backward_of_duals,
    "jvp": lambda net: torch.func.jvp(net, (rows(),), (rows(2),))[1],
    "jvp under no_grad": torch.no_grad()(lambda net: torch.func.jvp(net, (rows(),), (rows(2),))[1]),
    "linearize": lambda net: torch.func.linearize(net, rows())[1](rows(2)),
    "jacfwd": lambda net: torch.func.jacfwd(net)(rows()[:1]),
    "grad": lambda net: torch.func.grad(loss(net))(rows()),
    "vjp": lambda net: torch.func.vjp(net, rows())[1](torch.ones(3, 4, dtype=torch.float64))[0],
    "jacrev": lambda net: torch.func.jacrev(net)(rows()[:1]),
    "hessian": hessian,
    "forward over forward": forward_over_forward,
    "reverse over forward": reverse_over_forward,
    "reverse over reverse": reverse_over_reverse,
    "jacobian": lambda net: torch.autograd.functional.jacobian(net, rows()[:1], vectorize=True),
    "jacobian by duals": lambda net: torch.autograd.functional.jacobian(
        net, rows()[:1], vectorize=True, strategy="forward-mode"
    ),
    "vmap": lambda net: torch.func.vmap(net)(rows()),
    "per-sample gradients": per_sample_gradients,
    "ensemble": ensemble,
    "functionalize": lambda net: torch.func.functionalize(net)(rows()),
    "batched grads": batched_grads,
    "vmap over backward": backward_of(lambda backward, several: torch.func.vmap(backward)(several)),
    "jvp over backward": backward_of(lambda backward, pair: torch.func.jvp(backward, (pair[0],), (pair[1],))[1]),
    "jit.trace": program(lambda net: torch.jit.trace(net, rows(), check_trace=False)),
    "make_fx": program(lambda net: make_fx(net)(rows())),
    "export": program(lambda net: torch.export.export(copy.deepcopy(net).eval(), (rows(),), strict=False).module()),
}


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
