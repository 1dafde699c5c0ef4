from __future__ import annotations

import json

import pytest

from momentumnet.cli.report import Report


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
