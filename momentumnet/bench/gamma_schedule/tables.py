"""The tables of ``bench gamma-schedule``, and its rows in words."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from momentumnet.bench.gamma_schedule.annealing import DR2NET_START
from momentumnet.bench.gamma_schedule.tasks import WIDTH, is_text
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.trainings.recipe import described

MEMORY = {
    "peak": "peak_bytes",
    "most peak": "most_peak_bytes",
    "held": "saved_bytes",
    "most held": "most_saved_bytes",
}


def named(row: Row) -> str:
    """What a row is called, but for its seed."""
    return f"{row['model']}, {row['method']}, to {row['final']}, {in_words(row['length'])}"


def in_words(length: str) -> str:
    """What a share of the steps is called."""
    return {"0": "at once", "1": "in all steps"}.get(length, f"in {length} of the steps")


def score_name(model: str) -> str:
    """What the score of a network is."""
    return "validation loss" if is_text(model) else "accuracy, %"


def outcome(row: Row) -> str:
    """What a row came to, in words."""
    return f"score {row['score']:.3f}, peak {_mib([row], 'peak_bytes')} MiB, {row['seconds']:.0f} s"


def tables(rows: Sequence[Row], settings: dict[str, Any]) -> list[Table]:
    """One for each network and rule; the notes stand below the last."""
    groups = seeds.groups(rows, "model", "method")
    found = []
    for number, ((model, method), own) in enumerate(groups.items(), start=1):
        cells = [(final, in_words(length), *_figures(same)) for (final, length), same in _by_place(own).items()]
        notes = _notes(rows, settings) if number == len(groups) else []
        columns = ("final", "changed", score_name(model), *(f"{name}, MiB" for name in MEMORY), "seeds")
        found.append(Table(f"{model}, {_rule(method, settings)}", columns, cells, notes=notes))
    return found


def _by_place(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """By final value and length, both from small to large."""
    groups = seeds.groups(rows, "final", "length")
    return dict(sorted(groups.items(), key=lambda item: tuple(map(Fraction, item[0]))))


def _rule(method: str, settings: dict[str, Any]) -> str:
    if method == "dr2net":
        return f"Dr2Net, from alpha {DR2NET_START.alpha} and beta {DR2NET_START.beta} to 1 - beta and beta"
    return f"momentum, from gamma {settings['start']}"


def _figures(rows: Sequence[Row]) -> tuple[str, ...]:
    done = seeds.done(rows)
    if not done:
        return (*["fails"] * (1 + len(MEMORY)), seeds.seeds(rows))
    memory = (_mib(done, key) for key in MEMORY.values())
    return (seeds.mean([row["score"] for row in done], ".3f"), *memory, seeds.seeds(rows))


def _mib(rows: Sequence[Row], key: str) -> str:
    return seeds.mean([row[key] / 2**20 for row in rows], ".2f")


def _shape(settings: dict[str, Any]) -> str:
    """Of the schedules. Settings say nothing of the linear one: results from before there were others have none."""
    return {"geometric": "geometrically", "cosine": "as a cosine"}.get(settings.get("shape", "linear"), "linearly")


def _notes(rows: Sequence[Row], settings: dict[str, Any]) -> list[str]:
    return [
        f"ResNets: pretrained on the first half of the classes for {settings['pretraining_epochs']} epochs, then, with "
        f"a new classifier, fine-tuned on all. {described(settings)}",
        f"Decoders (width {WIDTH}, bytes): pretrained on {settings['pretraining_text']} ({settings['text_windows'][0]} "
        f"windows of {settings['window']} bytes), then trained on {settings['text']} ({settings['text_windows'][1]}), "
        f"the same numbers of epochs; AdamW, learning rate {settings['text_lr']:g} falling as a cosine, gradients "
        "clipped as above. Their score is the mean cross entropy, in nats a byte, of every tenth window.",
        "final: gamma at the end, of Dr2Net beta. changed: the share of the fine-tuning's steps in which the rule "
        f"changes, {_shape(settings)} in the steps, from the function-preserving start to the final value; at once: it "
        "is the final one from the first step. Final 0 at once is the stock network, with stored activations.",
        "Scores behind the last step, at the final value; mean and standard deviation over the seeds.",
        "peak and held: bytes of a training step of one batch beside parameters and gradients, at the final value, by "
        "the trained network; held is what waits between forward and backward. most: the largest of those at the "
        "schedule's beginning, middle and end.",
        "Where the final value is the start the length changes nothing, and one training stands for all.",
        *seeds.failures(rows, named),
    ]
