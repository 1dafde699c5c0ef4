"""Saved tensors in host memory inside of DistributedDataParallel, whose hooks take the gradients as they come."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.core.offloading import ALL, built, offloading
from tests.processes import found_by, leave, run_in
from tests.recompute.late_copies import planted


def steps(rank: int, folder: Path) -> None:
    model, x = built("attention")
    with pytest.MonkeyPatch.context() as patch, planted(patch) as copies:
        found = []
        for net in (copy.deepcopy(model), offloading(model, *ALL)):
            ddp = DistributedDataParallel(net)
            for scale in (1, 2):
                ddp(x * (rank + scale)).square().sum().backward()
            found.append([parameter.grad for parameter in net.parameters()])
    leave(folder, "gradients", {"found": found, "sent": len(copies.sent)})


def test_gradients_are_those_of_plain_training(tmp_path: Path) -> None:
    run_in(1, steps, tmp_path)
    left = found_by(tmp_path, "gradients")
    plain, offloaded = left["found"]
    assert left["sent"]
    assert all(map(torch.equal, plain, offloaded))
