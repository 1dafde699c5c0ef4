"""Initialisations for networks of any kind, converted or not."""

from momentumnet.init.gradinit import gradinit_
from momentumnet.init.metainit import gradient_quotient, metainit_
from momentumnet.init.report import InitReport

__all__ = ["InitReport", "gradient_quotient", "gradinit_", "metainit_"]
