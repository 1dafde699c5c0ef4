"""Train a converted network in several processes, and go on in another number of them.

    torchrun --nproc-per-node 2 examples/finetune_distributed.py --folder run --steps 40
    python examples/finetune_distributed.py --folder run --steps 80

The first line trains in two processes, with parameters and optimizer in shards (FSDP2, on a GPU each where there are
some), and keeps a checkpoint (torch.distributed.checkpoint). The second one finds it and goes on, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import momentumnet as mn

BATCH = 96  # of all processes together


class Block(nn.Module):
    """x + W relu(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def converted(images: torch.Tensor, folder: Path) -> nn.Sequential:
    """The network before it is wrapped: as it was in an earlier run, if the folder holds one."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), *[Block() for _ in range(12)], nn.Linear(128, 10))
    if (folder / "momentum.json").exists():
        earlier = json.loads((folder / "momentum.json").read_text())
        network = mn.convert(network, like=earlier["description"], inplace=True)
        mn.load_training_state(network, earlier["streams"])
        return network
    return mn.convert(network, images[:BATCH], gamma=0.9, inplace=True)


def sharded(network: nn.Sequential, device: torch.device) -> nn.Sequential:
    """Convert first, then shard: blocks gather their parameters again when they are recomputed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in network[1:-1]:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def save(network: nn.Module, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Each process writes its shards; the first one what the network is, and what its streams have learned."""
    model_state, optimizer_state = get_state_dict(network, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state, "step": step}, checkpoint_id=folder / "shards")
    if int(os.environ.get("RANK", "0")) == 0:
        beside = {"description": mn.describe(network), "streams": mn.training_state(network)}
        (folder / "momentum.json").write_text(json.dumps(beside))


def resume(network: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Put the saved state in place, whatever the number of processes that wrote it; return the steps made."""
    if not (folder / "momentum.json").exists():
        return 0
    model_state, optimizer_state = get_state_dict(network, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "step": 0}
    dcp.load(state, checkpoint_id=folder / "shards")
    set_state_dict(network, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(state["step"])


def own_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def main(arguments: list[str] | None = None) -> list[float]:
    """The losses of the steps that were made, over all processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/distributed"), help="of the checkpoint")
    parser.add_argument("--steps", type=int, default=40, help="in all, those of earlier runs included")
    parser.add_argument("--short", action="store_true", help="4 steps")
    options = parser.parse_args(arguments)
    steps = 4 if options.short else options.steps
    options.folder.mkdir(parents=True, exist_ok=True)

    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = own_device()
    if processes > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32, device=device) / 16
    labels = torch.tensor(digits.target, device=device)
    network = converted(images.cpu(), options.folder).to(device).train()
    if processes > 1:
        network = sharded(network, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    done = resume(network, optimizer, options.folder)

    if done >= steps and rank == 0:
        print(f"{options.folder} has made {done} of {steps} steps already: nothing is left to do")
    losses = []
    for step in range(done, steps):
        generator = torch.Generator().manual_seed(step)  # the same batch in any number of processes
        batch = torch.randperm(len(labels), generator=generator)[:BATCH].chunk(processes)[rank]
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach() / processes
        if processes > 1:
            dist.all_reduce(mean)
        losses.append(mean.item())
        if rank == 0:
            print(f"step {step + 1}, {processes} process{'es' * (processes > 1)}: loss {losses[-1]:.6f}")
    save(network, optimizer, max(done, steps), options.folder)
    if processes > 1:
        dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
