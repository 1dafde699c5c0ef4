from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet import native
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.cli.bench import timing
from momentumnet.bench.kernel.operations import Native, Reference


def test_table_json_and_plot(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORTEST", 1e-4)
    threads = torch.get_num_threads()
    options = ("--elements", "1000", "--threads", "1,2", "--gammas", "9/10,1/8", "--repeats", "1")
    done = command("bench", "kernel", *options, "--output", "out", "--json")
    assert done.status == 0
    values = json.loads(done.out)
    assert json.loads(Path("out", "kernel.json").read_text()) == values
    cases = {(row["gamma"], row["elements"], row["threads"]) for row in values["rows"]}
    assert cases == {(gamma, 1000, count) for gamma in ("9/10", "1/8") for count in (1, 2)}
    for row in values["rows"]:
        assert row["bytes_per_second"] == pytest.approx(32 * 1000 / row["seconds"])
        assert (row["rate_to_add"] == 1) == (row["operation"] == "x.add_(v)")
    assert torch.get_num_threads() == threads
    assert Path("out", "kernel.png").read_bytes().startswith(b"\x89PNG")
    assert "| reference step |" in Path("out", "kernel.md").read_text()


GAMMAS = pytest.mark.parametrize("gamma", [Fraction(9, 10), Fraction(1, 8)], ids=str)
CPU = torch.device("cpu")


@GAMMAS
def test_undo_is_the_inverse_and_goes_ahead(gamma: Fraction) -> None:
    stream = Reference(1000, gamma, CPU)
    x, v, s = stream.ints.x.clone(), stream.ints.v.clone(), stream.ints.s.clone()
    stream.step()
    assert not torch.equal(stream.ints.x, x)
    momentum_step.rewind(stream.ints, stream.digits.next_bound, stream.scale, None)
    assert torch.equal(stream.ints.x, x)
    stream.undo()
    assert torch.equal(stream.ints.v, v)
    assert torch.equal(stream.ints.s, s)
    assert torch.equal(stream.ints.x, x - v - fp.carry(s, stream.digits.previous_bound))


@GAMMAS
@pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.reason()}")
def test_both_implementations_do_the_same_work(gamma: Fraction) -> None:
    ours, reference = Native(1000, gamma, CPU), Reference(1000, gamma, CPU)
    for name in ("step", "undo"):
        report, checksum = getattr(ours, name)(), getattr(reference, name)()
        assert int(report[1]) == checksum
        for part in ("x", "v", "s"):
            assert torch.equal(getattr(ours.ints, part), getattr(reference.ints, part))
        assert torch.equal(ours.position, reference.position)
