"""Initialisations for networks of any kind, converted or not."""

from momentumnet.init.fixup import fixup_
from momentumnet.init.report import InitReport

__all__ = ["InitReport", "fixup_"]
