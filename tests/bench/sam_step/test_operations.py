"""The benchmark of SAM's step: what is compared with what."""

from __future__ import annotations

import torch

from momentumnet.bench.sam_step import operations as sam_step
from tests.bench.sam_step.networks import network


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
