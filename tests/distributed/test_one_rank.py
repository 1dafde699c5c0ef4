"""What only one process sees: values that outgrow their scale, NaN, a block that is not deterministic.

Blocks that call collectives are recomputed by all processes or by none, so one of them must not decide for itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, gradients, loss
from tests.processes import PROCESSES, found_by, leave, run_in_two

ROOT = Path(__file__).resolve().parents[2]
Found = dict[str, "Tensor | None"]


class Averaged(nets.ResidualMLP):
    """Adds the mean over the processes of what it computes, so that its recompute calls the others."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if not dist.is_initialized():
            first, second = y.chunk(PROCESSES)
            return x + y + 0.1 * (first + second).repeat(PROCESSES, 1)
        return x + y + 0.1 * nets.SumOverProcesses.apply(y)


def steps(net: nn.Module, model: nn.Module, batches: list[Tensor]) -> list[Found]:
    """The gradients of each step."""
    found = []
    for x in batches:
        model.zero_grad()
        loss(model, x).backward()
        found.append({name: None if g is None else g.clone() for name, g in gradients(net).items()})
    return found


def batches(value: float) -> list[Tensor]:
    """An ordinary batch, one that is ``value`` times as large in its first half, and the first again."""
    uneven = data().clone()
    uneven[: nets.BATCH // PROCESSES] *= value
    return [data(), uneven, data()]


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "outgrown": lambda: batches(50),
    "nan": lambda: batches(float("nan")),
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        net = converted(chain(Averaged), example=data())
        own = [x.chunk(PROCESSES)[rank] for x in case()]
        leave(folder, name, steps(net, DistributedDataParallel(net), own))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one_rank")
    run_in_two(work, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_processes_stay_in_step(case: str, folder: Path) -> None:
    net = converted(chain(Averaged), "stored")
    for found, expected in zip(found_by(folder, case), steps(net, net, CASES[case]()), strict=True):
        for name, value in expected.items():
            assert found[name] is not None
            assert value is not None
            if value.isnan().any():
                assert found[name].isnan().any(), name
            else:
                # Each process has a scale of its own: small values are not rounded for the large ones of others.
                nets.assert_same({name: found[name]}, {name: value}, 1e-5)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_failure_on_one_process_ends_all_with_its_message(wrapper: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
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
