from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recompute.late_copies import LateCopies, planted


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCopies]:
    with planted(monkeypatch) as late:
        yield late
