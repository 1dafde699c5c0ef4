"""What all tests share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a machine that loses power would miss the bytes, and a slow disk takes a second for each file."""
    if request.node.path.name != "test_whole_file.py":
        monkeypatch.setattr(os, "fsync", lambda _: None)
