"""Bytes of training steps that no machine at hand holds: planned on tensors without values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.networks.cifar_networks import build
from momentumnet.bench.networks.language_models import LlamaDecoder, transformer_layer
from momentumnet.bench.networks.measured import Stack
from momentumnet.bench.reporting.results import Row
from momentumnet.conversion.planning_options import DEFAULT_GAMMA
from momentumnet.planner.fit import measured_steps
from momentumnet.planner.plans.training_plan import TrainingPlan

# More than any step takes: everything is stored.
WITHOUT_LIMIT = 1 << 60


@dataclass(frozen=True)
class Giant:
    """A network that is not made, but for its shapes.

    Attributes:
        build: Makes it.
        example: Makes its input.
        dtype: Of its parameters and input.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    dtype: torch.dtype = torch.bfloat16


def _encoder() -> nn.Module:
    return Stack(*[transformer_layer(6144) for _ in range(48)])


GIANTS = {
    "resnet1202-224": Giant(partial(build, "resnet1202"), partial(torch.randn, 32, 3, 224, 224), torch.float32),
    "vit-22b": Giant(_encoder, partial(torch.randn, 32, 257, 6144)),
    "decoder-70b": Giant(
        partial(LlamaDecoder, depth=86, width=8192, length=4096, vocabulary=32000),
        partial(torch.randint, 32000, (1, 4096)),
    ),
}


def simulate(giant: Giant) -> list[Row]:
    """A row for everything stored, and one for the least budget."""
    # Not on the meta device: attention takes the way there that keeps all scores.
    with FakeTensorMode(), _made_of(giant.dtype):
        model, x = giant.build().train(), giant.example()
    original, *_, momentum = measured_steps(model, x, gammas=(exact_gamma(0), exact_gamma(DEFAULT_GAMMA)))
    plans = {ways.STORED: original.plan(WITHOUT_LIMIT), "least": momentum.plan(None)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [{"method": method, "parameters": parameters, **_figures(found)} for method, found in plans.items()]


@contextmanager
def _made_of(dtype: torch.dtype) -> Iterator[None]:
    """Parameters and inputs are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _figures(found: TrainingPlan) -> Row:
    return {
        "peak_bytes": found.peak,
        "saved_bytes": found.held,
        "estimated_time_to_stored": found.seconds / found.stored_seconds,
    }
