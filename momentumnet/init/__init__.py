"""Initialisations for networks of any kind, converted or not."""

from momentumnet.init.fixup import fixup_
from momentumnet.init.gradinit import gradinit_
from momentumnet.init.kaiming import kaiming_, xavier_
from momentumnet.init.metainit import gradient_quotient, metainit_
from momentumnet.init.report import InitReport
from momentumnet.init.tfixup import tfixup_

__all__ = ["InitReport", "fixup_", "gradient_quotient", "gradinit_", "kaiming_", "metainit_", "tfixup_", "xavier_"]
