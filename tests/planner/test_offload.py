"""Plans that move activations to host memory: peaks that are measured, the same bits, and when they are made."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.memory import measure_memory
from momentumnet.planner import fit
from momentumnet.planner.fit import measured_step
from momentumnet.planner.machine.host_link import HostLink
from momentumnet.planner.profiles.choice import Choice, Way
from momentumnet.planner.step_plans import MeasuredStep
from tests.contract.reference import assert_same, train_step
from tests.planner.networks import built
from tests.planner.searching.profiles import random_profile
from tests.recompute.late_copies import LateCopies, planted

FREE = HostLink(1e15, 1e15)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCopies]:
    """The CPU as a device whose memory is another one than the host's."""
    monkeypatch.setattr(fit, "link_of", lambda device, *, hollow: FREE)
    with planted(monkeypatch, smallest=1 << 14) as late:
        yield late


def step_of(model: nn.Module, x: Tensor, gamma: Fraction = Fraction(1, 8)) -> MeasuredStep:
    return measured_step(model, x, gamma=gamma, offload=True)


def followed(step: MeasuredStep, model: nn.Module, choices: list[Choice]) -> tuple[mn.TrainingPlan, nn.Module]:
    """The plan of these choices, and a network that follows it."""
    plan = step._with(choices, None, 1 << 40)
    return plan, mn.convert(model, plan=plan)


def measured_in_second_step(net: nn.Module, x: Tensor) -> mn.MemoryReport:
    """In the first one host memory is allocated, which does not count."""

    def step() -> None:
        net(x).sum().backward()

    for _ in range(2):
        report = measure_memory(step)
        net.zero_grad(set_to_none=True)
    return report


def patterns(step: MeasuredStep) -> dict[str, list[Choice]]:
    """All that can be is offloaded; or every second unit outside, the others checkpointed, and half of a stream."""
    profile, found = step.options.profile, {"all": list[Choice](), "mixed": list[Choice]()}
    start = 0
    while start < len(profile.units):
        stop = profile.end_of_stream(start)
        if stop is None:
            stop = start + 1
            rest = Way.STORED if stop == len(profile.units) else Way.OFFLOADED
            found["all"].append(Choice(start, stop, rest))
            found["mixed"].append(Choice(start, stop, Way.CHECKPOINTED if start % 2 else rest))
        else:
            last, cut = stop - (stop == len(profile.units)), (start + stop) // 2
            tail = [Choice(last, stop, Way.STORED)] if last < stop else []
            found["all"] += [Choice(start, last, Way.OFFLOADED), *tail]
            found["mixed"] += [Choice(start, cut, Way.REVERSIBLE), Choice(cut, last, Way.OFFLOADED), *tail]
        start = stop
    return found


CASES = [
    ("resnet18", "mixed", Fraction(1, 8)),
    ("resnet18", "all", Fraction(0)),
    ("encoder", "mixed", Fraction(1, 8)),
    ("encoder", "all", Fraction(1, 8)),
    ("encoder", "mixed", Fraction(0)),
    ("plain", "all", Fraction(0)),
]


@pytest.mark.parametrize(("name", "pattern", "gamma"), CASES)
def test_the_peak_is_predicted_and_the_bits_are_the_same(
    copies: LateCopies, name: str, pattern: str, gamma: Fraction
) -> None:
    model, x = built(name)
    step = step_of(model, x, gamma)
    choices = patterns(step)[pattern]
    plan, net = followed(step, model, [choice for choice in choices if choice.start < choice.stop])
    stored, reference = followed(step, model, [Choice(0, len(plan.units), Way.STORED)])
    report = measured_in_second_step(net, x)
    assert report.peak_bytes <= 1.03 * plan.peak
    assert plan.peak == pytest.approx(report.peak_bytes, rel=0.12)
    assert plan.held < 0.9 * stored.held
    net, reference = (mn.convert(model, plan=made) for made in (plan, stored))
    assert_same(train_step(net, (x,)), train_step(reference, (x,)), tolerance=0.0)
    assert copies.sent


def test_a_quick_link_is_used_and_a_slow_one_is_not(copies: LateCopies, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = built("resnet18")
    plain = mn.plan(model, x, budget="least", gamma=0)
    quick = mn.plan(model, x, budget="least", offload=True, gamma=0)
    assert quick.peak <= plain.peak
    within = mn.plan(model, x, budget=plain.peak + (plain.stored_peak - plain.peak) // 2, offload=True, gamma=0)
    assert any(unit.way == "offloaded" for unit in within.units)
    assert within.seconds == pytest.approx(within.stored_seconds, rel=0.1)
    assert within.offloaded > 0
    assert "go to host memory" in str(within)
    monkeypatch.setattr(fit, "link_of", lambda device, *, hollow: HostLink(1e3, 1e3))
    slow = mn.plan(model, x, budget=plain.stored_peak - 1, offload=True, gamma=0)
    assert {unit.way for unit in slow.units} <= {"stored", "checkpointed", "reversible"}


def test_a_plan_is_followed_wherever_it_goes(copies: LateCopies, tmp_path: Path) -> None:
    model, x = built("encoder")
    step = step_of(model, x)
    plan, net = followed(step, model, patterns(step)["mixed"])
    plan.save(tmp_path / "plan.json")
    loaded = mn.TrainingPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    plan.plot(tmp_path / "plan.png")
    expected = train_step(copy.deepcopy(net), (x,))
    described = mn.describe(net)
    assert [unit["settled_behind"] for unit in described["offloaded"]] == ["layers.4", "layers.5"]
    counts = []
    last = mn.convert(model, like=described)
    for again in (net, mn.convert(model, plan=loaded), last):
        assert mn.describe(again) == described
        before = len(copies.sent)
        got = train_step(again, (x,))
        if again is not last:  # a description says nothing of a stream's scale, which the first pass gives it
            assert_same(got, expected, tolerance=0.0)
        counts.append(len(copies.sent) - before)
    assert counts[0] == counts[1] == counts[2] > 0
    before = len(copies.sent)
    train_step(mn.revert(net), (x,))
    assert len(copies.sent) == before


def test_what_others_hold_is_not_copied(copies: LateCopies) -> None:
    model, x = built("resnet18")
    step = step_of(model, x, Fraction(0))
    count = len(step.options.profile.units)
    ways = [Way.OFFLOADED, Way.OFFLOADED, Way.CHECKPOINTED, Way.OFFLOADED, *[Way.STORED] * (count - 4)]
    sent = []
    for third, stays in ((Way.CHECKPOINTED, False), (Way.STORED, True)):
        ways[2] = third
        plan, net = followed(step, model, [Choice(at, at + 1, way) for at, way in enumerate(ways)])
        # The first one is given the images; the last one what the third returned, which that keeps if it is stored.
        assert [unit.input_stays for unit in plan.units[:4]] == [True, False, False, stays]
        before = len(copies.sent)
        net(x).sum().backward()
        sent.append(len(copies.sent) - before)
    assert sent[1] == sent[0] - 1


def test_the_input_of_a_streams_block_is_its_own() -> None:
    profile = random_profile(0, 1)
    index = next(at for at in range(len(profile.units)) if profile.is_momentum(at))
    units = [replace(unit, entry=frozenset()) for unit in profile.units]  # glue holds it
    shown = replace(profile, units=tuple(units))
    assert not shown.input_stays(index, front_is_stored=False)
    assert replace(shown, streams=(replace(profile.streams[0], gamma=Fraction(0)),)).input_stays(
        index, front_is_stored=False
    )


@pytest.mark.parametrize("broken", [{"names": ["layers.3"]}, {"names": [], "settled_behind": 3, "input_stays": False}])
def test_a_description_that_is_none(copies: LateCopies, broken: dict[str, object]) -> None:
    model, x = built("encoder")
    step = step_of(model, x)
    _, net = followed(step, model, patterns(step)["all"])
    with pytest.raises(mn.ConversionError, match="what goes to host memory is described by"):
        mn.convert(model, like={**mn.describe(net), "offloaded": [broken]})
    with pytest.raises(mn.ConversionError, match=r"no module 'layers\.9'"):
        mn.convert(
            model,
            like={
                **mn.describe(net),
                "offloaded": [{"names": ["layers.1"], "settled_behind": "layers.9", "input_stays": False}],
            },
        )


def test_larger_inputs_are_planned_with_it_again(copies: LateCopies) -> None:
    # Products alone: the work space of convolutions is another one on each processor.
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(32)))
    x = torch.randn(512, 64)
    budget = int(1.05 * mn.plan(model, x, budget="least").stored_peak)
    net = mn.convert(model, x, budget=budget, offload=True, replan="auto")
    net(x).sum().backward()
    assert not copies.sent
    net(torch.cat([x] * 4)).sum().backward()
    assert copies.sent


def test_a_larger_batch_fits_with_it(copies: LateCopies) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(16)))

    def rows(batch: int) -> Tensor:
        return torch.randn(batch, 64)

    budget = mn.plan(model, rows(1024), budget="least", gamma=0).peak
    sizes = [mn.largest_batch(model, rows, budget, gamma=0, offload=offload) for offload in (False, True)]
    assert sizes[1] > sizes[0]
    plan = mn.plan(model, rows(sizes[1]), budget=budget, gamma=0, offload=True)
    assert any(unit.way == "offloaded" for unit in plan.units)


def test_on_the_cpu_it_is_refused() -> None:
    model, x = built("plain")
    with pytest.raises(mn.ConversionError, match="which is no CUDA device: nothing would be"):
        mn.largest_batch(model, lambda batch: x[:batch], "1GiB", offload=True)
    with pytest.raises(ValueError, match="offload must be True or False, got 1"):
        mn.largest_batch(model, lambda batch: x[:batch], "1GiB", offload=1)  # type: ignore[arg-type]
    with pytest.raises(mn.ConversionError, match="the example is on cpu, which is no CUDA device: nothing would be"):
        mn.plan(model, x, budget="least", offload=True)
    with pytest.raises(ValueError, match="nothing is planned; give a budget"):
        mn.plan(model, x, offload=True)
    with pytest.raises(ValueError, match="nothing is planned; give a budget"):
        mn.convert(model, x, offload=True)
    with pytest.raises(ValueError, match="offload must be True or False, got 'yes'"):
        mn.plan(model, x, budget="least", offload="yes")  # type: ignore[call-overload]


def test_without_values_the_link_is_assumed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Sequential(nn.Linear(1 << 15, 1 << 15), nn.GELU()) for _ in range(8)))
        x = torch.empty(1 << 15, 1 << 15)
    least = mn.plan(model, x, budget="least")
    for share in (0.3, 0.6):
        spare = int(share * (least.stored_peak - least.peak))
        plans = [mn.plan(model, x, spare=spare, offload=offload) for offload in (False, True)]
        assert plans[1].seconds <= plans[0].seconds
    assert any(unit.way == "offloaded" for unit in plans[1].units)
    assert plans[1].units[-1].way != "offloaded"  # nothing runs behind it
