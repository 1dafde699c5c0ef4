"""The adjoint's kernel: the bits of the plain operations for whatever it takes, and plain operations for the rest."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic import adjoint as adjoints
from momentumnet.arithmetic.adjoint import adjoint, by_operations
from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.cases import sizes
from tests.arithmetic.compiled.reference import same_bits
from tests.arithmetic.compiled.variants import exact, needs_kernels
from tests.arithmetic.strategies import gammas

SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 3e38, -3e38, 5e-324]
HALF = (torch.bfloat16, torch.float16)
# Types of the gradients of x and of v.
TYPES = [(t, t) for t in (torch.float32, torch.float64, *HALF)] + [(half, torch.float32) for half in HALF]
types = st.sampled_from(TYPES)
GAMMA, WEIGHT = 0.9, 0.1


def any_gradient(dtype: torch.dtype, size: int, seed: int) -> Tensor:
    """Values of every magnitude, special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(size, generator=generator, dtype=torch.float64)
    value *= 2.0 ** torch.randint(-120, 120, (size,), generator=generator)
    chosen = torch.randint(0, 3 * len(SPECIAL), (size,), generator=generator)
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    return torch.where(chosen < len(SPECIAL), special[chosen.clamp(max=len(SPECIAL) - 1)], value).to(dtype)


def check(grad_x: Tensor, grad_v: Tensor, gamma: float = GAMMA, weight: float = WEIGHT) -> None:
    """`adjoint` against the plain operations: bits, layout and whose memory is used."""
    for branch_is_output in (False, True):
        for overwrite in (False, True):
            options = {"branch_is_output": branch_is_output, "overwrite": overwrite}
            one_v, other_v = (torch.empty_like(grad_v).copy_(grad_v) for _ in range(2))
            seen_x, version = grad_x.clone(), other_v._version
            expected = by_operations(grad_x, one_v, gamma, weight, **options)
            with torch.no_grad():
                found = adjoint(grad_x, other_v, gamma, weight, **options)
            for one, other in zip(found, expected, strict=True):
                assert one.stride() == other.stride()
                if grad_x.dtype in HALF:  # which NaN comes of a half type's depends on the instruction
                    one, other = (value.where(~value.isnan(), torch.nan) for value in (one, other))
                assert same_bits(one.contiguous(), other.contiguous())
            assert (found[1] is other_v) == overwrite
            assert (found[2] is grad_x) == branch_is_output
            assert (other_v._version > version) == overwrite, "autograd must know of it"
            assert overwrite or same_bits(other_v, one_v)
            assert same_bits(seen_x, grad_x)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels that are launched, as they come."""
    names: list[str] = []
    launch = adjoints.launch

    def recorded(name: str, *arguments: object) -> None:
        names.append(name)
        launch(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(adjoints, "launch", recorded)
    return names


@given(types=types, size=sizes, seed=st.integers(0, 1 << 30), gamma=gammas)
@exact(150)
def test_bits_are_those_of_the_plain_operations(
    variant: str, types: tuple[torch.dtype, torch.dtype], size: int, seed: int, gamma: Fraction
) -> None:
    check(any_gradient(types[0], size, seed), any_gradient(types[1], size, seed + 1), float(gamma), float(1 - gamma))


@needs_kernels
@pytest.mark.usefixtures("_two_threads", "_threads")
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_threads_share_one_tensor(types: tuple[torch.dtype, torch.dtype]) -> None:
    check(any_gradient(types[0], 70_001, 0), any_gradient(types[1], 70_001, 1))


def test_half_types_are_computed_in_float32_and_rounded_once() -> None:
    grad_x, grad_v = torch.randn(1000).bfloat16(), torch.randn(1000).bfloat16()
    found = adjoint(grad_x, grad_v, GAMMA, WEIGHT, branch_is_output=False)
    total = grad_x.double() + grad_v.double()
    exact = total * float(WEIGHT), total * float(GAMMA), grad_x.double() - total * float(WEIGHT)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert ((one.double() - other).abs() <= 2.0**-8 * other.abs() + 1e-6).all()


def of(make: Callable[[Tensor], Tensor], numbers: int = 5 * 6 * 4 * 2 + 3) -> tuple[Tensor, Tensor]:
    grad_x, grad_v = (make(any_gradient(torch.float32, numbers, seed)) for seed in (2, 3))
    return grad_x, grad_v


TAKEN = {
    "of no dimension": lambda g: g[0],
    "of four": lambda g: g[:-3].view(5, 6, 4, 2),
    "channels last": lambda g: g[:-3].view(5, 6, 4, 2).contiguous(memory_format=torch.channels_last),
    "turned": lambda g: g[:-3].view(12, 20).t(),
    "not aligned": lambda g: g[1:],
    "of half precision": lambda g: g.bfloat16(),
}
NOT_TAKEN = {
    "gaps": lambda g: g[::2],
    "one value for all": lambda g: g[0].expand(7),
    "one row for all": lambda g: g[:7].expand(3, 7),
    "overlapping": lambda g: g.unfold(0, 4, 2),
}


@needs_kernels
@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
def test_dense_layouts_take_the_kernel(make: Callable[[Tensor], Tensor], launched: list[str]) -> None:
    check(*of(make))
    assert launched == ["mn_adjoint"] * 4


@needs_kernels
@pytest.mark.parametrize("make", NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_other_layouts_take_plain_operations(make: Callable[[Tensor], Tensor], launched: list[str]) -> None:
    grad_x, grad_v = of(make)
    expected = by_operations(grad_x, grad_v, GAMMA, WEIGHT, branch_is_output=False, overwrite=False)
    with torch.no_grad():
        found = adjoint(grad_x, grad_v, GAMMA, WEIGHT, branch_is_output=False)
    assert all(map(same_bits, found, expected))
    assert launched == []


@needs_kernels
def test_two_layouts_take_plain_operations(launched: list[str]) -> None:
    grad_x = torch.randn(4, 6)
    check(grad_x, torch.randn(6, 4).t())
    check(grad_x, torch.randn(4, 6, dtype=torch.float64))
    with torch.no_grad():
        assert adjoint(grad_x, torch.randn(6), GAMMA, WEIGHT)[0].shape == (4, 6)
    assert launched == []


class Subclass(Tensor):
    """A tensor that PyTorch dispatches on."""


@needs_kernels
def test_what_is_more_than_memory_takes_plain_operations(launched: list[str]) -> None:
    grad_x, grad_v = torch.randn(3, 5), torch.randn(3, 5)
    expected = by_operations(grad_x, grad_v, GAMMA, WEIGHT, branch_is_output=False, overwrite=False)

    def call(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return adjoint(x, v, GAMMA, WEIGHT, branch_is_output=False)

    assert all(map(torch.equal, torch.func.vmap(call)(grad_x, grad_v), expected))
    assert isinstance(call(grad_x.as_subclass(Subclass), grad_v)[0], Subclass)
    negative, zeros = torch._neg_view(-grad_x), torch._efficientzerotensor((3, 5))
    assert (negative.is_neg(), zeros._is_zerotensor()) == (True, True)
    assert all(map(torch.equal, call(negative, grad_v), expected))
    expected = by_operations(torch.zeros(3, 5), grad_v, GAMMA, WEIGHT, branch_is_output=False, overwrite=False)
    assert all(map(torch.equal, call(zeros, grad_v), expected))
    assert launched == []


@needs_kernels
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
def test_other_kinds_of_tensors_take_plain_operations(launched: list[str]) -> None:
    grad_x, grad_v = torch.randn(3, 5), torch.randn(3, 5)
    expected = by_operations(grad_x, grad_v, GAMMA, WEIGHT, branch_is_output=False, overwrite=False)
    with torch.no_grad():
        nested = adjoint(*(torch.nested.nested_tensor(list(g)) for g in (grad_x, grad_v)), GAMMA, WEIGHT)
        sparse = adjoint(*(g.to_sparse_csr() for g in (grad_x, grad_v)), GAMMA, WEIGHT)
    assert torch.equal(torch.stack(list(nested[0].unbind())), expected[0])
    assert torch.equal(sparse[0].to_dense(), expected[0])
    assert launched == []


@needs_kernels
def test_a_backward_that_is_differentiated_takes_plain_operations(launched: list[str]) -> None:
    grad_x = torch.randn(6, requires_grad=True)
    grad_branch, _, _ = adjoint(grad_x, torch.randn(6), GAMMA, WEIGHT)
    (second,) = torch.autograd.grad(grad_branch.sum(), grad_x)
    assert torch.equal(second, torch.full((6,), WEIGHT))
    assert launched == []


@needs_kernels
def test_compiled_code_takes_plain_operations(launched: list[str]) -> None:
    def program(x: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            return adjoint(x, v, GAMMA, WEIGHT)[0]

    x, v = torch.randn(6), torch.randn(6)
    found = torch.compile(program, backend="aot_eager", fullgraph=True)(x, v)
    assert launched == []
    assert torch.equal(found, program(x, v))


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "cpu", lambda: libraries.Kernels(None, "for a test"))
    check(torch.randn(5), torch.randn(5))
    assert not mn.native.available()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_of_a_stream_takes_the_kernel_at_each_step(dtype: torch.dtype, launched: list[str]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x)

    x = torch.randn(4, 6, dtype=dtype)
    model = mn.convert(nn.Sequential(*(Block() for _ in range(5))).to(dtype), x)
    model(x).square().sum().backward()
    assert launched.count("mn_adjoint") == 5
