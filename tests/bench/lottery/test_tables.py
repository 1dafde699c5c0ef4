from __future__ import annotations

from typing import Any

from momentumnet.bench.lottery.tables import verdicts


def row(ticket: float, reinitialised: float, random_mask: float, seed: int) -> dict[str, Any]:
    accuracies = {"ticket": ticket, "reinitialised": reinitialised, "random mask": random_mask}
    trainings = [{"arm": "ticket", "round": 0, "sparsity": 0.0, "accuracies": [(1, 99.0)]}]
    for number, sparsity in ((1, 0.5), (2, 0.75), (3, 0.9)):
        trainings += [
            {"arm": arm, "round": number, "sparsity": sparsity, "accuracies": [(1, 1.0), (2, value - number)]}
            for arm, value in accuracies.items()
        ]
    return {"model": "m", "method": "k", "seed": seed, "trainings": trainings}


def test_verdict_says_who_is_ahead_at_the_sparsity_nearest_to_80_percent() -> None:
    (ahead,) = verdicts([row(90, 80, 70, 0), row(80, 70, 75, 1)])
    assert "at 75.0 % sparsity: ticket 83.00 ± 7.07, reinitialised 73.00" in ahead
    assert "is ahead of both controls on average, and is ahead of both in 2 of 2 seeds" in ahead
    (behind,) = verdicts([row(90, 80, 70, 0), row(60, 75, 70, 1)])
    assert "does not beat 'reinitialised' on average, and is ahead of both in 1 of 2 seeds" in behind
