"""Every operator on the CPU, bit for bit against plain PyTorch operations."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import libraries, selection, typed_operators
from momentumnet.arithmetic.planes import Integers
from momentumnet.core.state.exact_state import ExactState
from momentumnet.errors import MomentumNetError
from tests.arithmetic.compiled import reference
from tests.arithmetic.compiled.cases import cases
from tests.arithmetic.compiled.reference import Case, same_bits
from tests.arithmetic.compiled.variants import exact, needs_kernels


def run_step(case: Case) -> tuple[Case, Tensor, Tensor]:
    """The operator on a copy: the case after it, the position, the report."""
    case, (x, v, *s) = case.copy(), case.laid_out().tensors
    position, report = torch.empty(case.x.shape, dtype=case.position_dtype), torch.full((2,), 77, dtype=case.x.dtype)
    typed_operators.step(
        x,
        v,
        *(s or [None]),
        case.y,
        case.digits,
        factor=case.factor,
        exponent=case.exponent,
        position=position,
        report=report,
        spilled=case.spilled,
        skip=case.skip,
    )
    return case.moved_to(Integers(x, v, *s)), position, report


def run_undo(case: Case, *, ahead: bool, as_floats: bool = True) -> tuple[Case, Tensor | None, Tensor]:
    case, (x, v, *s) = case.copy(), case.laid_out().tensors
    position = torch.empty(case.x.shape, dtype=case.position_dtype) if ahead and as_floats else None
    report = torch.full((2,), 77, dtype=case.x.dtype)
    typed_operators.undo(
        x,
        v,
        *(s or [None]),
        case.y,
        case.digits,
        factor=case.factor,
        exponent=case.exponent,
        report=report,
        ahead=ahead,
        position=position,
        spilled=case.spilled,
        skip=case.skip,
    )
    return case.moved_to(Integers(x, v, *s)), position, report


def run_rewind(case: Case, bound: int, *, as_floats: bool = True) -> tuple[Case, Tensor | None]:
    case, (x, v, *s) = case.copy(), case.laid_out().tensors
    position = torch.empty(case.x.shape, dtype=case.position_dtype) if as_floats else None
    typed_operators.rewind(x, v, *(s or [None]), bound=bound, exponent=case.exponent, position=position)
    return case.moved_to(Integers(x, v, *s)), position


def same_state(one: Case, other: Case) -> bool:
    return all(map(same_bits, (*one.state(), one.spilled), (*other.state(), other.spilled)))


class TestBits:
    @given(case=cases())
    @exact(250)
    def test_step(self, variant: str, case: Case) -> None:
        expected, expected_report = reference.step(case)
        after, position, report = run_step(case)
        assert same_state(after, expected)
        assert same_bits(position, expected.position())
        assert report.tolist() == expected_report.tolist()

    @given(case=cases())
    @exact(250)
    def test_undo(self, variant: str, case: Case) -> None:
        expected, expected_report = reference.undo(case)
        before, position, report = run_undo(case, ahead=False)
        assert same_state(before, expected)
        assert position is None
        assert report.tolist() == expected_report.tolist()

    @given(case=cases())
    @exact(250)
    def test_undo_that_looks_ahead(self, variant: str, case: Case) -> None:
        expected, expected_report = reference.undo(case)
        expected = reference.rewind(expected, case.digits.previous_bound)
        for as_floats in (True, False):
            before, position, report = run_undo(case, ahead=True, as_floats=as_floats)
            assert same_state(before, expected)
            assert same_bits(position, expected.position()) if as_floats else position is None
            assert report.tolist() == expected_report.tolist()

    @given(case=cases())
    @exact(100)
    def test_rewind_and_checksum(self, variant: str, case: Case) -> None:
        bound = case.digits.next_bound
        expected = reference.rewind(case, bound)
        for as_floats in (True, False):
            before, position = run_rewind(case, bound, as_floats=as_floats)
            assert same_state(before, expected)
            assert same_bits(position, expected.position()) if as_floats else position is None
        report = torch.full((2,), 77, dtype=case.x.dtype)
        typed_operators.checksum(*(*case.laid_out().tensors, None)[:3], report=report)
        assert report.tolist() == [0, int(fp.checksum(*case.state()))]

    @given(case=cases())
    @exact(100)
    def test_rewind_and_undo_take_a_step_back(self, variant: str, case: Case) -> None:
        after, _, _ = run_step(case)
        rewound, position = run_rewind(after, case.digits.next_bound)
        assert same_bits(position, case.position())
        in_bounds = bool(((case.s >= 0) & (case.s < case.digits.previous_bound)).all())
        before, _, report = run_undo(rewound, ahead=False)
        if in_bounds:
            assert all(map(torch.equal, before.state(), case.state()))
            assert int(report[1]) == int(fp.checksum(*case.state()))


@pytest.mark.usefixtures("_two_threads")
class TestThreads:
    SIZE = 70_001

    @pytest.mark.usefixtures("_threads")
    @given(case=cases(size=SIZE))
    @exact(6)
    def test_share_one_tensor(self, case: Case) -> None:
        expected, expected_report = reference.step(case)
        after, position, report = run_step(case)
        assert same_state(after, expected)
        assert same_bits(position, expected.position())
        assert report.tolist() == expected_report.tolist()
        expected, expected_report = reference.undo(after)
        before, _, report = run_undo(after, ahead=False)
        assert same_state(before, expected)
        assert report.tolist() == expected_report.tolist()
        further = reference.rewind(expected, after.digits.previous_bound)
        for as_floats in (True, False):
            rewound, position = run_rewind(expected, after.digits.previous_bound, as_floats=as_floats)
            assert same_state(rewound, further)
            assert same_bits(position, further.position()) if as_floats else position is None
            before, position, report = run_undo(after, ahead=True, as_floats=as_floats)
            assert same_state(before, further)
            assert same_bits(position, further.position()) if as_floats else position is None
            assert report.tolist() == expected_report.tolist()


@needs_kernels
class TestTorch:
    def arguments(self, word: fp.Word, dtype: torch.dtype, spills: int) -> list[object]:
        digits = next(
            d for d in map(fp.store_schedule(fp.exact_gamma(0.9), word).__getitem__, range(200)) if d.spills == spills
        )
        x, v, s = (torch.arange(9, dtype=word.dtype) * factor for factor in (1000, -77, 3))
        spilled = torch.zeros(9, dtype=torch.uint8) if spills else None
        bounds = (digits.n, digits.d, digits.previous_bound, digits.bound, digits.next_bound, digits.offset)
        y = torch.linspace(-1, 1, 9).to(dtype)
        return [x, v, s, torch.empty(9, dtype=dtype), spilled, x.new_zeros(2), y, dtype, *bounds, 0.1 * 2**20, 20]

    @pytest.mark.parametrize("operator", ["step", "undo"])
    @pytest.mark.parametrize("spills", [0, 1])
    @pytest.mark.parametrize(("word", "dtype"), [(fp.INT32, torch.float32), (fp.INT64, torch.float64)])
    def test_opcheck_of_steps(self, operator: str, spills: int, word: fp.Word, dtype: torch.dtype) -> None:
        arguments = self.arguments(word, dtype, spills)
        if operator == "undo":
            arguments.append(True)  # ahead
        torch.library.opcheck(getattr(torch.ops.momentumnet, operator).default, arguments)

    def test_opcheck_of_the_others(self) -> None:
        x, v, s, position, _, report, *_ = self.arguments(fp.INT32, torch.float32, 0)
        torch.library.opcheck(torch.ops.momentumnet.rewind.default, (x, v, s, position, 100, 20))
        torch.library.opcheck(torch.ops.momentumnet.checksum.default, (x, v, s, report))

    def test_compiled(self) -> None:
        def program(x: Tensor, v: Tensor, s: Tensor, report: Tensor) -> Tensor:
            torch.ops.momentumnet.checksum(x, v, s, report)
            return report + 1

        x, v, s = (torch.arange(9, dtype=torch.int32) * factor for factor in (1000, -77, 3))
        found = torch.compile(program, backend="aot_eager", fullgraph=True)(x, v, s, x.new_zeros(2))
        assert found.tolist() == [1, int(fp.checksum(x, v, s)) + 1]


@needs_kernels
class TestErrors:
    def step(self, **changes: object) -> None:
        arguments: dict[str, object] = {name: torch.zeros(4, dtype=torch.int32) for name in "xvs"}
        arguments |= {"y": torch.zeros(4), "position": torch.zeros(4), "report": torch.zeros(2, dtype=torch.int32)}
        arguments |= {"digits": fp.Digits(1, 2, 0, 4, 4, 8, 0), "factor": 1.0, "exponent": 0} | changes
        typed_operators.step(**arguments)  # type: ignore[arg-type]

    def test_nothing_is_wrong_without_a_change(self) -> None:
        self.step()

    @pytest.mark.parametrize(
        ("name", "wrong", "message"),
        [
            ("x", torch.zeros(4), "x must be torch.int32 or torch.int64, got torch.float32"),
            ("x", torch.zeros(2, 2, dtype=torch.int32), r"x must have shape \(4,\), got \(2, 2\)"),
            ("v", torch.zeros(4, dtype=torch.int64), "v must be torch.int32 beside x of torch.int32, got torch.int64"),
            ("s", torch.zeros(5, dtype=torch.int32), r"s must have shape \(4,\), got \(5,\)"),
            ("s", torch.zeros(8, dtype=torch.int32)[::2], "s must be contiguous"),
            ("y", torch.zeros(4, dtype=torch.int32), "y must be torch.float32 or"),
            ("y", torch.zeros(3), r"y must have shape \(4,\), got \(3,\)"),
            ("position", torch.zeros(4, dtype=torch.int8), "position must be torch.float32 or"),
            ("report", torch.zeros(4, dtype=torch.int32), r"report must have shape \(2,\)"),
            ("report", torch.zeros(2), "report must be torch.int32"),
            ("spilled", torch.zeros(4, dtype=torch.uint8), "digits with spills=0 need 0 tensor"),
            ("digits", fp.Digits(1, 2, 1, 4, 4, 8, 0), "digits with spills=1 need 1 tensor"),
            ("digits", fp.Digits(1, 2, 2, 4, 4, 8, 0), "digits with spills=2 need 2 tensor"),
            ("digits", fp.Digits(1, 0, 0, 4, 4, 8, 0), "no digits of torch.int32"),
            ("digits", fp.Digits(1, 2, 0, 4, 0, 8, 0), "bounds must be from 1"),
            ("digits", fp.Digits(1, 2, 0, 4, 4, 1 << 31, 0), "bounds must be from 1"),
            ("exponent", 2000, "exponent=2000"),
            ("skip", torch.int32, "skip must be torch.float32 or"),
        ],
    )
    def test_say_what_was_expected(self, name: str, wrong: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.step(**{name: wrong})

    def test_spilled_bytes_must_be_bytes(self) -> None:
        digits = fp.Digits(1, 2, 1, 4, 4, 8, 0)
        with pytest.raises(ValueError, match=r"spilled must be torch\.uint8"):
            self.step(digits=digits, spilled=torch.zeros(4))

    def test_a_tensor_elsewhere(self) -> None:
        with pytest.raises(ValueError, match="report is on meta, x on cpu"):
            torch.ops.momentumnet.checksum(
                *(torch.zeros(4, dtype=torch.int32),) * 3, torch.zeros(2, dtype=torch.int32, device="meta")
            )

    def test_without_a_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none() -> libraries.Kernels:
            return libraries.Kernels(None, "for a test")

        monkeypatch.setattr(libraries, "cpu", none)
        with pytest.raises(MomentumNetError, match="no native kernels for cpu tensors: for a test"):
            self.step()


def test_the_reference_itself_is_what_the_engine_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' reference against ExactState on plain operations, so that neither can drift from the other."""
    monkeypatch.setattr(selection, "for_device", lambda device: momentum_step)
    values = torch.linspace(-1, 1, 11)
    state = ExactState(values, None, Fraction(9, 10), 20, "test")
    for index in range(60):
        digits, weight = fp.store_schedule(Fraction(9, 10), fp.INT32)[index], Fraction(1, 10)
        factor = float(weight) * 2.0**20
        case = Case(
            fp.INT32,
            16,
            state.x.clone(),
            state.v.clone(),
            state.s.clone(),
            values,
            digits,
            factor,
            20,
            None,
            torch.float32,
            None,
        )
        expected, report = reference.step(case)
        undo = state.step(momentum_step.Branch(values), weight)
        assert all(map(torch.equal, expected.state(), (state.x, state.v, state.s)))
        assert int(state.fingerprint().report[1]) == int(report[1])
        assert (undo.spilled is None) == (expected.spilled is None)
        assert undo.spilled is None or torch.equal(undo.spilled, expected.spilled)
