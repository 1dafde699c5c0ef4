"""``budget="device"``: what is free where the step runs, less a margin."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import momentumnet as mn
from momentumnet.planner.machine import free_memory
from momentumnet.planner.machine.budget import bytes_of
from tests.models import Chain, ResidualMLP

GIB = 1 << 30


def system(monkeypatch: pytest.MonkeyPatch, folder: Path, limit: str | None) -> None:
    """A system with 8 GiB left, and a container in it that has taken 1 GiB, 256 MiB of it pages of files."""
    (folder / "meminfo").write_text(f"MemTotal: 16777216 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    if limit is not None:
        (folder / "max").write_text(limit)
        (folder / "current").write_text(str(GIB))
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 4}\n")
    monkeypatch.setattr(free_memory, "_MEMINFO", folder / "meminfo")
    monkeypatch.setattr(free_memory, "_CONTAINERS", ((folder / "max", folder / "current"),))


@pytest.mark.parametrize(
    ("limit", "free"), [(None, 8 * GIB), ("max", 8 * GIB), (str(2 * GIB), 5 * GIB // 4), (str(GIB // 2), 0)]
)
def test_on_the_cpu_the_system_and_the_container_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, free: int
) -> None:
    system(monkeypatch, tmp_path, limit)
    assert bytes_of("device", torch.device("cpu")) == int(0.9 * free)


def test_on_an_accelerator_what_its_allocator_keeps_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        mem_get_info=lambda device: (3 * GIB, 80 * GIB),
        memory_reserved=lambda device: 7 * GIB,
        memory_allocated=lambda device: 5 * GIB,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert free_memory.free_bytes(torch.device("cuda", 1)) == int(0.9 * 5 * GIB)


def test_a_device_that_does_not_tell() -> None:
    with pytest.raises(ValueError, match="what is free on meta is not known; give a number of bytes"):
        bytes_of("device", torch.device("meta"))


def test_a_plan_for_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    system(monkeypatch, tmp_path, str(GIB))  # all but 256 MiB are taken
    model, x = Chain([ResidualMLP() for _ in range(3)]), torch.randn(64, 16)
    plan = mn.plan(model, x, budget="device")
    assert plan.budget == int(0.9 * GIB / 4)
    assert {unit.way for unit in plan.units} == {"stored"}
    assert mn.largest_batch(model, lambda batch: torch.randn(batch, 16), "device", most=9) == 9
    system(monkeypatch, tmp_path, str(GIB - GIB // 4 + 20000))
    with pytest.raises(mn.ConversionError, match=r"no choice fits a budget of 17\.6 KiB"):
        mn.convert(model, x, budget="device")
