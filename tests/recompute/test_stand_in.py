"""A function in the place of another one, while somebody wants it."""

from __future__ import annotations

from types import SimpleNamespace

from momentumnet.recompute.surroundings.stand_in import StandIn


def original() -> str:
    return "original"


def made() -> tuple[SimpleNamespace, StandIn]:
    owner = SimpleNamespace(function=original)
    stand_in = StandIn(owner, "function", lambda: "stands in for " + stand_in.original())
    return owner, stand_in


def test_it_stands_there_until_the_last_one_has_gone() -> None:
    owner, stand_in = made()
    first, second = stand_in.standing(), stand_in.standing()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert owner.function() == "stands in for original"
    second.__exit__(None, None, None)
    assert owner.function is original


def test_what_another_one_has_put_there_meanwhile_stays() -> None:
    owner, stand_in = made()
    with stand_in.standing():
        standing = owner.function
        owner.function = lambda: "around what " + standing()
    assert owner.function() == "around what stands in for original"
    owner.function = standing  # put back, behind the end
    with stand_in.standing():
        assert owner.function() == "stands in for original"
    assert owner.function is original
