"""Docstrings as the site shows them: an extension of griffe, which reads them for mkdocstrings.

Google's style has "Example:" and Griffe knows "Examples:"; formulas are written for Sphinx.
"""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_EXAMPLE = re.compile(r"^(\s*)Example:\s*$", re.MULTILINE)
_FORMULA = re.compile(r"^\.\. math::\n((?:[ \t]+\S.*\n?|\n)+)", re.MULTILINE)


class DocstringSections(griffe.Extension):
    """Rewrites each docstring as it is found."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Name examples as Griffe does, and write formulas as MathML, which browsers show without help."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = _FORMULA.sub(_shown, text)


def _shown(formula: re.Match[str]) -> str:
    return f"{convert(' '.join(formula[1].split()), display='block')}\n\n"
