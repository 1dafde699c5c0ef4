from __future__ import annotations

import math
from typing import Any

from momentumnet.bench.lottery.curves import by_arm, by_dense_share, by_network
from momentumnet.bench.lottery.tables import accuracy_table, early_table, speed_table, verdicts

SETTINGS = {"lr": 0.1, "warmup_epochs": 0, "rewind_epochs": 0, "dense_epochs": 4}


def row(ticket: float, reinitialised: float, random_mask: float, seed: int) -> dict[str, Any]:
    accuracies = {"ticket": ticket, "reinitialised": reinitialised, "random mask": random_mask}
    trainings = [{"arm": "ticket", "round": 0, "sparsity": 0.0, "accuracies": [(1, 99.0)]}]
    for number, sparsity in ((1, 0.5), (2, 0.75), (3, 0.9)):
        trainings += [
            {"arm": arm, "round": number, "sparsity": sparsity, "accuracies": [(1, 1.0), (2, value - number)]}
            for arm, value in accuracies.items()
        ]
    return {"model": "m", "method": "k", **SETTINGS, "seed": seed, "trainings": trainings}


def test_verdict_says_who_is_ahead_at_the_sparsity_nearest_to_80_percent() -> None:
    (ahead,) = verdicts([row(90, 80, 70, 0), row(80, 70, 75, 1)])
    assert "at 75.0 % sparsity: ticket 83.00 ± 7.07, reinitialised 73.00" in ahead
    assert "is ahead of both controls on average, and is ahead of both in 2 of 2 seeds" in ahead
    (behind,) = verdicts([row(90, 80, 70, 0), row(60, 75, 70, 1)])
    assert "does not beat 'reinitialised' on average, and is ahead of both in 1 of 2 seeds" in behind


def test_settings_that_differ_have_columns_and_lines_of_their_own() -> None:
    rows = [row(90, 80, 70, 0), {**row(60, 50, 40, 0), "rewind_epochs": 2}]
    table = accuracy_table(rows, [])
    assert table.columns == (
        "model",
        "method",
        "rewound to",
        "sparsity",
        "ticket",
        "reinitialised",
        "random mask",
        "seeds",
    )
    assert [cells[:3] for cells in table.rows if cells[0]] == [("m", "k", "0"), ("m", "k", "2")]
    assert [line.split(", at ")[0] for line in verdicts(rows)] == ["m, k, rewound to 0", "m, k, rewound to 2"]
    assert list(by_arm(rows)) == ["m, k, rewound to 0", "m, k, rewound to 2"]


def test_figures_compare_networks_and_ends_of_the_dense_training() -> None:
    rows = [row(90, 80, 70, 0), row(92, 80, 70, 1), {**row(60, 50, 40, 0), "model": "n", "dense_epochs": 1}]
    assert by_network(rows) == {}  # other settings are not compared
    assert by_dense_share(rows, 4) == {}  # nor other networks
    rows += [{**row(50, 50, 40, 0), "model": "n"}]
    assert by_network(rows)["k, dense to 4"]["n"] == {0.0: [99.0], 50.0: [49.0], 75.0: [48.0], 90.0: [47.0]}
    shares = by_dense_share(rows, 4)
    assert shares["n, k, 90 % gone"]["ticket"] == {25.0: [57.0], 100.0: [47.0]}


def test_control_that_was_not_trained_has_no_line_and_no_say() -> None:
    one = row(90, 80, 70, 0)
    one["trainings"] = [training for training in one["trainings"] if training["arm"] != "reinitialised"]
    assert list(by_arm([one])["m, k"]) == ["ticket", "random mask"]
    (verdict,) = verdicts([one])
    assert "the ticket is ahead of the control on average, and is ahead of the control in 1 of 1 seeds" in verdict


def measured(arm: str, number: int, best_step: int, norms: tuple[float, float], **changes: Any) -> dict[str, Any]:
    plain = {"arm": arm, "round": number, "sparsity": number / 2, "best_step": best_step, "steps": 77}
    accuracies = [(2, 40.0 + best_step), (4, 60.0 + best_step)]
    return {
        **plain,
        "kept_norm": norms[0],
        "removed_norm": norms[1],
        "accuracies": accuracies,
        "distances": (),
        **changes,
    }


def test_columns_of_steps_norms_and_distances() -> None:
    rows = [
        {
            **row(0, 0, 0, seed),
            "trainings": [
                measured("ticket", 0, 10 + seed, (0.5, math.nan), distances=(0.25 + seed / 10, 0.0)),
                measured("ticket", 1, 20 + seed, (0.75, 0.125 + seed)),
                measured("random mask", 1, 30 + seed, (9.0, 9.0)),
            ],
        }
        for seed in (0, 1)
    ]
    steps, early = speed_table(rows), early_table(rows)
    assert steps.columns[3:] == (
        *("step, ticket", "step, reinitialised", "step, random mask"),
        *("weights kept", "weights removed"),
    )
    assert [cells[2:] for cells in steps.rows] == [
        ("0.0 %", "10 ± 1", "", "", "0.5000 ± 0.0000", ""),
        ("50.0 %", "20 ± 1", "", "30 ± 1", "0.7500 ± 0.0000", "0.6250 ± 0.7071"),
    ]
    assert list(early.rows) == [
        ("m", "k", "1", "2", "30.00 ± 7.07", "50.50 ± 0.71"),
        ("", "", "2", "4", "0.00 ± 0.00", "70.50 ± 0.71"),
    ]
