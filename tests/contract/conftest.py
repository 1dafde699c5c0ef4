"""Every contract test that takes ``case`` runs over all networks of `tests.models`."""

from __future__ import annotations

import pytest

from tests.models import CASES, Case


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
