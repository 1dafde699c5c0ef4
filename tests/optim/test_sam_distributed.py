"""Two processes, perturbed alike by the averaged gradient, or each by its own (m-sharpness); sharded parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import momentumnet as mn
from momentumnet.optim import SAM, Extragradient
from tests.models import WIDTH, Chain, ResidualMLP
from tests.optim.nets import closure_of, sam_gradient
from tests.processes import PROCESSES, run_in_two

MODES = [
    "synchronised",
    "local",
    "local_by_hand",
    "local_chunks",
    "views_chunks",
    "converted",
    "extragradient",
    "sharded",
]
STEPS, RHO, LR = 2, 0.3, 0.5


def build(mode: str) -> Chain:
    torch.manual_seed(0)
    net = Chain([ResidualMLP() for _ in range(3)])
    return net if mode == "converted" else net.double()


def data(mode: str) -> Tensor:
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    return x if mode == "converted" else x.double()


def loss(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def train(mode: str, net: nn.Module, x: Tensor) -> None:
    ddp = DistributedDataParallel(net, gradient_as_bucket_view=mode == "views_chunks")
    if mode == "extragradient":
        optimizer: Any = Extragradient(net.parameters(), SGD, lr=LR)
    else:
        local = mode in ("local", "local_chunks", "views_chunks")
        optimizer = SAM(net.parameters(), SGD, rho=RHO, lr=LR, model=ddp, local=local)
    closure = closure_of(optimizer, lambda: loss(ddp, x))
    for _ in range(STEPS):
        if mode.endswith("chunks"):
            optimizer.step_chunks(lambda part: loss(ddp, part), x, m=2)
        elif mode == "local_by_hand":
            with ddp.no_sync():
                closure()
            optimizer.first_step()
            closure()
            optimizer.second_step()
        else:
            optimizer.step(closure)


def sharded(net: nn.Module, x: Tensor) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = SAM(net.parameters(), SGD, rho=RHO, adaptive=True, lr=LR)
    for _ in range(STEPS):
        optimizer.step(closure_of(optimizer, lambda: loss(net, x)))


def scaled_step(ddp: DistributedDataParallel, optimizer: SAM, scaler: GradScaler, x: Any, factor: float) -> None:
    """A step under a scaler, in which the loss of the first pass is multiplied by a factor."""
    optimizer.zero_grad()
    with ddp.no_sync():
        scaler.scale(loss(ddp, x) * factor).backward()
    optimizer.first_step()
    optimizer.zero_grad()
    scaler.scale(loss(ddp, x)).backward()
    optimizer.second_step(scaler)
    scaler.update()


def overflowing(rank: int) -> dict[str, Any]:
    """A step whose first pass, which nobody else hears of, overflows in the second process; and one that does not."""
    net, x = build("local_by_hand").float(), data("converted").chunk(PROCESSES)[rank]
    ddp, scaler = DistributedDataParallel(net), GradScaler("cpu", init_scale=2.0**12)
    optimizer = SAM(net.parameters(), SGD, rho=RHO, lr=LR, model=ddp)
    scales = []
    for factor in (1 if rank == 0 else float("inf"), 1):
        scaled_step(ddp, optimizer, scaler, x, factor)
        scales.append(scaler.get_scale())
        if len(scales) == 1:
            unmoved = all(map(torch.equal, net.parameters(), build("local_by_hand").float().parameters()))
    return {"scales": scales, "unmoved": unmoved, "parameters": [p.detach() for p in net.parameters()]}


def overflowing_unevenly(rank: int) -> dict[str, Any]:
    """The first process makes three steps, the second two: overflows in the second's first one, in the first's last."""
    net, x = build("local_by_hand").float(), data("converted").chunk(PROCESSES)[rank]
    ddp, scaler = DistributedDataParallel(net), GradScaler("cpu", init_scale=2.0**12)
    optimizer = SAM(net.parameters(), SGD, rho=RHO, lr=LR, model=ddp)
    scales, moved = [], []
    with ddp.join():
        for overflows in ((False, False, True), (True, False))[rank]:
            before = [p.detach().clone() for p in net.parameters()]
            scaled_step(ddp, optimizer, scaler, x, float("inf") if overflows else 1)
            scales.append(scaler.get_scale())
            moved.append(not all(map(torch.equal, net.parameters(), before)))
    return {"scales": scales, "moved": moved, "parameters": [p.detach() for p in net.parameters()]}


def sharded_in_half() -> list[dict[str, list[Tensor]]]:
    """Points that SAM and adaptive SAM go to from a sharded network in bfloat16, and that they go to whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    points = []
    for adaptive in (False, True):
        found = []
        for shard in (False, True):
            net = build("sharded").bfloat16()
            if shard:
                fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
            loss(net, data("sharded").bfloat16()).backward()
            SAM(net.parameters(), SGD, rho=RHO, adaptive=adaptive, lr=LR).first_step()
            found.append([p.full_tensor() if shard else p.detach() for p in net.parameters()])
        points.append({"whole": found[0], "sharded": found[1]})
    return points


def worker(rank: int, folder: Path) -> None:
    torch.save(sharded_in_half(), folder / f"half-{rank}.pt")
    torch.save(overflowing(rank), folder / f"overflow-{rank}.pt")
    torch.save(overflowing_unevenly(rank), folder / f"uneven-{rank}.pt")
    for mode in MODES:
        net, x = build(mode), data(mode).chunk(PROCESSES)[rank]
        if mode == "converted":
            net = mn.convert(net, x, streams=["blocks"])
        (sharded(net, x) if mode == "sharded" else train(mode, net, x))
        parameters = {name: p.full_tensor() if mode == "sharded" else p.detach() for name, p in net.named_parameters()}
        torch.save(parameters, folder / f"{mode}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parameters")
    run_in_two(worker, path)
    return path


def reference(mode: str) -> Chain:
    """One process: the mean over parts of the batch of gradients, each at the perturbation of its part."""
    net, x = build(mode), data(mode)
    parts = {"local": 2, "local_by_hand": 2, "local_chunks": 4, "views_chunks": 4}.get(mode, 1)
    scales = (lambda w: w.abs() + 0.01) if mode == "sharded" else torch.ones_like
    if mode == "converted":
        net = mn.convert(net, x, streams=["blocks"], backward="stored")
    for _ in range(STEPS):
        parameters = list(net.parameters())
        if mode == "extragradient":
            optimizer = Extragradient(parameters, SGD, lr=LR)
            optimizer.step(closure_of(optimizer, lambda: loss(net, x)))
            continue
        gradients = [
            sam_gradient(parameters, lambda: loss(net, part), [RHO] * len(parameters), scales=scales)  # noqa: B023
            for part in x.chunk(parts)
        ]
        with torch.no_grad():
            for parameter, *own in zip(parameters, *gradients, strict=True):
                parameter -= LR * sum(own) / parts
    return net


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_follow_the_formula_and_stay_together(mode: str, folder: Path) -> None:
    first, second = (torch.load(folder / f"{mode}-{rank}.pt") for rank in range(2))
    start = dict(build(mode).named_parameters())
    tolerance = 1e-5 if mode == "converted" else 1e-10
    for name, parameter in reference(mode).named_parameters():
        assert torch.equal(first[name], second[name])
        change = parameter.detach() - start[name].detach()
        assert (first[name] - parameter).norm() <= tolerance * change.norm(), name


def test_an_overflow_in_one_process_skips_the_step_of_all(folder: Path) -> None:
    first, second = (torch.load(folder / f"overflow-{rank}.pt") for rank in range(2))
    assert first["scales"] == second["scales"] == [2.0**11, 2.0**11]
    assert first["unmoved"]
    assert second["unmoved"]
    assert all(map(torch.equal, first["parameters"], second["parameters"]))


def test_it_does_so_where_one_process_has_ended(folder: Path) -> None:
    """``join`` shadows the collectives of the model alone: one of the optimizer's own was taken for one of these."""
    first, second = (torch.load(folder / f"uneven-{rank}.pt") for rank in range(2))
    assert (first["moved"], second["moved"]) == ([False, True, False], [False, True])
    assert first["scales"] == [2.0**11, 2.0**11, 2.0**10]
    assert second["scales"] == [2.0**11, 2.0**11]
    assert all(map(torch.equal, first["parameters"], second["parameters"]))


def test_sharded_parameters_of_half_precision_move_as_whole_ones(folder: Path) -> None:
    for points in torch.load(folder / "half-0.pt"):
        for whole, sharded in zip(points["whole"], points["sharded"], strict=True):
            torch.testing.assert_close(sharded, whole, rtol=2**-7, atol=2**-9)  # gradients are averages, rounded anew


def test_local_and_synchronised_perturbations_differ(folder: Path) -> None:
    local, synchronised = (torch.load(folder / f"{mode}-0.pt") for mode in ("local", "synchronised"))
    assert not torch.allclose(local["head.weight"], synchronised["head.weight"], rtol=1e-5)
