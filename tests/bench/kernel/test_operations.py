from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from momentumnet import native
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.bench.kernel.operations import Native, Reference

GAMMAS = pytest.mark.parametrize("gamma", [Fraction(9, 10), Fraction(1, 8)], ids=str)
CPU = torch.device("cpu")


@GAMMAS
def test_undo_is_the_inverse_and_goes_ahead(gamma: Fraction) -> None:
    stream = Reference(1000, gamma, CPU)
    x, v, s = (part.clone() for part in stream.ints.read())
    stream.step()
    assert not torch.equal(stream.ints.x.read(), x)
    momentum_step.rewind(stream.ints, stream.digits.next_bound, stream.move.scale, None)
    assert torch.equal(stream.ints.x.read(), x)
    stream.undo()
    assert torch.equal(stream.ints.v.read(), v)
    assert torch.equal(stream.ints.s.read(), s)
    assert torch.equal(stream.ints.x.read(), x - v - fp.carry(s, stream.digits.previous_bound))


@GAMMAS
@pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.reason()}")
def test_both_implementations_do_the_same_work(gamma: Fraction) -> None:
    ours, reference = Native(1000, gamma, CPU), Reference(1000, gamma, CPU)
    for name in ("step", "undo"):
        report, expected = getattr(ours, name)(), getattr(reference, name)()
        assert int(report[1]) == int(expected[1])
        assert all(map(torch.equal, ours.ints.tensors, reference.ints.tensors))
        assert torch.equal(ours.position, reference.position)
