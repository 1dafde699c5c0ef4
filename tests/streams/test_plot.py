"""The picture of a network's streams: which blocks are drawn where, in which colour."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

import momentumnet as mn
from momentumnet.figures import COLOUR_OF_WAY

pytest.importorskip("matplotlib", reason="pip install 'momentumnet[cli]'")

from matplotlib.axes import Axes
from matplotlib.colors import to_hex

OUTSIDE, LAYER1 = 0, 1  # the lines


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Line and way of each block or part, from left to right."""
    found: list[tuple[int, str]] = []
    ways = {colour: way for way, colour in COLOUR_OF_WAY.items()}
    barh = Axes.barh

    def noted(self: Axes, y: object, *args: object, **options: object) -> object:
        if isinstance(y, int):
            found.append((y, ways[to_hex(options["color"]).upper()]))  # type: ignore[arg-type]
        return barh(self, y, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "barh", noted)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The second block of the later stages stands alone.
        ({"others": "keep"}, [(LAYER1, "reversible")] * 2 + [(OUTSIDE, "checkpointed")] * 3),
        (
            {"others": "checkpoint"},
            [(OUTSIDE, "checkpointed"), *[(LAYER1, "reversible")] * 2, *[(OUTSIDE, "checkpointed")] * 3],
        ),
        ({"backward": "stored"}, [(LAYER1, "stored")] * 2),
        ({"gamma": 0}, [(LAYER1, "stored")] * 2),
    ],
)
def test_blocks_and_parts_stand_in_call_order(
    tmp_path: Path, drawn: list[tuple[int, str]], options: dict[str, object], expected: list[tuple[int, str]]
) -> None:
    plan = mn.plan(resnet18(), torch.randn(2, 3, 32, 32), **{"backward": "reversible", **options})  # type: ignore[call-overload]
    plan.plot(tmp_path / "streams.png")
    assert (tmp_path / "streams.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == expected
