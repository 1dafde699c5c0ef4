from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from momentumnet.bench.measuring.probe import StepCost
from momentumnet.cli import comparison_table
from momentumnet.cli.plain_report import PlainReport
from momentumnet.cli.report import Report
from momentumnet.cli.table_layout import extent, layout
from momentumnet.finetuning.comparison import Outcome, duration
from momentumnet.finetuning.metrics import Epoch
from momentumnet.memory import MemoryReport

REPORTS = pytest.mark.parametrize("kind", [PlainReport, Report])
MIB = 2**20


@pytest.mark.parametrize("as_json", [False, True])
def test_stdout_is_for_people_or_for_programs(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    report = Report(as_json=as_json)
    report.line("one [bold] line")
    report.table(("name", "count"), [("a", "1")], title="things")
    report.result({"count": 1})
    out, err = capsys.readouterr()
    people = err if as_json else out
    assert "one [bold] line" in people
    assert "things" in people
    if as_json:
        assert json.loads(out) == {"count": 1}
    else:
        assert err == ""


@REPORTS
def test_quiet_leaves_the_result(capsys: pytest.CaptureFixture[str], kind: type[PlainReport]) -> None:
    report = kind(quiet=True)
    report.remark("epoch 1 of 3")
    report.line("accuracy 98 %")
    assert capsys.readouterr().out == "accuracy 98 %\n"


@REPORTS
def test_a_report_is_what_the_options_ask_for(capsys: pytest.CaptureFixture[str], kind: type[PlainReport]) -> None:
    report = kind.of(Namespace(json=True, quiet=True))
    report.remark("epoch 1 of 3")
    report.result({"count": 1})
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"count": 1}, "")


# Of a fine-tuning, the columns that may go first; of benchmarks, whose columns all stay.
FINETUNE = (comparison_table.COLUMNS, 1, ("held", "accuracy before"))
TABLES = {
    "finetune": (
        FINETUNE,
        [
            ("momentum", "10.0%", "98.1%", "1023.5 MiB", "123.4 MiB", "1034 ms"),
            ("unconverted", "10.0%", "97.9%", "2023.5 MiB", "1123.4 MiB", "934 ms"),
        ],
    ),
    "step": (
        (("network", "method", "peak memory", "×", "step time", "×", "to checkpoint", "gradient error"), 2, ()),
        [
            ("resnet50-64", "stored", "187 MiB", "1.00", "381 ms", "1.00", "0.71", "0"),
            ("", "momentum 9/10, others kept", "152 MiB", "0.81", "518 ms", "1.36", "0.96", "2e-03"),
        ],
    ),
    "texts": (
        (("tensors", "the arithmetic is done by", "compiled by"), 3, ()),
        [("cpu", "native kernels, avx512, 2 thread(s) of libgomp-24e2ab19.so.1.0.0", "c++: portable, avx2, avx512")],
    ),
    "markup": ((("class", "images"), 1, ()), [("[red] pandas", "12"), ("熊猫 and friends", "7")]),
}


@REPORTS
@pytest.mark.parametrize("width", [120, 80, 60, 40])
@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_and_words_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, width: int, kind: type[PlainReport]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    (columns, left, spare), rows = TABLES[name]
    kind().table(columns, rows, title="a title", left=left, spare=spare)
    out = capsys.readouterr().out
    assert max(map(extent, out.splitlines())) <= width
    words = set(re.split(r"[\s│┃|]+", out))
    gone = {column for column in spare if not set(column.split()) <= words}
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if column not in gone:
                assert set(re.sub(",$", "", cell).split()) <= words | {word.rstrip(",") for word in words}, cell
    for place in range(left, len(columns)):  # a number and its unit stay together
        if columns[place] not in gone:
            assert all(row[place] in out for row in rows)
    if width >= 80:
        assert gone == set()


def test_columns_that_may_go_do_so_one_after_the_other() -> None:
    columns, rows = ("name", "first", "second", "third"), [("abcdefgh", "1234567", "1234567", "1234567")]
    shown = []
    for width in (50, 33, 32, 24, 23, 16, 15):
        found = layout(columns, rows, left=1, width=width, gap=1, spare=("second", "first"))
        shown.append(None if found is None else found.shown)
        assert found is None or sum(found.widths) + len(found.widths) - 1 <= width
    assert shown == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 3), (0, 3), (0, 3), None]


def test_blocks_name_each_number(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    (columns, left, _), rows = TABLES["step"]
    PlainReport().table(columns, rows, title="a title", left=left)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["a title", "resnet50-64, stored", "  peak memory     187 MiB"]
    # What a table says once stands at each block.
    assert " ".join(lines[8:10]) == "resnet50-64, momentum 9/10, others kept"


def test_signs_of_two_columns_are_counted_as_two_and_long_words_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    PlainReport().table(("name", "count"), [("数字", "1"), ("digits", "2")], title="a title")
    assert capsys.readouterr().out.splitlines()[2:] == ["数字        1", "digits      2"]
    monkeypatch.setenv("COLUMNS", "10")
    PlainReport().table(("name", "count"), [("a/path/of/one/word", "1")], title="a title")
    assert "a/path/of/one/word" in capsys.readouterr().out.splitlines()


def test_fine_tuning_ends_with_a_table_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    cost = StepCost(MemoryReport(1000 * MIB, 900 * MIB), 1.2345)
    outcomes = {
        name: Outcome(0.1, cost, [Epoch(1, 2.0, 0.9, 0.9, 1.0, 0.1, 60.0)]) for name in ("momentum", "unconverted")
    }
    recipe = SimpleNamespace(batch_size=64)
    settings = {"model": "wide_resnet101_2", "data": "flowers102", "gamma": "1/8", "others": "checkpoint"}
    one: Any = SimpleNamespace(settings=settings, output=tmp_path, recipe=recipe, device="cpu", save="last")
    comparison_table.show(one, outcomes, Report(quiet=True))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in ("before", "peak", "held", "1000 MiB", "1234 ms", "unconverted"):
        assert word in out


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 48, 125, 9000)] == ["0 s", "48 s", "2 min", "2.5 h"]
