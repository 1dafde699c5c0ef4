"""``import momentumnet as mn`` is enough: all public names are there; the large packages wait until they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import momentumnet as mn

LAZY = ("init", "landscape", "optim", "prune")


@pytest.mark.parametrize("name", mn.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(mn, name) is not None
    assert name in dir(mn)


@pytest.mark.parametrize("name", LAZY)
def test_a_package_is_loaded_when_it_is_asked_for(name: str) -> None:
    program = (
        "import sys, momentumnet as mn\n"
        f"assert not any(module.startswith('momentumnet.{name}') for module in sys.modules)\n"
        f"assert '{name}' in dir(mn)\n"
        f"assert mn.{name} is sys.modules['momentumnet.{name}'] and mn.{name}.__all__\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'momentumnet' has no attribute 'convrt'"):
        mn.convrt  # noqa: B018
