"""One model of the zoo: its streams, the bytes that its conversion saves, and the gradients of a training step."""

from __future__ import annotations

import gc
import time
from collections import Counter
from functools import partial

import torch
from torch import Tensor, nn

from momentumnet.bench.reporting.results import Row
from momentumnet.bench.zoo import training_pass
from momentumnet.bench.zoo.coverage import residual_blocks
from momentumnet.bench.zoo.entries import Entry
from momentumnet.conversion.conversion import convert
from momentumnet.conversion.planning import plan
from momentumnet.conversion.planning_options import OTHERS
from momentumnet.errors import MomentumNetError
from momentumnet.memory import measure_memory
from momentumnet.streams.finding.discover import Discovery, discover
from momentumnet.streams.finding.select import CHANGES_SHAPE
from momentumnet.streams.tracing.trace import call_with_example


def measure(entry: Entry) -> Row:
    """Streams, blocks, bytes held between forward and backward, and gradients against stored activations.

    Returns:
        ``library``, ``model``, ``streams`` (blocks of each, by path), ``kinds``, ``covered`` (blocks in streams),
        ``alone`` (others that are recomputed), ``blocks`` (all residual blocks); ``layers`` of its longest stack, if it
        was made deeper, or None; ``saved_bytes`` of the model as it is,
        and of the converted one ``kept_bytes`` (others="keep") and ``checkpointed_bytes``, or where there is no stream
        ``planned_peak_bytes``, allocated at most in a step by a plan of the least budget, beside ``peak_bytes`` as it
        is; ``gradient_error``, the largest of all parameters and of both;
        ``refusal``, why it is not converted without a budget, or what is left out; and ``seconds``.
    """
    start = time.perf_counter()
    row: Row = {"library": entry.library, "model": entry.name, "streams": [], "kinds": [], "refusal": ""}
    row["layers"] = entry.layers()
    row |= dict.fromkeys(("saved_bytes", "kept_bytes", "checkpointed_bytes", "peak_bytes", "planned_peak_bytes"))
    row["gradient_error"] = None
    model = entry.build()
    discovery = discover(model, entry.example())
    row["streams"] = [[stream.path, len(stream)] for stream in discovery.streams]
    row["kinds"] = sorted({stream.kind for stream in discovery.streams})
    row["covered"] = len({block for stream in discovery.streams for block in stream.blocks})
    alone = {stage.names for stage in discovery.blocks if stage.stream is None}
    row["alone"] = len(alone) if discovery.streams else 0  # a network that has no stream is not converted
    row["blocks"] = len(residual_blocks(model, discovery))
    if not discovery.streams:
        row["refusal"] = why_none(discovery)
    if entry.large:
        if discovery.streams:
            _converted_only(entry, model)
            row["refusal"] = "over 250 million parameters: found, converted, one forward"
    else:
        try:
            row |= _compared(entry, model) if discovery.streams else _planned(entry, model)
        except MomentumNetError as error:
            row["refusal"] = row["refusal"] or f"{type(error).__name__}: {str(error).splitlines()[0]}"
    gc.collect()
    return {**row, "seconds": time.perf_counter() - start}


def why_none(discovery: Discovery) -> str:
    """The commonest reason for which what was looked at is no stream, with the number of modules.

    What residual blocks lack goes before what other modules do, and all changes of the shape are one reason.
    """
    reasons: Counter[str] = Counter()
    residual = [found for found in discovery.rejections if found.has_skip]
    for found in residual or discovery.rejections:
        reasons["" if found.reason.startswith(CHANGES_SHAPE) else found.reason] += len(found.blocks)
    if not reasons:
        return "no two sibling modules pass a tensor of one shape along"
    reason, count = reasons.most_common(1)[0]
    if reason:
        return f"{count} module{'s' * (count > 1)}: {reason}"
    first = next(found.reason for found in discovery.rejections if found.reason.startswith(CHANGES_SHAPE))
    if count == 1:
        return f"1 module {first}"
    return f"{count} modules change the shape, as {first.removeprefix(CHANGES_SHAPE).lstrip()}"


def _converted_only(entry: Entry, model: nn.Module) -> None:
    net = convert(model, entry.example(), inplace=True)
    with torch.no_grad():
        call_with_example(net, entry.example())


def _planned(entry: Entry, model: nn.Module) -> Row:
    """Its own function by a plan of the least budget; there is no velocity without a stream."""
    step = entry.step()
    net = convert(model, plan=plan(model, step, budget="least", loss=training_pass.loss))
    saved = measure_memory(partial(training_pass.forward, model, step)).saved_bytes
    stored: dict[str, Tensor] = {}
    peak = measure_memory(partial(training_pass.step, model, step, stored)).peak_bytes
    found: dict[str, Tensor] = {}
    planned = measure_memory(partial(training_pass.step, net, step, found)).peak_bytes
    error = training_pass.largest_error(found, stored)
    return {"saved_bytes": saved, "peak_bytes": peak, "planned_peak_bytes": planned, "gradient_error": error}


def _compared(entry: Entry, model: nn.Module) -> Row:
    example, step = entry.example(), entry.step()
    plain = entry.build()  # some models keep what a forward computed, and can be copied no more
    saved = measure_memory(partial(training_pass.forward, plain, step)).saved_bytes
    del plain
    net = convert(model, example, backward="stored")
    stored: dict[str, Tensor] = {}
    training_pass.step(net, step, stored)
    errors, held = [], {}
    for others in OTHERS:
        net = convert(model, example, others=others)
        found: dict[str, Tensor] = {}
        held[others] = measure_memory(partial(training_pass.step, net, step, found)).saved_bytes
        errors.append(training_pass.largest_error(found, stored))
    return {
        "saved_bytes": saved,
        "kept_bytes": held["keep"],
        "checkpointed_bytes": held["checkpoint"],
        "gradient_error": float(torch.tensor(errors).max()),
    }
