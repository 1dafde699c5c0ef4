"""Random networks: gradients are those of stored activations, or the pass is refused. Never a different number.

MOMENTUMNET_FUZZ_MINUTES=60 looks for an hour, at other networks each time, and goes on behind what it finds;
MOMENTUMNET_FUZZ_SEED=7 begins elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.grammar import PARENTS, STEPS, Block, Case, Net, Step, build, cases, inputs
from tests.contract.operations import HOSTILE, OPERATIONS

EXAMPLES, AT_A_TIME, SECONDS = 150, 500, 60
MINUTES = float(os.environ.get("MOMENTUMNET_FUZZ_MINUTES", "0"))
FIRST_SEED = int(os.environ.get("MOMENTUMNET_FUZZ_SEED", "0"))
# Relative errors of gradients that the order of their sums explains.
TOLERANCE = {"float32": 1e-6, "float64": 1e-13, "bfloat16": 2e-2}
FLOAT_TOLERANCE = 2e-2
# Of all gradients together: one that is smaller than this part of them may be rounding alone.
FLOOR = 1e-6


class DifferentError(AssertionError):
    """A number that is not that of stored activations, or an error that is none of ours."""


@dataclass
class Tally:
    """How many networks came to what, and which operations were in those that trained."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    trained: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)


class News(logging.Handler):
    """Whether the log has told that values between two blocks were wrong in a pass: docs/architecture.md, limits."""

    told = False

    def emit(self, record: logging.LogRecord) -> None:
        self.told |= "has seen wrong values" in record.getMessage()


@contextlib.contextmanager
def listening() -> Iterator[News]:
    """The package's log goes to these news alone."""
    logger, news = logging.getLogger("momentumnet"), News()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(news)
    try:
        yield news
    finally:
        logger.removeHandler(news)
        logger.propagate = propagate


def check(case: Case) -> str:
    """Train the case twice, stored and reversible, step by step.

    Returns:
        "equal", "refused", "told" where the log says that values between two blocks were wrong in a pass, or
        "no network" where the unconverted one cannot be trained either.

    Raises:
        DifferentError: it is neither.
    """
    with warnings.catch_warnings(), listening() as news:
        warnings.simplefilter("ignore")
        try:
            stored, reversible = (_converted(case, backward) for backward in ("stored", "reversible"))
        except mn.MomentumNetError:
            return "refused"
        except Exception as error:  # noqa: BLE001 (whatever it is, the unconverted network decides)
            return _no_network(case, error)
        for index, step in enumerate(case.steps):
            try:
                expected = _trained(stored, case, index, step)
            except mn.MomentumNetError:
                return "refused"
            except Exception as error:  # noqa: BLE001
                return _no_network(case, error)
            try:
                found = _trained(reversible, case, index, step)
            except mn.MomentumNetError:
                return "refused"
            except Exception as error:  # noqa: BLE001
                return _no_network(case, error)
            try:
                _compare(case, index, found, expected)
            except DifferentError:
                if news.told and case.net.uses_values_between:
                    return "told"
                raise
    return "equal"


def _converted(case: Case, backward: str) -> nn.Module:
    options = dict(case.options)
    way = options.pop("backward", backward)
    backward = backward if backward == "stored" else way
    net = build(case.net)
    if options.pop("by_hand", False):
        return mn.convert(net, streams=["blocks"], backward=backward, inplace=True, **options)
    if backward == "stored":
        options.pop("spare", None)
    if "spare" not in options:
        options["backward"] = backward
    random.seed(0)
    return mn.convert(net, inputs(case.net, 0), inplace=True, **options)


def _no_network(case: Case, error: Exception) -> str:
    """Whether the unconverted network fails, too."""
    net = build(case.net)
    try:
        for index, step in enumerate(case.steps):
            _trained(net, case, index, step)
    except Exception:  # noqa: BLE001
        return "no network"
    raise DifferentError(f"only the converted network raises {type(error).__name__}: {error}") from error


def _trained(net: nn.Module, case: Case, index: int, step: Step) -> dict[str, Tensor | None]:
    """Outputs, gradients and buffers of a step; the parameters move by it."""
    torch.manual_seed(index)
    random.seed(index)
    net.zero_grad()
    x, extra = inputs(case.net, index, step.magnitude)
    x.requires_grad_(step.kind == "inputs")
    with torch.autocast("cpu", torch.bfloat16) if step.kind == "autocast" else contextlib.nullcontext():
        output, losses = net(x, extra)
        outputs = {"output": output.detach().clone(), "losses": losses.detach().clone()}
        loss = output.float().square().mean() + losses
        if step.kind == "two forwards":
            loss = loss + net(*inputs(case.net, index + 50))[0].float().square().mean()
    if step.kind == "eval between":
        with torch.no_grad():
            net.eval()(x, extra)
        net.train()
    parameters = [p for p in net.parameters() if p.requires_grad]
    if step.kind == "second order":
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        loss = loss + sum(g.float().square().sum() for g in first if g is not None)
    loss.backward(retain_graph=step.kind == "retained")
    if step.kind == "retained":
        loss.backward()
    if step.kind == "accumulated":
        net(*inputs(case.net, index + 70))[0].float().square().mean().backward()
    found: dict[str, Tensor | None] = dict(outputs)
    found |= {f"grad of {name}": _copy(p.grad) for name, p in net.named_parameters()}
    found |= {"grad of x": _copy(x.grad), "grad of extra": _copy(extra.grad)}
    found |= {f"buffer {name}": _copy(buffer) for name, buffer in net.named_buffers()}
    with torch.no_grad():
        for p in parameters:
            if p.grad is not None and bool(p.grad.isfinite().all()):
                p -= 0.01 * (p.grad / p.grad.norm().clamp(min=1e-3)).to(p.dtype)
    return found


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _compare(case: Case, index: int, found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    tolerance = FLOAT_TOLERANCE if case.is_float else TOLERANCE[case.net.dtype]
    gradients = [value.double() for name, value in expected.items() if "grad of" in name and value is not None]
    whole = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
    for name, value in expected.items():
        other = found[name]
        if value is None or other is None:
            if value is not other:
                raise DifferentError(f"step {index}: {name} is {other}, {value} with stored activations")
            continue
        if torch.equal(other, value) or torch.allclose(other, value, rtol=0, atol=0, equal_nan=True):
            continue
        error, size = float((other.double() - value.double()).norm()), float(value.double().norm())
        if not error <= tolerance * (size + ("grad of" in name) * FLOOR * whole):
            raise DifferentError(
                f"step {index}: {name} is off by {error:.3g}, its norm is {size:.3g} (of all {whole:.3g})"
            )


def _search(first_seed: int, examples: int, until: float, tally: Tally) -> None:
    """Try so many networks, but no more when the time is over."""
    failed: list[Case] = []

    @seed(first_seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(cases())
    def holds(case: Case) -> None:
        if time.monotonic() > until and not failed:
            return
        try:
            outcome = check(case)
        except DifferentError:
            failed.append(case)  # what follows makes it smaller, and takes the time that it takes
            raise
        tally.outcomes[outcome] += 1
        used = {name for block in case.net.blocks for name in block.operations}
        if outcome != "no network":
            (tally.trained if outcome == "equal" else tally.refused).update(used)

    holds()


def _seeds(first: int, until: float) -> Iterator[int]:
    number = first
    while time.monotonic() < until:
        yield number
        number += 1


def test_random_networks_train_as_with_stored_activations_or_are_refused() -> None:
    tally, found, started = Tally(), [], time.monotonic()
    if not MINUTES:
        _search(FIRST_SEED, EXAMPLES, started + SECONDS, tally)
        assert tally.outcomes["equal"] > tally.outcomes.total() / 4, tally
        return
    until = started + 60 * MINUTES
    for number in _seeds(FIRST_SEED, until):
        try:
            _search(number, AT_A_TIME, until, tally)
        except DifferentError as error:
            found.append("\n".join([f"seed {number}: {error}", *getattr(error, "__notes__", [])]))
            print(found[-1], flush=True)
        print(f"{time.monotonic() - started:.0f} s, seed {number}: {dict(tally.outcomes)}", flush=True)
    print("trained", dict(tally.trained.most_common()), "refused", dict(tally.refused.most_common()), sep="\n")
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("name", [*OPERATIONS, *HOSTILE])
def test_each_operation_alone(name: str) -> None:
    """So that none of the grammar goes untried, and it is known which ones are refused."""
    outcome = check(Case(Net((Block(("linear", name)),) * 3), {}, (Step(), Step())))
    assert outcome == ("refused" if name in HOSTILE else "equal")


def test_values_that_float32_does_not_know() -> None:
    block = Block(("times 300", "softmax"))  # no work, so that there is no stream
    assert check(Case(Net((block, block), dtype="float64"), {}, (Step(),))) == "refused"


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("kind", STEPS)
def test_each_parent_and_step(parent: str, kind: str) -> None:
    outcome = check(Case(Net((Block(("linear", "dropout")),) * 4, parent), {}, (Step(kind), Step(kind))))
    assert outcome in ("equal", "refused")
    assert outcome == "equal" or parent == "between"


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("spare", [1, 1 << 20])
def test_each_parent_within_a_budget(parent: str, spare: int) -> None:
    outcome = check(
        Case(Net((Block(("linear", "dropout")),) * 4, parent), {"spare": spare, "gamma": 0.125}, (Step(), Step()))
    )
    assert outcome in ("equal", "refused")


def test_the_search_finds_a_wrong_gradient() -> None:
    """A fault of the kind that is looked for is seen."""
    case = Case(Net((Block(("linear", "tanh")),) * 3), {}, (Step(),))
    right = _trained(_converted(case, "stored"), case, 0, Step())
    wrong = {
        name: value * 1.001 if name == "grad of stem.weight" and value is not None else value
        for name, value in right.items()
    }
    with pytest.raises(DifferentError, match=r"stem\.weight is off"):
        _compare(case, 0, wrong, right)
