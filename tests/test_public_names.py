"""``import momentumnet as mn`` is enough: all public names are there, and each waits until it is used."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types

import pytest

import momentumnet as mn

LAZY = ("init", "landscape", "native", "optim", "prune")


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


def test_the_import_loads_nothing_but_the_log() -> None:
    program = (
        "import sys, momentumnet\n"
        "loaded = {module for module in sys.modules if module.startswith('momentumnet')}\n"
        "assert loaded == {'momentumnet', 'momentumnet.log'}, loaded\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", mn.__all__)
def test_no_module_takes_the_place_of_a_name(name: str) -> None:
    """Loading ``momentumnet.x`` puts the module on the package: it must be no other than what ``mn.x`` gives."""
    value = getattr(mn, name)
    assert importlib.util.find_spec(f"momentumnet.{name}") is None or isinstance(value, types.ModuleType)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'momentumnet' has no attribute 'convrt'"):
        mn.convrt  # noqa: B018
