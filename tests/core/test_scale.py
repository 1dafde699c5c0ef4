"""The scale of a stream: kept while values fit it, widened with a word in the log once they do not."""

from __future__ import annotations

import pytest
import torch

from momentumnet.core.exact_state import choose_exponent
from momentumnet.core.fixed_point import INT32
from momentumnet.core.scale import StreamScale


def test_headroom_is_used_before_the_scale_is_widened(caplog: pytest.LogCaptureFixture) -> None:
    scale = StreamScale("s", 1.5)  # 29 bits for up to 2, and one of headroom
    with caplog.at_level("WARNING", logger="momentumnet"):
        assert scale.exponent_for(torch.tensor([-3.9, 0.1])) == choose_exponent(1.5, INT32)
        assert scale.exponent_for(torch.tensor([0.5])) == choose_exponent(1.5, INT32)
    assert not caplog.text


def test_start_past_the_headroom_widens_for_good_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    scale = StreamScale("s", 1.5)
    with caplog.at_level("WARNING", logger="momentumnet"):
        assert scale.exponent_for(torch.tensor([4.0])) == choose_exponent(16.0, INT32)
    assert "'s'" in caplog.text
    assert "1.5" in caplog.text
    assert scale.exponent_for(torch.tensor([2.1])) == choose_exponent(16.0, INT32)


def test_first_pass_without_example_leaves_room_for_what_the_blocks_add() -> None:
    assert StreamScale("s", None).exponent_for(torch.tensor([1.0])) == choose_exponent(4.0, INT32)


@pytest.mark.parametrize("start", [torch.zeros(3), torch.zeros(0), torch.tensor([float("nan")])])
def test_start_without_magnitude_takes_the_streams_own(start: torch.Tensor) -> None:
    assert StreamScale("s", 5.0).exponent_for(start) == choose_exponent(5.0, INT32)
