"""A look at a few values of several tensors, by the kernel: the number of the plain operations, and of the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from momentumnet.arithmetic import fingerprint
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import launching, libraries
from tests.arithmetic.compiled.variants import exact

TYPES = sorted(fingerprint._SIZES, key=str)


@st.composite
def some_values(draw: st.DrawFn) -> list[Tensor]:
    """Up to as many tensors as one look takes, of any types and strides, from any element on."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    found = []
    for _ in range(draw(st.integers(1, libraries.PIECES))):
        dtype, count = draw(st.sampled_from(TYPES)), draw(st.sampled_from([1, 2, 3, 255, 256, 257, 1024]))
        first, stride = draw(st.integers(0, 3)), draw(st.integers(1, 5))
        memory = torch.randint(0, 256, ((first + count * stride) * dtype.itemsize,), generator=generator)
        if dtype == torch.bool:
            memory = memory % 2
        found.append(memory.to(torch.uint8).view(dtype)[first::stride][:count])
    return found


def number_of(values: list[Tensor]) -> int:
    """The formula of `fixed_point.checksum`, an element at a time in Python's integers."""
    total = place = 0
    for number, value in enumerate(values):
        raw = value.clone(memory_format=torch.contiguous_format).view(torch.uint8).view(len(value), -1)
        for row in raw.tolist():
            mixed = int.from_bytes(bytes(row), "little") * 0x27D4EB2F + number * 0x165667B1 + place * 0x1E3779B1
            mixed %= 1 << 64
            mixed = (mixed ^ mixed >> 31) * 0x2C1B3C6D % (1 << 64)
            total += mixed ^ mixed >> 31
            place += 1
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


@given(values=some_values())
@exact(100)
def test_the_kernel_gives_the_number_of_the_formula(variant: str, values: list[Tensor]) -> None:
    assert launching.look(values).tolist() == [0, number_of(values)]


def test_more_than_one_block_of_a_gpu_looks_at(variant: str) -> None:
    """They share the elements, and add to one report."""
    generator = torch.Generator().manual_seed(0)
    counts = {torch.bfloat16: 9001, torch.float32: 1, torch.int64: libraries.LOOK_ALONE // 2}
    values = [torch.randint(-99, 99, (2 * count,), generator=generator).to(dtype) for dtype, count in counts.items()]
    values = [value[::2] for value in values]
    assert sum(map(len, values)) > libraries.LOOK_ALONE
    for _ in range(2):
        assert launching.look(values).tolist() == [0, number_of(values)]


@given(values=some_values())
@exact(50)
def test_so_do_plain_operations(values: list[Tensor]) -> None:
    assert fingerprint.look(values).tolist() == [0, number_of(values)]


@pytest.mark.parametrize("change", ["a value", "its place", "the tensor it is in", "its sign"])
def test_every_change_is_seen(change: str) -> None:
    values = [torch.arange(1.0, 6.0), torch.arange(11.0, 16.0)]
    (before,) = fingerprint.joint_fingerprint(values)
    changed = [value.clone() for value in values]
    if change == "a value":
        changed[1][3] = torch.nextafter(changed[1][3], torch.tensor(20.0))
    elif change == "its place":
        changed[0] = changed[0].flip(0)
    elif change == "the tensor it is in":
        changed.reverse()
    else:
        changed[0][0] = -changed[0][0]
    (after,) = fingerprint.joint_fingerprint(changed)
    assert before[1] != after[1]


def test_many_tensors_and_large_ones_are_looked_at_as_well() -> None:
    values = [torch.full((4,), float(number)) for number in range(2 * libraries.PIECES + 1)]
    large = torch.arange(fingerprint.FEW + 1)
    reports = fingerprint.joint_fingerprint([*values, large])
    assert len(reports) == 4
    for index in range(len(values)):
        others = [value + (place == index) for place, value in enumerate(values)]
        changed = fingerprint.joint_fingerprint([*others, large])
        assert [bool(a[1] != b[1]) for a, b in zip(reports, changed, strict=True)].count(True) == 1
    assert fingerprint.joint_fingerprint([*values, large + 1])[3][1] != reports[3][1]


def test_without_kernels_plain_operations_look(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [torch.randn(5), torch.tensor([True, False])]
    (with_kernels,) = fingerprint.joint_fingerprint(values)
    monkeypatch.setattr(libraries, "of", lambda device: libraries.Kernels(None, "for a test"))
    (without,) = fingerprint.joint_fingerprint(values)
    assert torch.equal(with_kernels, without)
    assert without[1] == fp.checksum(
        torch.cat([values[0].view(torch.int32).to(torch.int64) & 0xFFFFFFFF, values[1].to(torch.int64)]),
        torch.tensor([0] * 5 + [1] * 2),
        torch.zeros(7, dtype=torch.int64),
    )
