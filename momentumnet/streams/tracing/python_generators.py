"""The random generators that stand beside torch's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def python_generators_kept() -> Iterator[None]:
    """Python's generator and NumPy's global one go on outside as if nothing had been drawn.

    Speech models of transformers draw masks by the latter, and training functions of users may draw by either.
    """
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 (the global one)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
