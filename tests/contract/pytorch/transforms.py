"""Transforms of torch, each as a function of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from tests.contract.pytorch.rule_in_operations import rows


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
