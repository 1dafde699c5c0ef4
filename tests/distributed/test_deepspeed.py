"""DeepSpeed's ZeRO on two and on four processes: what one process computes, or a refusal that says why.

DeepSpeed is built when it is installed, so it is no extra of this package; `.ci/run` installs it for these tests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import momentumnet as mn
from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, own
from tests.models import Chain
from tests.processes import Group, groups, leave

STAGES = (1, 2)
PARTITIONED = 3
ACCUMULATION = 2
STEPS = 3
RATE = 0.1


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)


def batches() -> list[Tensor]:
    """One for each micro-step, the same in all processes."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(data().shape, generator=generator) for _ in range(STEPS * ACCUMULATION)]


def engine_of(net: nn.Module, stage: int) -> Any:
    os.environ.update(LOCAL_RANK=str(dist.get_rank()), DS_ACCELERATOR="cpu")
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": len(data()) // dist.get_world_size(),
        "gradient_accumulation_steps": ACCUMULATION,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer(net), config=config, dist_init_required=False)
    return engine


def trained(net: nn.Module, stage: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients of the first step, and the parameters after the last."""
    from deepspeed.utils import safe_get_full_grad

    engine, first = engine_of(net, stage), {}
    for number, batch in enumerate(batches()):
        engine.backward(engine(own(batch)).square().mean())
        if number == ACCUMULATION - 1:
            first = {name: safe_get_full_grad(parameter) for name, parameter in net.named_parameters()}
        engine.step()
    return first, {name: parameter.detach() for name, parameter in net.named_parameters()}


def work(rank: int, folder: Path) -> None:
    for stage in STAGES:
        leave(folder, f"stage-{stage}", trained(converted(chain()), stage))
    for others in ("keep", "checkpoint"):
        net = mn.convert(chain(), data(), gamma=nets.GAMMA, others=others)
        with pytest.raises(mn.ConversionError) as refused:
            engine_of(net, PARTITIONED)(data())
        leave(folder, f"refused-{others}", str(refused.value))


group = groups(work, needs="deepspeed", reason="pip install deepspeed")


def expected() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`trained` of one process, with stored activations."""
    net: Chain = converted(chain(), "stored")
    steps, first = optimizer(net), {}
    for number, batch in enumerate(batches()):
        (net(batch).square().mean() / ACCUMULATION).backward()
        if (number + 1) % ACCUMULATION == 0:
            first = first or {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
            steps.step()
            steps.zero_grad()
    return first, {name: parameter.detach() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_and_parameters_are_those_of_one_process(stage: int, group: Group) -> None:
    gradients, parameters = expected()
    for rank in range(group.processes):
        found, after = group.found(f"stage-{stage}", rank)
        nets.assert_same(found, gradients, nets.TOLERANCE)
        nets.assert_same(after, parameters, nets.TOLERANCE)
    before = dict(converted(chain()).named_parameters())
    assert all((parameters[name] - value).norm() > 1e-3 * value.norm() for name, value in before.items())


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_partitioned_parameters_are_refused(others: str, group: Group) -> None:
    assert "ZeRO stage 3" in group.found(f"refused-{others}")


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_partitioned_parameters_are_known_by_deepspeeds_mark(others: str) -> None:
    net = mn.convert(chain(), data(), gamma=nets.GAMMA, others=others)
    for parameter in net.parameters():
        parameter.ds_id = 0
    with pytest.raises(mn.ConversionError, match="stage 1 or 2; or FSDP2"):
        net(data())
    with torch.no_grad():
        net(data())
