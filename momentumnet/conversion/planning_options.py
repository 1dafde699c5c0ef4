"""Options of a conversion and of a plan: the values that they take, and those that go together."""

from __future__ import annotations

from fractions import Fraction

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.core.passes.collectives import launched
from momentumnet.core.passes.settings import ARITHMETICS, BACKWARDS
from momentumnet.options import one_of, true_or_false
from momentumnet.planner.machine.budget import ANEW, GRADIENTS, LEAST
from momentumnet.streams.plan import AUTO

OTHERS = ("keep", "checkpoint")
DEFAULT_GAMMA = 0.125


def check_options(others: str, spare: int, backward: str, arithmetic: str) -> None:
    """These options have values that they take: also where what would look at them, a stream, is never made."""
    one_of("others", others, OTHERS)
    one_of("backward", backward, (AUTO, *BACKWARDS))
    one_of("arithmetic", arithmetic, ARITHMETICS)
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ValueError(f"spare must be a number of bytes, 0 or more, got {spare!r}")


def check_offload(offload: bool, *, is_planned: bool) -> None:
    """Offloading is one of the choices of a plan."""
    true_or_false(offload=offload)
    if offload and not is_planned:
        raise ValueError(
            "offload=True lets a plan move activations to host memory, and nothing is planned; give a budget, too, "
            "e.g. budget='4GiB'"
        )


def check_gradients(gradients: str, *, is_planned: bool) -> None:
    """Gradients are there before, or not, and count in a plan."""
    one_of("gradients", gradients, GRADIENTS)
    if gradients != ANEW and not is_planned:
        raise ValueError(
            f"gradients={gradients!r} says what a plan counts, and nothing is planned; give a budget, too, e.g. "
            "budget='4GiB'"
        )


def check_objective(objective: str) -> None:
    """There is one thing that a plan makes the least of."""
    if objective != "time":
        raise ValueError(f"objective must be 'time', got {objective!r}")


def check_no_loss(loss: object) -> None:
    """Where nothing is planned a loss is nothing to go by."""
    if loss is not None:
        raise ValueError("loss= is measured for a budget; give one, e.g. budget='4GiB', or leave it out")


def gamma_without_budget(gamma: float | Fraction | None) -> Fraction:
    """The momentum factor that is meant where nothing is planned."""
    return exact_gamma(DEFAULT_GAMMA if gamma is None else gamma)


def gammas_within_budget(gamma: float | Fraction | None) -> tuple[Fraction, ...]:
    """The momentum factors that are planned with; the network's own function first.

    Processes of one training each plan by what they measure, and have to train the same function: they do not choose.
    """
    if gamma is None and launched() == 1:
        return exact_gamma(0), exact_gamma(DEFAULT_GAMMA)
    return (gamma_without_budget(gamma),)


def checked_budget(budget: int | str | None, spare: int, backward: str, others: str) -> int | str:
    """The budget that a plan is for, once what is given beside it fits.

    Raises:
        ValueError: an option is given that the plan itself has to choose, or two that say how many bytes there are.
    """
    chosen = {"backward": backward != AUTO, "others": others != "keep"}
    if any(chosen.values()):
        given = ", ".join(name for name, is_given in chosen.items() if is_given)
        said = "a budget" if budget is not None else "bytes to spare"
        raise ValueError(f"with {said}, what is recomputed is chosen for each block and module; leave out {given}")
    if spare and budget not in (None, LEAST):
        raise ValueError(
            f"spare={spare!r} is a budget of the least that there is and so many bytes, and budget={budget!r} another "
            "one; leave out one of them"
        )
    return LEAST if budget is None else budget
