"""``momentumnet finetune`` in several processes: the run of one, in parts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from momentumnet.cli import finetune
from momentumnet.cli.failures import explain
from momentumnet.command_errors import UsageError
from momentumnet.finetuning.processes import Processes, _device

ROOT = Path(__file__).resolve().parents[2]
# Without norms over the batch, which would see parts of it.
MINE = """\
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        return x + self.inner(x)


def network():
    torch.manual_seed(0)
    blocks = nn.Sequential(*[Block() for _ in range(4)])
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""
OPTIONS = (
    *("finetune", "--model", "mine:network", "--image-size", "16", "--batch-size", "8", "--accumulate", "2"),
    *("--augment", "none", "--workers", "0", "--device", "cpu", "--lr", "0.01", "--json"),
)


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))


def in_two(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "momentumnet", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def metrics(folder: str) -> list[dict[str, str]]:
    with Path(folder, "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_go_on_as_one_does(command: Callable[..., Any], photos: Path) -> None:
    options = (*OPTIONS, "--data", str(photos), "--resume")
    assert command(*options, "--epochs", "1", "--output", "one").status == 0
    shutil.copytree("one", "two")
    alone = command(*options, "--epochs", "2", "--output", "one")
    assert alone.status == 0, alone.err

    done = in_two(*options, "--epochs", "2", "--output", "two")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"] == json.loads(alone.out)["settings"]
    assert done.stderr.count("2 processes, 4 images of a batch in each") == 1
    assert {path.name for path in Path("two").iterdir()} == {path.name for path in Path("one").iterdir()}
    assert_same_runs()
    assert command("evaluate", "two").status == 0
    for folder in ("one", "two"):  # one goes on with what two have left
        assert command(*options, "--epochs", "3", "--output", folder).status == 0
    assert_same_runs()


def assert_same_runs() -> None:
    columns = ("loss", "accuracy", "train_accuracy", "validation_loss", "lr")
    for expected, found in zip(metrics("one"), metrics("two"), strict=True):
        assert [float(found[name]) for name in columns] == pytest.approx(
            [float(expected[name]) for name in columns], rel=1e-4
        )
    one, two = (load_file(Path(folder, "model.safetensors")) for folder in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_batches_are_shared_out_evenly() -> None:
    three = Processes(0, 3)
    assert [finetune._batch_size(asked, 100, three) for asked in (6, 99, 150)] == [6, 99, 99]
    with pytest.raises(UsageError, match="--batch-size 64 is that of all processes together: take a multiple of 3"):
        finetune._batch_size(64, 100, three)


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:50718",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_process_that_waits_for_one_that_has_ended_says_so(message: str) -> None:
    assert explain(RuntimeError(message)) == ("another process of this run has ended: its message says why", 1)
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_processes_of_a_training() -> None:
    batches = [[0, 1, 2, 3], [4]]
    assert [list(Processes(rank, 2).part(batches)) for rank in range(2)] == [[[0, 2], [4]], [[1, 3]]]
    assert list(Processes().part(batches)) == batches
    alone = Processes()
    assert (alone.from_first(3), alone.gathered(4)) == (3, [4])
    assert torch.equal(alone.total(torch.ones(2)), torch.ones(2))


def test_devices_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _device(torch.device("cpu"), 1, 2) == torch.device("cpu")
    with pytest.raises(UsageError, match="--device cuda:1 is one device for 2 processes"):
        _device(torch.device("cuda:1"), 1, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _device(None, 1, 2) == torch.device("cuda:1")
    with pytest.raises(UsageError, match=r"more processes than GPUs \(2\)"):
        _device(None, 2, 3)
