"""What only one process sees: values that outgrow their scale, NaN, a block that is not deterministic.

Blocks that call collectives are recomputed by all processes or by none, so one of them must not decide for itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, gradients, loss, own
from tests.processes import COUNTS, Group, groups, leave

ROOT = Path(__file__).resolve().parents[2]
Found = dict[str, "Tensor | None"]


class Averaged(nets.ResidualMLP):
    """Adds the sum over the processes of what it computes, so that its recompute calls the others."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if not dist.is_initialized():
            return x + y + 0.1 * sum(y.chunk(self.parts)).repeat(self.parts, 1)
        return x + y + 0.1 * nets.SumOverProcesses.apply(y)


def steps(net: nn.Module, model: nn.Module, batches: list[Tensor]) -> list[Found]:
    """The gradients of each step."""
    found = []
    for x in batches:
        model.zero_grad()
        loss(model, x).backward()
        found.append({name: None if g is None else g.clone() for name, g in gradients(net).items()})
    return found


def batches(value: float, processes: int) -> list[Tensor]:
    """An ordinary batch, one that is ``value`` times as large for the first process, and the first again."""
    uneven = data().clone()
    uneven[: nets.BATCH // processes] *= value
    return [data(), uneven, data()]


CASES = {"outgrown": 50, "nan": float("nan")}


def averaged(parts: int, backward: str = "reversible") -> Any:
    return converted(chain(lambda: Averaged(parts)), backward)


def work(rank: int, folder: Path) -> None:
    processes = dist.get_world_size()
    for name, value in CASES.items():
        net = averaged(processes)
        leave(folder, name, steps(net, DistributedDataParallel(net), [own(x) for x in batches(value, processes)]))


group = groups(work)


@pytest.mark.parametrize("case", CASES)
def test_processes_stay_in_step(case: str, group: Group) -> None:
    net = averaged(group.processes, "stored")
    of_one = steps(net, net, batches(CASES[case], group.processes))
    for found, expected in zip(group.found(case), of_one, strict=True):
        for name, value in expected.items():
            assert found[name] is not None
            assert value is not None
            if value.isnan().any():
                assert found[name].isnan().any(), name
            else:
                # Each process has a scale of its own: small values are not rounded for the large ones of others.
                nets.assert_same({name: found[name]}, {name: value}, 1e-5)


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_failure_on_one_process_ends_all_with_its_message(wrapper: str, processes: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = Path(__file__).with_name("failing.py")
    begun = tmp_path / "begun"

    run = subprocess.run(
        [*command, str(script), str(begun), wrapper],
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # the script imports its network from the tests
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert run.returncode != 0
    assert "ReconstructionError: block 'blocks.2'" in run.stderr
    assert time.time() - begun.stat().st_mtime < 30
