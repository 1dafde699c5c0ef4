"""One model of the zoo: its streams, and the gradients of its conversion."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from momentumnet.bench.zoo import models
from momentumnet.conversion import convert
from momentumnet.errors import ConversionError
from momentumnet.planning import plan

GAMMA = 1 / 8


@dataclass
class Row:
    """One model of the table."""

    model: str
    streams: str = ""
    blocks: int = 0
    kind: str = ""
    saved_before: int = 0
    saved_after: int = 0
    gradient_error: float | None = None
    note: str = ""
    seconds: float = 0.0


def measure(name: str, *, batch: int) -> Row:
    """Find the streams, convert, and compare one training step's gradients, reversible against stored."""
    start = time.perf_counter()
    row = Row(name)
    model = models.build(name)
    large = name in models.LARGE
    batch = 1 if large or name.startswith(("mvit", "swin3d", "maxvit")) else batch
    try:
        planned = plan(model, models.inputs(name, batch=batch), gamma=GAMMA)
    except ConversionError as error:
        row.note = str(error).splitlines()[0][:160]
    else:
        row.streams = " ".join(f"{r.path or '(root)'}:{r.blocks}" for r in planned.rows)
        row.blocks = sum(r.blocks for r in planned.rows)
        row.kind = "+".join(sorted({r.kind for r in planned.rows}))
        row.saved_before, row.saved_after = planned.saved_before, planned.saved_after
        if large:
            net = convert(model, models.inputs(name, batch=batch), gamma=GAMMA, inplace=True)
            with torch.no_grad():
                models.run(net, models.inputs(name, batch=batch))
            row.note = "over 250 million parameters: found, converted, one forward"
        else:
            row.gradient_error = gradient_error(model, name, batch)
    row.seconds = time.perf_counter() - start
    return row


def gradient_error(model: nn.Module, name: str, batch: int) -> float:
    """Relative L2 difference of one training step's gradients, reversible against stored."""
    example, step = models.inputs(name, batch=batch), models.inputs(name, batch=batch, training=True)
    gradients = []
    for backward in ("stored", "auto"):
        net = convert(model, example, gamma=GAMMA, backward=backward).train()
        gradients.append(models.gradient(net, step))
        del net
    stored, reversible = gradients
    return float((reversible - stored).norm() / stored.norm())
