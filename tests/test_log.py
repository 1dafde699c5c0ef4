"""The package's name stands in each line of its log and of its warnings."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import momentumnet as mn

PROGRAM = """
import logging, torch, momentumnet as mn
from torch import nn
{setup}
mn.MomentumNet([nn.Linear(2, 2)] * 2, gamma=0.0, use_backprop=False)
logging.getLogger("momentumnet").info("quiet")
"""


@pytest.mark.parametrize(
    ("setup", "line"),
    [
        ("", "momentumnet: stream 'MomentumNet': gamma=0 has no velocity"),
        ("logging.basicConfig(format='%(name)s|%(message)s')", "momentumnet|stream 'MomentumNet': gamma=0"),
        ("logging.getLogger('momentumnet').addHandler(logging.NullHandler())", None),
    ],
)
def test_a_line_of_the_log_is_written_once_with_the_name(setup: str, line: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setup=setup)], capture_output=True, text=True, check=True
    )
    lines = [found for found in done.stderr.splitlines() if "gamma=0" in found]
    assert len(lines) == (line is not None)
    assert line is None or lines[0].startswith(line)
    assert "quiet" not in done.stderr


def test_a_warning_names_the_package() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    encoder = nn.TransformerEncoder(layer, 24, enable_nested_tensor=False)
    with pytest.warns(mn.MomentumNetWarning) as caught:
        mn.convert(encoder, torch.zeros(2, 1, 8), arithmetic="float")
    (found,) = caught
    line = warnings.formatwarning(found.message, found.category, found.filename, found.lineno)
    assert "MomentumNetWarning: stream 'layers': arithmetic='float'" in line
