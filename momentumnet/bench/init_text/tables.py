"""The tables of ``bench init-text``, and its rows in words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from momentumnet.bench.init_text.cases import COST, SEARCH, TRAIN
from momentumnet.bench.init_text.costs import PAPER_STEPS, PASS
from momentumnet.bench.init_text.methods import ADAM, GRADINIT, PLAIN, SGD
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table

MIB = 2**20
PREPARED = {(PLAIN, None): "plain", (GRADINIT, SGD): "GradInit for SGD", (GRADINIT, ADAM): "GradInit for Adam"}


def named(row: Row) -> str:
    """What a row is called, but for its seed."""
    prepared = row["method"] if row["init_for"] is None else f"{row['method']} for {row['init_for']}"
    searched = "" if row["part"] != SEARCH else f", {_options(row)}"
    return f"{row['network']}, {prepared}, {row['optimizer']} {row['rate']:g}{searched}"


def outcome(row: Row) -> str:
    """What a row came to, in words."""
    return f"validation loss {row['validation']:.3f}, {row['seconds']:.0f} s"


def tables(rows: Sequence[Row], settings: Mapping[str, Any]) -> list[Table]:
    """Validation losses, initialisation against optimizer, what was searched, and costs; those that have rows."""
    parts = {part: [row for row in rows if row["part"] == part] for part in (TRAIN, SEARCH, COST)}
    found = []
    if parts[TRAIN]:
        found.append(_curves(parts[TRAIN], settings))
    if any(row["optimizer"] == SGD for row in parts[TRAIN]):
        found.append(_optimizers(parts[TRAIN], settings))
    if parts[SEARCH]:
        found.append(_search(parts[SEARCH], settings))
    if parts[COST]:
        found.append(_costs(parts[COST]))
    return found


def described(settings: Mapping[str, Any]) -> str:
    """The settings in words."""
    clip = "no clipping" if settings["clip"] is None else f"gradients clipped at norm {settings['clip']:g}"
    return (
        f"{settings['source']}: {settings['train_characters']} characters to train on and "
        f"{settings['validation_characters']} behind them, alphabet of {settings['alphabet']}. Decoder of "
        f"{settings['depth']} layers of width {settings['width']}, sequences of {settings['length']}, batch "
        f"{settings['batch_size']}, {settings['steps']} steps, rate falling as a cosine, {clip}; warmup: the first "
        f"{settings['warmup_steps']} of these steps."
    )


def _curves(rows: Sequence[Row], settings: Mapping[str, Any]) -> Table:
    own = [row for row in rows if row["optimizer"] == ADAM and row["init_for"] in (None, ADAM)]
    limit, cells = settings["frequency_loss"], []
    for (network, rate, method), group in seeds.groups(own, "network", "rate", "method").items():
        done = seeds.done(group)
        times = [_mean(done, key) for key in ("init_seconds", "seconds")]
        options = _options(group[0])
        stuck, diverged = share(group, lambda row: is_stuck(row, limit)), share(group, lambda row: row["diverged"])
        cells.append((network, f"{rate:g}", method, _loss(done), diverged, stuck, seeds.seeds(group), options, *times))
    notes = [
        described(settings),
        "Cross entropy of the next character in the text's end: mean and standard deviation over the seeds that came "
        "to their end. diverged: a loss that was not finite. stuck: at the end no better than "
        f"{limit:.3f}, which is what the frequencies of characters alone give. norm-free: the post-norm network, "
        "whose norms T-Fixup has taken out. options: chosen by the search below.",
        *seeds.failures(own, named),
    ]
    columns = ("network", "Adam's rate", "method", "validation loss", "diverged", "stuck", "seeds", "options")
    return Table("Adam on text", (*columns, "initialisation, s", "row, s"), cells, notes=notes, left=3)


def _optimizers(rows: Sequence[Row], settings: Mapping[str, Any]) -> Table:
    rates = settings["search_rates"]
    network = next(row["network"] for row in rows if row["optimizer"] == SGD)
    cells = []
    for (method, init_for), name in PREPARED.items():
        line = [name]
        for optimizer in (SGD, ADAM):
            key = {"network": network, "method": method, "init_for": init_for, "optimizer": optimizer}
            group = [row for row in rows if row["rate"] == rates[optimizer] and _matches(row, key)]
            stuck = share(group, lambda row: is_stuck(row, settings["frequency_loss"]))
            line += [_loss(seeds.done(group)), stuck, share(group, lambda row: row["diverged"])]
        cells.append(line)
    notes = [
        f"{network}, the network and recipe of the table above. SGD: rate {rates[SGD]:g}, momentum "
        f"{settings['momentum']}; Adam: rate {rates[ADAM]:g}. GradInit for an optimizer takes that one's first "
        "step, at its rate times eta, and has its own tau and eta, searched with that optimizer.",
        *seeds.failures([row for row in rows if row["optimizer"] == SGD or row["init_for"] == SGD], named),
    ]
    columns = ["initialisation"]
    for optimizer in ("SGD", "Adam"):
        columns += [f"{optimizer}: validation loss", "stuck", "diverged"]
    return Table("Initialised for one optimizer, trained with another", columns, cells, notes=notes, left=1)


def _search(rows: Sequence[Row], settings: Mapping[str, Any]) -> Table:
    cells = []
    for row in rows:
        learned, loss = row.get("init") or {}, row["validation"]
        shown = "–" if loss is None else f"{loss:.3f}"
        step, limit = (f"{learned[key]:.3g}" if key in learned else "" for key in ("step_size", "gradient_norm"))
        norms = " to ".join(f"{value:.3g}" for value in learned.get("gradient_norms", ()))
        met = f"{learned['met']} of {learned['steps']}" if "met" in learned else ""
        prepared = f"{row['method']} for {row['optimizer']}"
        choice = ["" if row[name] is None else f"{row[name]:g}" for name in ("tau", "eta", "fall")]
        cells.append((row["network"], prepared, *choice, step, limit, norms, met, shown))
    notes = [
        f"Seed {settings['search_seed']}, which is none of those reported; {settings['search_steps']} steps of "
        f"training with the optimizer named, after {settings['init_steps']} of the initialisation; the least "
        "validation loss is chosen, once for all rates. tau: rate of GradInit's scales or of MetaInit's norms. eta: "
        "GradInit's inner step, times the training's rate; the step that this is. bound: of the gradient's norm (the "
        "1-norm for Adam, the 2-norm for SGD), where this step lowers the loss by 'fall' to first order; met: in how "
        "many steps of the initialisation.",
        *seeds.failures(rows, named),
    ]
    columns = ("network", "initialisation", "tau", "eta", "fall", "step", "bound", "gradient norm", "met")
    return Table("What was searched", (*columns, "validation loss"), cells, notes=notes, left=2)


def _costs(rows: Sequence[Row]) -> Table:
    cells = []
    for (network,), group in seeds.groups(rows, "network").items():
        plain = next(row for row in group if row["method"] == PASS)
        for row in group:
            steps = PAPER_STEPS.get(row["method"])
            relative = [f"{row[key] / plain[key]:.2f}" for key in ("seconds", "peak_bytes")]
            whole = "" if steps is None else f"{steps}: {steps * row['seconds']:.0f} s"
            peak = f"{row['peak_bytes'] / MIB:.1f}"
            cells.append((network, row["method"], f"{row['seconds']:.3f}", relative[0], peak, relative[1], whole))
    notes = [
        "One iteration of each, on the same batch, medians of runs that take turns; GradInit with its bound met, the "
        "dearer case. to a pass: to forward and backward of a training. Peak: of what an iteration allocates, as "
        "measure_memory counts it. whole: the iterations of the papers, times the seconds of one."
    ]
    columns = ("network", "method", "seconds", "to a pass", "peak, MiB", "to a pass", "whole")
    return Table("What an iteration costs", columns, cells, notes=notes)


def is_stuck(row: Row, limit: float) -> bool:
    """Whether a row came to its end no better than who knows the frequencies of characters alone."""
    return row["validation"] is not None and row["validation"] >= limit


def share(rows: Sequence[Row], holds: Callable[[Row], bool]) -> str:
    """Of how many rows something holds."""
    return f"{sum(map(holds, rows))} of {len(rows)}"


def _matches(row: Row, key: Mapping[str, Any]) -> bool:
    return all(row[name] == value for name, value in key.items())


def _options(row: Row) -> str:
    return ", ".join(f"{name} {row[name]:g}" for name in ("tau", "eta", "fall") if row.get(name) is not None)


def _loss(done: Sequence[Row]) -> str:
    return seeds.mean([row["validation"] for row in done], ".3f") if done else "fails"


def _mean(done: Sequence[Row], key: str) -> str:
    return f"{statistics.mean(row[key] for row in done):.1f}" if done else ""
