"""The tables of ``bench lottery``, and its rows in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from momentumnet.bench.lottery import cases
from momentumnet.bench.networks.cifar_networks import LENET
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.trainings.recipe import described, images_described
from momentumnet.prune import CONTROLS, TICKET

Training = dict[str, Any]  # of a row: `momentumnet.prune.TicketTraining` as plain values
Rounds = dict[int, dict[str, list[Training]]]
ARMS = (TICKET, *CONTROLS)
WANTED_SPARSITY = 0.8


def final(training: Training) -> float:
    """The accuracy after the last epoch (%)."""
    accuracy: float = training["accuracies"][-1][1]
    return accuracy


def outcome(row: Row) -> str:
    """What a row came to, in words."""
    last = row["trainings"][-1]
    own = [training for training in row["trainings"] if training["round"] == last["round"]]
    text = ", ".join(f"{training['arm']} {final(training):.2f}" for training in own)
    return f"at {100 * last['sparsity']:.1f} % sparsity: {text}; {row['seconds']:.0f} s"


def tables(rows: Sequence[Row], settings: dict[str, Any]) -> list[Table]:
    """Accuracies with the verdicts below them, steps and norms, and how early the masks were found."""
    notes = [*verdicts(rows), _described(rows, settings), *seeds.failures(rows, cases.named)]
    return [accuracy_table(rows, notes), speed_table(rows), early_table(rows)]


def _described(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    rates = {row["lr"] for row in rows if row["model"] != LENET}
    rewound, dense, warm = (
        _either({row[name] for row in rows}) for name in ("rewind_epochs", "dense_epochs", "warmup_epochs")
    )
    trained = described({**settings, "lr": _either(rates)}) if rates else f"{images_described(settings)}."
    if len(rates) < len({row["lr"] for row in rows}):
        trained += (
            f" {LENET} is trained with Adam, learning rate {settings['adam_lr']}, batch {settings['batch_size']}."
        )
    return (
        f"{trained} The rate rises through {warm} epochs at first. A round takes {100 * settings['fraction']:g} % of "
        f"the {settings['structure']}s that are left ({settings['scope']}), by magnitude; tickets begin with the "
        f"weights after {rewound} epochs of the dense training, which ends after {dense} epochs, the others after "
        f"{settings['epochs']}."
    )


def _either(values: Collection[float]) -> str:
    return " or ".join(f"{value:g}" for value in sorted(values))


def accuracy_table(rows: Sequence[Row], notes: Sequence[str]) -> Table:
    """Accuracy of tickets and controls, a line for each sparsity."""
    names = cases.differing(rows)
    cells = [
        (
            *heading,
            *(_mean([final(training) for training in arms.get(arm, [])]) for arm in ARMS),
            str(len(arms[TICKET])),
        )
        for heading, arms in _lines(rows, names)
    ]
    explained = (
        "Test accuracy (%) after the last epoch: mean and standard deviation over the seeds; sparsity 0 is the dense "
        "network."
    )
    columns = (*_heads(names), "sparsity", *ARMS, "seeds")
    return Table("Accuracy of lottery tickets", columns, cells, notes=[explained, *notes])


def speed_table(rows: Sequence[Row]) -> Table:
    """How soon the best accuracy is reached, and what distinguishes the weights that are kept, by sparsity."""
    names = cases.differing(rows)
    cells = [
        (
            *heading,
            *(_mean([training["best_step"] for training in arms.get(arm, [])], ".0f") for arm in ARMS),
            *(_mean([training[key] for training in arms[TICKET]], ".4f") for key in ("kept_norm", "removed_norm")),
        )
        for heading, arms in _lines(rows, names)
    ]
    note = (
        "The step of the first of the best accuracies, counted from the first weights (tickets and random masks begin "
        "at the step that they are rewound to); and the mean absolute value, before the training, of the weights that "
        "the ticket keeps and of those that it has lost."
    )
    columns = (*_heads(names), "sparsity", *(f"step, {arm}" for arm in ARMS), "weights kept", "weights removed")
    return Table("Steps to the best accuracy, and norms", columns, cells, notes=[note])


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether the tickets are ahead of the controls at the sparsity nearest to 80 %, a line for each network."""
    lines, names = [], cases.differing(rows)
    for key, own in cases.groups(rows).items():
        rounds = rounds_of(own)
        number = min(list(rounds)[1:], key=lambda number: abs(rounds[number][TICKET][0]["sparsity"] - WANTED_SPARSITY))
        arms = {arm: [final(training) for training in trained] for arm, trained in rounds[number].items()}
        ahead = sum(ticket > max(others) for ticket, *others in zip(*arms.values(), strict=True))
        best = max(arms, key=lambda arm: statistics.mean(arms[arm]))
        controls = "both controls" if len(arms) == len(ARMS) else "the control"
        figures = ", ".join(f"{arm} {seeds.mean(values)}" for arm, values in arms.items())
        beats = f"is ahead of {controls}" if best == TICKET else f"does not beat {best!r}"
        lines.append(
            f"{cases.called(key, names)}, at {100 * rounds[number][TICKET][0]['sparsity']:.1f} % sparsity: {figures}; "
            f"the ticket {beats} on average, and is ahead of {controls.removesuffix(' controls')} in {ahead} of "
            f"{len(own)} seeds."
        )
    return lines


def early_table(rows: Sequence[Row]) -> Table:
    """How far the masks were from those at the end, by epoch of the dense training."""
    cells, names = [], cases.differing(rows)
    for key, own in cases.groups(rows).items():
        dense = [row["trainings"][0] for row in own]
        for index, (step, _) in enumerate(dense[0]["accuracies"]):
            cells.append(
                (
                    *_heading(key, names, shown=index == 0),
                    str(index + 1),
                    str(step),
                    _mean([100 * training["distances"][index] for training in dense]),
                    _mean([training["accuracies"][index][1] for training in dense]),
                )
            )
    note = (
        "The dense training, looked at after each epoch: the share of the weights that the first pruning would have "
        "treated otherwise than at the end of the training."
    )
    columns = (*_heads(names), "epoch", "step", "distance to the final mask, %", "accuracy")
    return Table("When the dense training may stop", columns, cells, notes=[note])


def rounds_of(rows: Sequence[Row]) -> Rounds:
    """The trainings by round and arm, one for each seed."""
    found: Rounds = {}
    for row in rows:
        for training in row["trainings"]:
            found.setdefault(training["round"], {}).setdefault(training["arm"], []).append(training)
    return found


def _lines(rows: Sequence[Row], names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], dict[str, list[Training]]]]:
    """What the lines of a table begin with (network, initialisation, settings, sparsity), and trainings by arm."""
    for key, own in cases.groups(rows).items():
        for number, arms in rounds_of(own).items():
            sparsity = f"{100 * statistics.mean(training['sparsity'] for training in arms[TICKET]):.1f} %"
            yield (*_heading(key, names, shown=number == 0), sparsity), arms


def _heads(names: Sequence[str]) -> tuple[str, ...]:
    return ("model", "method", *(cases.SETTINGS[name] for name in names))


def _heading(key: cases.Key, names: Sequence[str], *, shown: bool) -> tuple[str, ...]:
    row = dict(zip(cases.KEYS, key, strict=True))
    return tuple(f"{row[name]}" if shown else "" for name in ("model", "method", *names))


def _mean(values: Sequence[float], form: str = ".2f") -> str:
    known = [value for value in values if not math.isnan(value)]  # the dense network has lost no weights
    return seeds.mean(known, form) if known else ""
