"""The additive coupling of two streams: the contract of the engine, and the formula in float64."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.streams.blocks.converted import streams_of
from tests.contract.read_counts import reads
from tests.contract.reference import Outcome, assert_same, assert_same_beyond_the_scale, train_step
from tests.models import WIDTH


def branch(width: int = WIDTH, *further: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), *further)


def rows(factor: float = 1.0) -> Tensor:
    return factor * torch.randn(5, 2 * WIDTH, generator=torch.Generator().manual_seed(1))


def functions(depth: int, *further: type[nn.Module]) -> list[nn.Module]:
    torch.manual_seed(0)
    return [branch(WIDTH, *(kind() for kind in further)) for _ in range(depth)]


def net(blocks: list[nn.Module], backward: str = "reversible", **options: Any) -> mn.ReversibleSequential:
    return mn.ReversibleSequential(*copy.deepcopy(blocks), backward=backward, **options)


def outcomes(blocks: list[nn.Module], x: Tensor, **options: Any) -> list[Outcome]:
    """A step with stored, with recomputed activations and with kept inputs."""
    return [train_step(net(blocks, how, **options), (x,)) for how in ("stored", "reversible", "checkpointed")]


def by_formula(blocks: list[nn.Module], x: Tensor) -> Tensor:
    """x1 += f(x2); x2 += g(x1); ... in ordinary operations."""
    first, second = x.chunk(2, 1)
    for index, function in enumerate(blocks):
        if index % 2:
            second = second + function(first)
        else:
            first = first + function(second)
    return torch.cat([first, second], 1)


@pytest.mark.parametrize("depth", [1, 2, 50, 51, 1000])
def test_gradients_and_states_equal_stored(depth: int, watched: list[bool]) -> None:
    blocks = functions(depth)
    stored = train_step(net(blocks, "stored"), (rows(),))
    assert not watched
    reversible = train_step(net(blocks), (rows(),))
    assert_same(reversible, stored, tolerance=0)
    if depth < 100:
        assert_same(train_step(net(blocks, "checkpointed"), (rows(),)), stored, tolerance=0)
    assert len(watched) >= depth
    assert all(watched)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 2.0)])
@pytest.mark.parametrize("depth", [2, 9, 30])
def test_against_float64_autograd(depth: int, dtype: torch.dtype, most: float) -> None:
    """At most twice the error of float32's own backpropagation, plus 22 bits in short float32 streams."""
    blocks = nn.ModuleList(functions(depth))

    def gradient(kind: torch.dtype, run: Any) -> Tensor:
        modules = copy.deepcopy(blocks).to(kind)
        x = rows().to(kind).requires_grad_()
        run(list(modules), x).square().mean().backward()
        return torch.cat([value.grad.double().flatten() for value in (x, *modules.parameters())])

    exact = gradient(torch.float64, by_formula)
    plain = gradient(torch.float32, by_formula)
    ours = gradient(dtype, lambda modules, x: mn.ReversibleSequential(*modules)(x))
    short = 2.0**-18 * float(exact.norm()) if depth <= 8 and dtype == torch.float32 else 0.0
    assert (ours - exact).norm() <= most * (plain - exact).norm() + short


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    blocks = list(nn.ModuleList(functions(12)).to(dtype))
    stored, *others = outcomes(blocks, rows().to(dtype))
    assert stored.output.dtype == dtype
    for other in others:
        assert_same(other, stored, tolerance=0)


def test_autocast_dropout_and_batch_norms() -> None:
    blocks = [nn.Sequential(*branch(), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3)) for _ in range(6)]
    found = []
    for how in ("stored", "reversible"):
        model = net(blocks, how)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(train_step(model, (rows(),)))
    assert_same(found[1], found[0], tolerance=0)


def test_without_gradients_and_in_ordinary_operations() -> None:
    blocks = functions(7)
    model = net(blocks)
    expected = by_formula(blocks, rows())
    with torch.no_grad():
        torch.testing.assert_close(model(rows()), expected)
    with torch.inference_mode():
        torch.testing.assert_close(model(rows()), expected)
    torch.testing.assert_close(torch.func.vmap(model)(rows().unsqueeze(1)).squeeze(1), expected)
    torch.testing.assert_close(model(rows()), expected, rtol=1e-4, atol=1e-5)


def test_blocks_without_gradients_in_front() -> None:
    model = net(functions(4))
    for function in list(model.children())[:2]:
        function.requires_grad_(False)
    twin = net(functions(4), "stored")
    for function in list(twin.children())[:2]:
        function.requires_grad_(False)
    model(rows()).square().mean().backward()
    twin(rows()).square().mean().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_values_that_outgrow_their_scale_and_nan() -> None:
    assert_same_beyond_the_scale(lambda how: net(functions(10), how), rows)


def test_a_step_in_which_values_outgrow_their_scale_between_blocks() -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * x

    blocks = functions(4)
    blocks[2] = nn.Sequential(blocks[2], Loud())
    stored, *others = outcomes(blocks, rows())
    for other in others:
        assert_same(other, stored, tolerance=0)


def test_second_derivatives_and_a_second_backward() -> None:
    blocks = functions(5)
    found = []
    for how in ("stored", "reversible"):
        model, x = net(blocks, how).double(), rows().double().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append([value.grad for value in (x, *model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    model = net(blocks)
    loss = model(rows()).square().mean()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in model.parameters()]
    loss.backward()
    for parameter, before in zip(model.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, 2 * before)


def test_gradient_of_one_half_alone() -> None:
    blocks = functions(6)
    for half in (slice(0, WIDTH), slice(WIDTH, None)):
        found = [train_step(net(blocks, how), (rows(),), backward=lambda y, half=half: y[:, half].sum().backward())
                 for how in ("stored", "reversible")]  # fmt: skip
        assert_same(found[1], found[0], tolerance=0)


def test_no_read_a_block() -> None:
    for depth in (4, 12):
        model = net(functions(depth))
        train_step(model, (rows(),))  # without example inputs the first pass is looked at step by step
        for _ in range(2):
            with reads() as counts:
                model(rows()).square().mean().backward()
            assert counts.total() - counts["aten::equal"] <= 2, counts


def test_nothing_is_kept_for_a_block() -> None:
    """At rest the state of 100 blocks takes the bytes of the state of 10, but for values that are larger."""
    held = []
    for depth in (10, 100):
        shared = branch()
        model = mn.ReversibleSequential(*[shared] * depth)
        output = model(torch.randn(64, 2 * WIDTH))
        gc.collect()
        states = [o for o in gc.get_objects() if type(o).__name__ == "ExactState" and o.packed_bytes]
        held.append(sum(state.packed_bytes for state in states))
        del output, states
    assert 0 < held[0] <= held[1] <= held[0] + 1


@pytest.mark.parametrize("kind", ["undetermined", "overwriting", "changed"])
def test_what_cannot_be_reconstructed_raises(kind: str) -> None:
    calls = [0]

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls[0] += 1
            if kind == "overwriting":
                return torch.relu_(x)
            return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(calls[0]))

    blocks = functions(4)
    if kind != "changed":
        blocks[1] = Odd()
    model = net(blocks)

    def step() -> None:
        loss = model(rows()).square().mean()
        if kind == "changed":
            with torch.no_grad():
                model.get_parameter("2.0.weight").mul_(1.5)
        loss.backward()

    with pytest.raises(mn.ReconstructionError):
        step()


def test_dimensions_shared_functions_and_arguments() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor, shift: Tensor, *, scale: float) -> Tensor:
            return scale * torch.tanh(self.conv(x) + shift)

    torch.manual_seed(0)
    shared, shift = Conditioned(), torch.randn(4, 1, 1)
    found = []
    for how in ("stored", "reversible"):
        model = mn.ReversibleSequential(*[copy.deepcopy(shared)] * 5, backward=how)
        image = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
        image = image.to(memory_format=torch.channels_last).requires_grad_()
        side = shift.clone().requires_grad_()
        model(image, side, scale=0.5).square().mean().backward()
        found.append([image.grad, side.grad, *(parameter.grad for parameter in model.parameters())])
    assert all(map(torch.equal, *found))
    last = mn.ReversibleSequential(*functions(3), split_dim=-1)
    assert torch.equal(last(rows()), mn.ReversibleSequential(*functions(3))(rows()))


def test_what_is_refused() -> None:
    with pytest.raises(mn.ConversionError, match=r"takes modules, one or more, got \['function'\]"):
        mn.ReversibleSequential(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(mn.ConversionError, match="got none"):
        mn.ReversibleSequential()
    with pytest.raises(ValueError, match="backward must be one of"):
        mn.ReversibleSequential(nn.Identity(), backward="none")
    model = mn.ReversibleSequential(nn.Linear(3, 3))
    for bad in (torch.ones(2, 7), torch.ones(2), torch.ones(2, 0), [torch.ones(2, 6)]):
        with pytest.raises(mn.ConversionError, match="cuts dimension 1 of its input in two"):
            model(bad)
    with pytest.raises(mn.ConversionError, match="of its input's shape"):
        mn.ReversibleSequential(nn.Linear(3, 2))(torch.ones(2, 6))
    with pytest.raises(mn.ConversionError, match="no momentum stream"):
        mn.set_gamma(model, 0.5)


def test_float_arithmetic_copies_and_what_is_learnt() -> None:
    blocks = functions(6)
    stored = train_step(net(blocks, "stored", arithmetic="float"), (rows(),))
    inverse = train_step(net(blocks, arithmetic="float"), (rows(),))
    for name, gradient in stored.gradients.items():
        torch.testing.assert_close(inverse.gradients[name], gradient, rtol=1e-4, atol=1e-6)
    model = net(blocks)
    train_step(model, (rows(500),))
    twin = net(blocks)
    mn.load_training_state(twin, mn.training_state(model))
    for candidate in (twin, copy.deepcopy(model)):
        candidate.zero_grad(set_to_none=True)
        again = train_step(candidate, (rows(),))
        assert len(streams_of(candidate)) == 1
    model.zero_grad(set_to_none=True)
    assert_same(again, train_step(model, (rows(),)), tolerance=0)
