"""SAM against the formulas of its papers; restoring; which parameters move; what is refused."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from momentumnet.errors import StepOrderError
from momentumnet.optim import SAM
from tests.optim.nets import batch, closure_of, loss_of, network, sam_gradient, values


def assert_moved_by(net: nn.Module, before: list[Tensor], gradients: list[Tensor], lr: float) -> None:
    for parameter, w, g in zip(net.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), w - lr * g, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_quadratic_in_closed_form(adaptive: bool) -> None:
    a, w0 = torch.tensor([3.0, 1.0, 0.5]).double(), torch.tensor([0.2, -1.0, 0.7]).double()
    w = w0.clone().requires_grad_()
    optimizer = SAM([w], SGD, rho=0.3, adaptive=adaptive, eta=0.01, lr=0.1)

    loss = optimizer.step(closure_of(optimizer, lambda: (a * w * w).sum() / 2))

    scale = w0.abs() + 0.01 if adaptive else torch.ones_like(w0)
    e = 0.3 * scale**2 * a * w0 / (scale * a * w0).norm()
    torch.testing.assert_close(w.detach(), w0 - 0.1 * a * (w0 + e), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(loss.detach(), (a * w0 * w0).sum() / 2)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("by_hand", [False, True])
def test_network_equals_explicit_autograd(adaptive: bool, by_hand: bool) -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, rho=0.2, adaptive=adaptive, lr=0.5)
    for _ in range(3):
        before = values(net)
        scales = (lambda w: w.abs() + 0.01) if adaptive else torch.ones_like
        expected = sam_gradient(list(net.parameters()), lambda: loss_of(net, x, y), [0.2] * 4, scales=scales)
        closure = closure_of(optimizer, lambda: loss_of(net, x, y))
        if by_hand:
            closure()
            assert optimizer.first_step()
            closure()
            optimizer.second_step()
        else:
            optimizer.step(closure)
        assert_moved_by(net, before, expected, 0.5)


def test_groups_have_options_of_their_own() -> None:
    net, (x, y) = network(), batch()
    groups = [{"params": net[0].parameters(), "rho": 0.3}, {"params": net[2].parameters(), "lr": 0.2}]
    optimizer = SAM(groups, SGD, rho=0.1, lr=0.5)
    before = values(net)
    expected = sam_gradient(list(net.parameters()), lambda: loss_of(net, x, y), [0.3, 0.3, 0.1, 0.1])

    optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))

    assert_moved_by(net[0], before[:2], expected[:2], 0.5)
    assert_moved_by(net[2], before[2:], expected[2:], 0.2)


def test_maximize_perturbs_downhill() -> None:
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = SAM([w], SGD, rho=0.5, lr=0.1, maximize=True)
    optimizer.step(closure_of(optimizer, lambda: -(w * w).sum() / 2))  # as SAM on w^2 / 2
    assert w.item() == pytest.approx(2 - 0.1 * 2.5, rel=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_complex_parameters_move_as_pairs_of_real_ones(adaptive: bool) -> None:
    w = torch.tensor([3 + 4j], dtype=torch.complex128, requires_grad=True)
    pair = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    for optimizer, loss in (
        (SAM([w], SGD, rho=0.5, adaptive=adaptive, lr=0.1), lambda: w.abs().pow(3).sum()),
        (SAM([pair], SGD, rho=0.5, adaptive=adaptive, lr=0.1), lambda: pair.norm(dim=-1).pow(3).sum()),
    ):
        optimizer.step(closure_of(optimizer, loss))
    torch.testing.assert_close(torch.view_as_real(w.detach()), pair.detach(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_every_parameter_comes_back_bit_for_bit(adaptive: bool) -> None:
    net, (x, y) = network(torch.float32), batch(torch.float32)
    optimizer = SAM(net.parameters(), SGD, rho=0.7, adaptive=adaptive, lr=0.5)
    before = values(net)
    closure = closure_of(optimizer, lambda: loss_of(net, x, y))
    closure()
    optimizer.first_step()
    assert not any(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))
    optimizer.zero_grad()
    net[0](x).sum().backward()  # the second pass gives net[2] no gradient
    optimizer.second_step()
    assert all(torch.equal(p, w) for p, w in zip(net[2].parameters(), before[2:], strict=True))
    assert not torch.equal(net[0].weight, before[0])

    before = values(net)
    closure()
    optimizer.first_step()
    optimizer.restore()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))


def test_an_error_in_the_second_pass_leaves_the_parameters() -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, lr=0.5)
    before, calls = values(net), []

    def closure() -> Tensor:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure_of(optimizer, lambda: loss_of(net, x, y))()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))
    optimizer.step(closure)  # ready for the next step


def test_frozen_parameters_and_those_without_gradient_stay() -> None:
    net, (x, y) = network(), batch()
    net[0].weight.requires_grad_(False)
    spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    moving = [net[0].bias, net[2].weight, net[2].bias]
    optimizer = SAM([*net.parameters(), spare], SGD, rho=0.2, lr=0.5)
    before = [w.detach().clone() for w in moving]
    frozen = net[0].weight.clone()
    expected = sam_gradient(moving, lambda: loss_of(net, x, y), [0.2] * 3)

    optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))

    assert torch.equal(net[0].weight, frozen)
    assert torch.equal(spare, torch.ones(2, dtype=torch.float64))
    for parameter, w, g in zip(moving, before, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), w - 0.5 * g, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sparse_gradients_move_their_rows_only(adaptive: bool) -> None:
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(50, 4, sparse=sparse, dtype=torch.float64)
        head = nn.Linear(4, 1, dtype=torch.float64)
        optimizer = SAM([*table.parameters(), *head.parameters()], SGD, rho=0.4, adaptive=adaptive, lr=0.1)
        words, start = torch.tensor([3, 7, 3, 11]), table.weight.detach().clone()
        closure = closure_of(optimizer, lambda: head(table(words)).square().sum())  # noqa: B023 called in this round
        closure()
        optimizer.first_step()
        moved = (table.weight != start).any(1).nonzero().flatten().tolist()
        assert moved == [3, 7, 11]
        closure()
        assert table.weight.grad.is_sparse == sparse
        optimizer.second_step()
        results.append((table.weight.detach(), head.weight.detach()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_gradient_of_norm_zero_perturbs_nothing(adaptive: bool) -> None:
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = SAM([w], SGD, adaptive=adaptive, lr=0.1)
    assert optimizer.step(closure_of(optimizer, lambda: (w * 0).sum())) == 0
    assert torch.equal(w, torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("adaptive", [False, True])
def test_half_precision_gradients_do_not_overflow_their_norm(adaptive: bool) -> None:
    w = torch.ones(4, dtype=torch.float16, requires_grad=True)
    optimizer = SAM([w], SGD, rho=0.5, adaptive=adaptive, eta=0.0, lr=0.1)
    w.grad = torch.full_like(w, 4e4)  # its norm, 8e4, is beyond float16
    assert optimizer.first_step()
    assert torch.equal(w, torch.full_like(w, 1.25))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-2, 1e2])
def test_half_precision_rounds_the_perturbed_point_once(dtype: torch.dtype, size: float, adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter((0.05 * torch.randn(20, generator=generator)).to(dtype))
    w.grad = (size * torch.randn(20, generator=generator)).to(dtype)
    before, g = w.detach().double(), w.grad.double()
    scale = before.abs() + 0.01 if adaptive else torch.ones(20, dtype=torch.float64)
    expected = before + 0.5 * scale**2 * g / (scale * g).norm()
    assert SAM([w], SGD, rho=0.5, adaptive=adaptive, lr=0.1).first_step()
    half_a_bit = torch.finfo(dtype).eps / 2 * expected.abs() + 2.0**-25
    assert ((w.detach().double() - expected).abs() <= 1.01 * half_a_bit).all()


def test_a_group_of_radius_zero_is_as_frozen_in_the_perturbation() -> None:
    a, b = (torch.tensor([2.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = SAM([{"params": [a]}, {"params": [b], "rho": 0.0}], SGD, rho=0.5, lr=0.1)
    optimizer.step(closure_of(optimizer, lambda: (a * a + b * b).sum() / 2))
    assert a.item() == pytest.approx(2 - 0.1 * 2.5, rel=1e-14)  # the whole radius is a's
    assert b.item() == pytest.approx(2 - 0.1 * 2, rel=1e-14)


@pytest.mark.parametrize("base", [partial(SGD, lr=0.1, momentum=0.9, nesterov=True), partial(AdamW, lr=0.01)])
def test_state_dict_resumes_bit_for_bit(base: partial) -> None:
    x, y = batch(torch.float32)
    first, second = network(torch.float32), network(torch.float32)
    optimizer = SAM(first.parameters(), base, rho=0.3, adaptive=True)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: loss_of(first, x, y)))
    file = io.BytesIO()
    torch.save({"net": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    assert len(saved["optimizer"]["state"]) == 4
    second.load_state_dict(saved["net"])
    resumed = SAM(second.parameters(), base)  # rho and adaptive come from the file
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups is resumed.base_optimizer.param_groups
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: loss_of(first, x, y)))
        resumed.step(closure_of(resumed, lambda: loss_of(second, x, y)))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert (resumed.param_groups[0]["rho"], resumed.param_groups[0]["adaptive"]) == (0.3, True)


def test_state_of_the_base_optimizer_alone_loads() -> None:
    net = network()
    optimizer = SAM(net.parameters(), SGD, rho=0.3, lr=0.1)
    optimizer.load_state_dict(SGD(net.parameters(), lr=0.7).state_dict())
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["rho"]) == (0.7, 0.3)


def test_copies_are_independent_and_refused_in_mid_step() -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), Adam, lr=0.1)
    closure = closure_of(optimizer, lambda: loss_of(net, x, y))
    optimizer.step(closure)
    twin_net, twin = copy.deepcopy((net, optimizer))
    optimizer.step(closure)
    twin.step(closure_of(twin, lambda: loss_of(twin_net, x, y)))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin_net.parameters(), strict=True))
    assert twin.param_groups[0]["params"][0] is twin_net[0].weight

    closure()
    optimizer.first_step()
    for refused in (
        optimizer.first_step,
        optimizer.state_dict,
        partial(copy.deepcopy, optimizer),
        partial(optimizer.load_state_dict, twin.state_dict()),
        partial(optimizer.add_param_group, {"params": [torch.ones(1, requires_grad=True)]}),
        partial(optimizer.step, closure),
    ):
        with pytest.raises(StepOrderError, match=r"call second_step\(\)"):
            refused()
    optimizer.second_step()
    with pytest.raises(RuntimeError, match="second_step without first_step; call first_step"):
        optimizer.second_step()
