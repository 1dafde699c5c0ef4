"""The table of ``bench quality``, its rows in words, and its curves against depth."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from momentumnet.bench.quality.tasks import ADAM_DECAY, parse
from momentumnet.bench.quality.training import REPEATS
from momentumnet.bench.quality.variants import LARGE, RAMP, REFERENCE, SMALL
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.trainings import recipe

MIB = 2**20
Curves = dict[str, dict[str, dict[float, list[float]]]]


@dataclass(frozen=True)
class Score:
    """What the networks of a task are judged by.

    Attributes:
        name: With its unit.
        form: Of its numbers.
    """

    name: str
    form: str


ACCURACY = Score("test accuracy, %", ".2f")
LOSS = Score("validation loss, nats a character", ".3f")
MEMORY = "peak memory of a training step, MiB"


def named(row: Row) -> str:
    """What a row is called, but for its seed."""
    return f"{row['model']}, {row['method']}"


def outcome(row: Row, score: Score) -> str:
    """What a row came to, in words."""
    peak = row["peak_bytes_last"] / MIB
    return f"{score.name}: {row['score_last']:{score.form}}; peak {peak:.1f} MiB, {row['seconds']:.0f} s"


def table(rows: Sequence[Row], settings: dict[str, Any], score: Score) -> Table:
    """Score, memory and time, a line for each network and variant."""
    cells = []
    for (model,), of_model in seeds.groups(rows, "model").items():
        variants = seeds.groups(of_model, "method")
        originals = seeds.done(variants.get((REFERENCE,), []))
        reference = _epoch_seconds(originals) if originals else None
        cells += [(model, method, *_figures(own, reference, score)) for (method,), own in variants.items()]
    columns = (
        *("model", "variant", "gamma", f"first {score.name}", score.name),
        *("peak, MiB", "epoch, s", "epoch to original", "pass to original", "seeds"),
    )
    title = f"Quality and memory against depth, {settings['data']}"
    notes = [*_notes(settings), *growths(rows), *seeds.failures(rows, named)]
    return Table(title, columns, cells, notes=notes, left=3)


def _figures(rows: Sequence[Row], reference: float | None, score: Score) -> tuple[str, ...]:
    done = seeds.done(rows)
    if not done:
        return ("", "", *["fails"] * 3, "", "", seeds.seeds(rows))
    first = [row["score_first"] for row in done if "score_first" in row]
    seconds = _epoch_seconds(done)
    return (
        _from_to(*(done[0][f"gamma_{when}"] or "none" for when in ("first", "last"))),
        seeds.mean(first, score.form) if first else "",
        seeds.mean([row["score_last"] for row in done], score.form),
        _from_to(*(f"{max(row[f'peak_bytes_{when}'] for row in done) / MIB:.2f}" for when in ("first", "last"))),
        f"{seconds:.2f}",
        "" if reference is None else f"{seconds / reference:.2f}",
        f"{statistics.median(row['step_ratio'] for row in done):.2f}",
        seeds.seeds(rows),
    )


def _from_to(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _epoch_seconds(rows: Sequence[Row]) -> float:
    """Median of all epochs of the seeds."""
    return statistics.median(value for row in rows for value in row["epoch_seconds"])


def growths(rows: Sequence[Row]) -> list[str]:
    """How the peak memory at the end grows from the least depth to the largest, a line for each kind of network."""
    lines = []
    for kind, variants in curves(rows, "peak_bytes_last").items():
        depths = sorted({depth for points in variants.values() for depth in points})
        if len(depths) < 2:
            continue
        low, high = depths[0], depths[-1]
        factors = [
            f"{method} {max(points[high]) / max(points[low]):.2f}"
            for method, points in variants.items()
            if low in points and high in points
        ]
        lines.append(f"{kind}, peak memory at N = {high} as a multiple of that at N = {low}: {', '.join(factors)}.")
    return lines


def curves(rows: Sequence[Row], key: str) -> Curves:
    """By kind of network (a name without its depth), variant and depth, the values of the seeds."""
    found: Curves = {}
    for row in seeds.done(rows):
        variants = found.setdefault(kind_of(row["model"]), {})
        variants.setdefault(row["method"], {}).setdefault(row["depth"], []).append(row[key])
    return found


def panels(rows: Sequence[Row], score: Score) -> Iterator[tuple[str, tuple[str, str], dict[str, dict[float, Any]]]]:
    """Of the figure: heading, labels of the axes, and lines; score and memory of each kind of network."""
    peaks = curves(rows, "peak_bytes_last")
    for kind, lines in curves(rows, "score_last").items():
        x = "layers" if kind.startswith("resnet") else "blocks"
        yield f"{kind}: {score.name.partition(',')[0]}", (x, score.name), lines
        in_mib = {
            method: {depth: [value / MIB for value in values] for depth, values in points.items()}
            for method, points in peaks[kind].items()
        }
        yield f"{kind}: memory", (x, MEMORY), in_mib


def kind_of(network: str) -> str:
    """The network's name with N instead of its depth."""
    name = parse(network)
    return network.replace(f"{name.family}{name.depth}", f"{name.family}N", 1)


def _notes(settings: dict[str, Any]) -> list[str]:
    described = _text(settings) if "characters" in settings else recipe.described(settings)
    return [
        f"{described} Transformers: AdamW, learning rate {settings['adam_lr']:g} falling as a cosine, weight decay "
        f"{ADAM_DECAY}, gradients clipped at norm {settings['clip']:g}.",
        f"original: the network. scratch: the same first weights, converted at gamma {LARGE}, and trained. The "
        "others begin with the weights that the original has at its end, and are trained for "
        f"{settings['finetune_epochs']} more epochs from {settings['finetune_scale']:g} times the learning rate on: "
        f"continued without conversion, converted at gamma {SMALL}, scheduled from gamma {SMALL} to {LARGE}, which is "
        f"reached after {RAMP:.0%} of these epochs. First: before these epochs, after the conversion.",
        f"Mean and standard deviation over the seeds. Peak: of a training step of {settings['batch_size']}, beside "
        "parameters and gradients, as measure_memory counts, at the first gamma and at the last. Epoch: median seconds "
        "of its steps, over all epochs and seeds, which were not all run at one time. Pass: a forward and backward "
        f"pass, median of {REPEATS} that take turns with the original's; median over the seeds.",
    ]


def _text(settings: dict[str, Any]) -> str:
    return (
        f"{settings['data']}, {settings['characters']} characters ({settings['different']} different ones), the last "
        f"{settings['held_out']:.0%} not trained on; windows of {settings['length']}, batch {settings['batch_size']}; "
        f"epochs: {settings['epochs']}."
    )
