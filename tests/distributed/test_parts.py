"""What asks for whole parameters, and is given a model of which each process holds a part."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from momentumnet.init import fixup_, gradinit_, kaiming_, metainit_, tfixup_
from momentumnet.landscape import hessian_top_eigenvalues, sharpness
from momentumnet.prune import magnitude_masks
from tests.distributed.nets import chain, data


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def flat() -> nn.Module:
    return FullyShardedDataParallel(chain(), device_id=torch.device("cpu"))


def flat_by_name() -> nn.Module:
    return FullyShardedDataParallel(chain(), device_id=torch.device("cpu"), use_orig_params=True)


def sharded() -> nn.Module:
    model = chain()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def squared(output: Tensor, _: object) -> Tensor:
    return output.square().mean()


BATCH = (data(), data())
WHOLE: dict[str, Callable[[Any], Any]] = {
    "sharpness": lambda model: sharpness(model, squared, BATCH),
    "hessian": lambda model: hessian_top_eigenvalues(model, squared, BATCH),
    "gradinit": lambda model: gradinit_(model, squared, [BATCH], steps=1, progress=False),
    "metainit": lambda model: metainit_(model, squared, [BATCH], steps=1, progress=False),
    "fixup": lambda model: fixup_(model, data()),
    "tfixup": tfixup_,
}
OF_PARTS = {"kaiming": kaiming_, "magnitudes": lambda model: magnitude_masks(model, fraction=0.5)}


CASES = [
    *((make, what) for make in (flat, flat_by_name, sharded) for what in WHOLE),
    # FSDP2's parameters know that they are parts.
    *((make, what) for make in (flat, flat_by_name) for what in OF_PARTS),
]


@pytest.mark.parametrize(("make", "what"), CASES)
def test_a_part_is_not_taken_for_the_whole(make: Callable[[], nn.Module], what: str) -> None:
    """GradInit went by each process's own part, in silence; others ended in errors of PyTorch's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP1 is deprecated
        model = make()
    with pytest.raises(ValueError, match=r"each process holds a part: .* before the model is sharded"):
        (WHOLE | OF_PARTS)[what](model)
