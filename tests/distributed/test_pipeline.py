"""Pipelines: stages that are cut where streams end, on two and on four processes, give the gradients of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

import momentumnet as mn
from tests.distributed import nets
from tests.distributed.nets import data, gradients
from tests.models import WIDTH, ResidualMLP
from tests.processes import Group, groups, leave

Found = dict[str, "Tensor | None"]
MICROBATCHES = 4


def parts(count: int) -> nn.Sequential:
    """As many streams as there are processes, with layers between them that change the stream."""
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(WIDTH, WIDTH), *[ResidualMLP() for _ in range(3)]) for _ in range(count)]
    )


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def converted_then_cut(count: int, backward: str = "reversible") -> nn.Sequential:
    return mn.convert(parts(count), data(), gamma=nets.GAMMA, backward=backward)


def cut_then_converted(count: int, backward: str = "reversible") -> nn.Sequential:
    return nn.Sequential(*[mn.convert(part, data(), gamma=nets.GAMMA, backward=backward) for part in parts(count)])


BUILDS: dict[str, Callable[..., nn.Sequential]] = {
    "converted_then_cut": converted_then_cut,
    "cut_then_converted": cut_then_converted,
}
SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


def trained(build: Callable[..., nn.Sequential], schedule: type[PipelineScheduleSingle], rank: int) -> Found:
    """Gradients of this process's part."""
    processes = dist.get_world_size()
    part = build(processes)[rank]
    example = data().chunk(MICROBATCHES)[0]
    # Without these it would look at shapes by a forward on memory that nobody has written.
    shapes = {
        "input_args": example.requires_grad_(rank > 0),
        "output_args": torch.empty_like(example, requires_grad=True),
    }
    stage = PipelineStage(part, rank, processes, torch.device("cpu"), **shapes)
    steps = schedule(stage, MICROBATCHES, loss_fn=mean_square)
    target = torch.zeros(data().shape) if rank == processes - 1 else None
    steps.step(*([data()] if rank == 0 else []), target=target)
    return gradients(part)


def work(rank: int, folder: Path) -> None:
    for name, build in BUILDS.items():
        for kind, schedule in SCHEDULES.items():
            leave(folder, f"{name}-{kind}", trained(build, schedule, rank))


group = groups(work)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", BUILDS)
def test_stages_that_end_with_streams_give_the_gradients_of_one_process(name: str, kind: str, group: Group) -> None:
    net = BUILDS[name](group.processes, "stored")
    mean_square(net(data()), torch.zeros(data().shape)).backward()
    for rank in range(group.processes):
        nets.assert_same(group.found(f"{name}-{kind}", rank), gradients(net[rank]), nets.TOLERANCE)


def test_a_stage_that_begins_inside_a_stream_is_warned_of() -> None:
    net = mn.convert(nn.Sequential(*[ResidualMLP() for _ in range(4)]), data(), gamma=nets.GAMMA)
    stage = net[2:]
    for _ in range(2):
        stage(data())
    with pytest.warns(mn.MomentumNetWarning, match=r"began at block '2' .* without the 2 before it"):
        stage(data())
    stage(data())  # once is enough: a warning would be an error here


def test_a_stage_that_ends_inside_a_stream_is_warned_of() -> None:
    net = mn.convert(nn.Sequential(*[ResidualMLP() for _ in range(4)]), data(), gamma=nets.GAMMA)
    stage = net[:3]
    for _ in range(2):
        stage(data()).sum().backward()
    with pytest.warns(mn.MomentumNetWarning, match=r"ended with block '2' .* without the 1 behind it"):
        stage(data()).sum().backward()
    stage(data()).sum().backward()


def test_passes_that_failed_have_not_ended_early() -> None:
    net = mn.convert(nn.Sequential(*[ResidualMLP() for _ in range(4)]), data(), gamma=nets.GAMMA)
    for _ in range(5):
        net[:3](data())  # nothing behind it: the step that needed too much memory, say
    net(data()).sum().backward()
    for _ in range(5):
        net[:3](data()).sum().backward()


def test_a_block_that_is_left_out_now_and_then_is_no_stage() -> None:
    net = mn.convert(nn.Sequential(*[ResidualMLP() for _ in range(4)]), data(), gamma=nets.GAMMA)
    for blocks in (net[1:], net, net[1:], net[2:], net[1:]):
        blocks(data())
