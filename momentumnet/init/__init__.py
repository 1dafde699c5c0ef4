"""Initialisations for networks of any kind, converted or not."""

from momentumnet.init.fixup import fixup_
from momentumnet.init.report import InitReport
from momentumnet.init.tfixup import tfixup_

__all__ = ["InitReport", "fixup_", "tfixup_"]
