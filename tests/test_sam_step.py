"""The benchmark of SAM's step: what is compared with what, and the memory that it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks import sam_step


def test_quick_run_writes_a_row_for_each_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sam_step.main(["--quick", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "sam-step.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 9
    assert rows[sam_step.REFERENCE]["time_to_reference"] == 1
    ratio = rows["SAM"]["seconds"] / rows[sam_step.REFERENCE]["seconds"]
    assert rows["SAM"]["time_to_reference"] == pytest.approx(ratio)
    # What docs/sam.md says: a copy of the parameters, one of the largest block, one and the gradients' of chunks.
    net = network()
    largest = max(sum(p.numel() for p in part) for part in sam_step.parts(net)) / sum(
        p.numel() for p in net.parameters()
    )
    copies = {"SAM": 1, "adaptive SAM": 1, "Extragradient": 1, "SAM, blocks=": largest, "SAM, step_chunks in 4": 2}
    for method, expected in copies.items():
        assert rows[method]["extra_copies"] == pytest.approx(expected, abs=0.1), method
    for method in ("the same again", "one pass, one step"):
        assert rows[method]["extra_copies"] == pytest.approx(0, abs=0.1), method
    table = (tmp_path / "sam-step.md").read_text()
    assert f"| SAM | {1000 * rows['SAM']['seconds']:.1f} | {ratio:.3f} | " in table
    assert "adaptive SAM" in capsys.readouterr().out


def test_reference_makes_as_many_passes_and_steps_as_sam() -> None:
    net = network()
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8)
    passes: list[int] = []
    net.register_forward_hook(lambda *_: passes.append(1))
    last = net.fc.weight
    for method, run in sam_step.operations(net, x, y).items():
        passes.clear()
        before = last.detach().clone()
        run()
        chunks = sam_step.CHUNKS if "chunks" in method else 1
        assert len(passes) == chunks * (1 if method.startswith("one pass") else 2), method
        assert not torch.equal(last, before), method


def test_parts_hold_each_parameter_once() -> None:
    net = network()
    held = [parameter for part in sam_step.parts(net) for parameter in part]
    assert len(held) == len(set(held)) == len(list(net.parameters()))


@pytest.mark.parametrize("case", ["16", "7x32", "16x0", "ax32", "16x32,"])
def test_cases_that_cannot_be_are_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sam_step.main(["--cases", case])
    assert "is no batch (8 or more) x image size" in capsys.readouterr().err


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).train()
