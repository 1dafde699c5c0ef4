"""Two processes: the same masks on both, and the gradients of one process, replicated and sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import momentumnet as mn
from momentumnet.prune import apply_masks, magnitude_masks, masks_of, prunable, random_masks
from tests.models import WIDTH, Chain, ResidualMLP
from tests.processes import PROCESSES, run_in_two
from tests.prune.nets import random_like

MODES = ["plain", "converted", "masked_after_wrapping", "two_forwards", "two_forwards_unsynced", "sharded"]
STEPS = 2


def data() -> Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))


def build(mode: str) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = Chain([ResidualMLP() for _ in range(3)])
    if mode != "masked_after_wrapping":
        apply_masks(net, random_like(prunable(net)))
    return net if mode == "plain" else mn.convert(net, streams=["blocks"])


def loss(net: nn.Module, x: Tensor, mode: str) -> Tensor:
    passes = 2 if mode.startswith("two_forwards") else 1
    return sum(net(x).square().mean() for _ in range(passes))


def train(mode: str, net: nn.Module, model: nn.Module, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """The parameters after some steps, and magnitude masks in rounds."""
    if mode == "masked_after_wrapping":
        apply_masks(net, random_like(prunable(net)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model, x, mode).backward()
        optimizer.step()
    if mode == "sharded":
        return {"parameters": {name: p.full_tensor() for name, p in net.named_parameters()}}
    return {
        "parameters": {name: p.detach().clone() for name, p in net.named_parameters()},
        "masks": magnitude_masks(net, fraction=0.37, previous=masks_of(net)),
    }


def broadcast_is_a_change() -> bool:
    """Whether the broadcast of buffers at a forward moves their counters, so that an earlier forward is lost.

    See pytorch/pytorch#175024: ordinary networks cannot be called twice before backward either then.
    """
    net = build("plain")
    model, mask = DistributedDataParallel(net), next(net.buffers())
    counter = mask._version
    model(data())
    return mask._version != counter


def follow_rank_zero(rank: int) -> dict[str, Tensor]:
    """Masks that differ by process, after a forward."""
    net = build("plain")
    model = DistributedDataParallel(net)
    apply_masks(net, random_masks(net, fraction=0.5, generator=torch.Generator().manual_seed(rank)))
    model(data())
    return masks_of(net)


def refusals(net: nn.Module) -> list[str]:
    masks = random_like({name: p.full_tensor() for name, p in prunable(net).items()})
    messages = []
    for call in (lambda: apply_masks(net, masks), lambda: magnitude_masks(net, fraction=0.5)):
        with pytest.raises(ValueError, match="DTensor") as caught:
            call()
        messages.append(str(caught.value))
    return messages


def worker(rank: int, folder: Path) -> None:
    left_out = "two_forwards" if broadcast_is_a_change() else None
    for mode in MODES:
        if mode == left_out:
            continue
        net, x = build(mode), data().chunk(PROCESSES)[rank]
        if mode == "sharded":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (PROCESSES,))
            for block in net.get_submodule("blocks"):
                fully_shard(block, mesh=mesh)
            fully_shard(net, mesh=mesh)
            model = net
        else:
            model = DistributedDataParallel(net, broadcast_buffers=mode != "two_forwards_unsynced")
        torch.save(train(mode, net, model, x), folder / f"{mode}-{rank}.pt")
        if mode == "sharded":
            torch.save(refusals(net), folder / f"refusals-{rank}.pt")
    torch.save(follow_rank_zero(rank), folder / f"followed-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masks")
    run_in_two(worker, path)
    return path


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one_and_choose_the_same_masks(mode: str, folder: Path) -> None:
    if mode == "two_forwards" and not (folder / f"{mode}-0.pt").exists():
        pytest.skip("this PyTorch counts the broadcast of buffers as a change: it takes broadcast_buffers=False")
    first, second = (torch.load(folder / f"{mode}-{rank}.pt") for rank in range(2))
    net = build(mode)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    if mode == "masked_after_wrapping":
        start = {}
    expected = train("plain" if mode == "sharded" else mode, net, net, data())["parameters"]
    for name, parameter in expected.items():
        assert torch.equal(first["parameters"][name], second["parameters"][name])
        scale = (parameter - start[name]).norm() if start else parameter.norm()
        assert (first["parameters"][name] - parameter).norm() <= 1e-5 * scale + 1e-9, name
    if mode != "sharded":
        kept = {name: torch.ones_like(mask) for name, mask in first["masks"].items()}
        assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())
        half = sum(int(mask.sum()) for mask in random_like(prunable(build("plain"))).values())
        count = sum(mask.numel() for mask in kept.values()) - sum(int((~m).sum()) for m in first["masks"].values())
        assert count == half - (2 * 37 * half + 100) // 200


def test_masks_of_the_first_process_are_those_of_all(folder: Path) -> None:
    first, second = (torch.load(folder / f"followed-{rank}.pt") for rank in range(2))
    net = build("plain")
    own = random_masks(net, fraction=0.5, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(first[name], mask) and torch.equal(second[name], mask) for name, mask in own.items())


def test_sharded_parameters_are_refused(folder: Path) -> None:
    assert all("before the model is sharded" in message for message in torch.load(folder / "refusals-0.pt"))
