"""Tensors of other classes and layouts: carried as they are, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import momentumnet as mn
from tests.contract.pytorch.rule_in_operations import GAMMA, network, reference, rows
from tests.models import WIDTH, ResidualMLP


class Marked(Tensor):
    """A subclass without a dispatch of its own."""


@pytest.mark.parametrize("backward", ["reversible", "stored"])
@pytest.mark.parametrize(
    "wrap", [lambda x: x.as_subclass(Marked), lambda x: TwoTensor(x, 2 * x)], ids=["marked", "wrapper"]
)
def test_tensors_of_other_classes_keep_class_values_and_gradients(
    wrap: Callable[[Tensor], Tensor], backward: str
) -> None:
    outcomes = []
    for net in (reference().blocks, mn.convert(network(), rows(), gamma=GAMMA, backward=backward)):
        weight = next(net.parameters())
        x = wrap(rows())
        if isinstance(net, nn.ModuleList):  # the stream alone
            v, y = torch.zeros_like(x), x
            for block in net:
                v = GAMMA * v + (1 - GAMMA) * (block(y) - y)
                y = y + v
            y, weight = y + v, net[0].inner[0].weight
        else:
            y, weight = x, net.blocks[0].inner[0].weight
            for block in net.blocks:
                y = block(y)
        assert type(y) is type(x)
        part = y.b if isinstance(y, TwoTensor) else y.as_subclass(Tensor)
        outcomes.append((part.detach(), torch.autograd.grad(y.square().sum(), weight)[0]))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0])
    plain = [grad.a if isinstance(grad, TwoTensor) else grad.as_subclass(Tensor) for _, grad in outcomes]
    torch.testing.assert_close(plain[0], plain[1])


@pytest.mark.parametrize("backward", ["reversible", "stored"])
def test_jagged_streams_are_those_of_their_rows(backward: str) -> None:
    net = mn.convert(network().float(), rows().float(), gamma=GAMMA, backward=backward)
    lengths = (2, 5)
    parts = [torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(length)) for length in lengths]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    grads = [
        torch.autograd.grad(output.square().sum(), net.stem.weight)[0]
        for output in (net(nested).values(), net(torch.cat(parts)))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:.*quantized")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x: x.to(torch.cfloat), r"complex.*view_as_real"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised.*dequantise"),
        (lambda x: x.to_sparse(), "sparse_coo.*make it dense"),
        (lambda x: x.to(torch.float8_e4m3fn), "float8_e4m3fn.*bfloat16"),
    ],
    ids=["complex", "quantised", "sparse", "float8"],
)
def test_tensors_that_no_stream_carries_are_refused(make: Callable[[Tensor], Tensor], match: str) -> None:
    net = mn.convert(network(), rows())
    with pytest.raises(mn.ConversionError, match=match):
        net.blocks[0](make(rows().float()))


def test_a_wrapper_for_a_plain_tensor_is_refused() -> None:
    class Wrapping(ResidualMLP):
        active = False

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return TwoTensor(y, y) if self.active else y

    net = mn.convert(network(Wrapping), rows())
    net.blocks[1].active = True
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), pytest.raises(mn.ConversionError, match="class TwoTensor, but"):
            net(rows())


def test_examples_of_other_kinds_are_refused_with_the_cure() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.cfloat))

        def forward(self, z: Tensor) -> Tensor:
            return z + (z @ self.weight).tanh()

    with pytest.raises(mn.ConversionError, match="view_as_real"):
        mn.convert(nn.Sequential(Complex(), Complex()), torch.zeros(2, WIDTH, dtype=torch.cfloat))
    jagged = torch.nested.nested_tensor([torch.zeros(2, WIDTH), torch.zeros(3, WIDTH)], layout=torch.jagged)
    with pytest.raises(mn.ConversionError, match="give a padded example"):
        mn.plan(network().float(), jagged)


def test_branch_that_lies_negated_in_memory() -> None:
    class Negated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x).tanh()
            return torch._neg_view(y) if self.training else -y

    torch.manual_seed(0)
    net = mn.MomentumNet([Negated() for _ in range(3)], gamma=0.9)
    outcomes = []
    for training in (True, False):
        x = rows().float().requires_grad_()
        output = net.train(training)(x)
        outcomes.append((output, torch.autograd.grad(output.square().sum(), x)[0]))
    for negated, plain in zip(*outcomes, strict=True):
        torch.testing.assert_close(negated, plain)
