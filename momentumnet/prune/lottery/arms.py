"""The arms of a lottery: the ticket, and the controls that it is compared with."""

from __future__ import annotations

TICKET = "ticket"
"""The arm of a lottery that trains the ticket itself; see `LotteryTicket.ticket`."""

REINITIALISED, RANDOM_MASK = "reinitialised", "random mask"

CONTROLS = (REINITIALISED, RANDOM_MASK)
"""What ``LotteryTicket(controls=...)`` may name: "reinitialised" and "random mask"."""


def training_name(arm: str, number: int) -> str:
    """What the training of an arm in a round is kept by."""
    return f"{arm.replace(' ', '-')}-{number:03d}"
