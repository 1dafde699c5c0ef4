"""Tests of the kernels: where there are some, and in each of their variants."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

import momentumnet as mn

needs_kernels = pytest.mark.skipif(not mn.native.available(), reason=f"no native kernels: {mn.native.reason()}")


def exact(examples: int) -> settings:
    """The variant stays chosen over all examples of a test."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
